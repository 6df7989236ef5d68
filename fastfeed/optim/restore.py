"""Putting everything back after a trial of training."""

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer


@contextmanager
def restored(modules: Sequence[nn.Module], optimizer: Optimizer, loader: Any) -> Iterator[None]:
    """Put back in the end, be it by an error, what a training changes; begin it without gradients.

    Args:
        modules: whose parameters, buffers, gradients and training modes are kept.
        optimizer: whose state and parameter groups are kept, and its parameters if they are no module's.
        loader: whose state is kept, if it has `state_dict` and `load_state_dict`.
    """
    parameters = unique_parameters(modules, optimizer)
    devices = {p.device for p in parameters if p.is_cuda}
    with torch.random.fork_rng([device.index for device in devices]), ExitStack() as stack:
        for keep in (
            _keep_generators(),
            _keep_loader(loader),
            _keep_optimizer(optimizer),
            _keep_parameters(parameters),
            *map(_keep_module, modules),
        ):
            stack.callback(keep)
        for p in parameters:
            p.grad = None
        yield


def _keep_generators() -> Callable[[], None]:
    python, numpy = random.getstate(), np.random.get_state()

    def restore() -> None:
        random.setstate(python)
        np.random.set_state(numpy)

    return restore


def _keep_loader(loader: Any) -> Callable[[], None]:
    if not hasattr(loader, "state_dict") or not hasattr(loader, "load_state_dict"):
        return lambda: None
    state = copy.deepcopy(loader.state_dict())
    return lambda: loader.load_state_dict(state)


def _keep_optimizer(optimizer: Optimizer) -> Callable[[], None]:
    # Its state dict, and not what lies in its `state`: an optimizer may keep addresses of that, which loading renews.
    state = copy.deepcopy(optimizer.state_dict())
    lrs = [group["lr"] for group in optimizer.param_groups]
    values = [lr.clone() if isinstance(lr, Tensor) else lr for lr in lrs]

    def restore() -> None:
        optimizer.load_state_dict(state)
        for group, lr, value in zip(optimizer.param_groups, lrs, values, strict=True):
            group["lr"] = lr.copy_(value) if isinstance(lr, Tensor) else value

    return restore


def _keep_parameters(parameters: Sequence[Tensor]) -> Callable[[], None]:
    values = [p.detach().clone() for p in parameters]
    gradients = [p.grad for p in parameters]  # set aside, and not written to

    @torch.no_grad()
    def restore() -> None:
        for p, value, gradient in zip(parameters, values, gradients, strict=True):
            p.copy_(value)
            p.grad = gradient

    return restore


def _keep_module(root: nn.Module) -> Callable[[], None]:
    """Buffers, those that are not saved included, and which modules are in training mode."""
    modes = [(module, module.training) for module in root.modules()]
    buffers = [
        (module, name, buffer, None if buffer is None else buffer.detach().clone())
        for module in root.modules()
        for name, buffer in module._buffers.items()
    ]

    @torch.no_grad()
    def restore() -> None:
        for module, training in modes:
            module.training = training
        for module, name, buffer, value in buffers:
            module._buffers[name] = buffer  # a module may put another tensor in its place
            if buffer is not None and value is not None:
                buffer.copy_(value)

    return restore


def unique_parameters(modules: Sequence[nn.Module], optimizer: Optimizer) -> list[Tensor]:
    """Return the parameters of modules, and then those that the optimizer alone has, each once."""
    found = [p for module in modules for p in module.parameters()]
    found += [p for group in optimizer.param_groups for p in group["params"]]
    return list({id(p): p for p in found}.values())
