"""The learning-rate range test."""

import math
import os
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from fastfeed.data.arguments import check_whole
from fastfeed.data.tree import replace_leaves
from fastfeed.optim.restore import restored, unique_parameters

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class LRFindResult:
    """What `lr_find` found.

    Attributes:
        lrs: the learning rate of each step, ascending; that of the parameter group with the largest.
        losses: the loss of each step's batch, before the update with its learning rate. All are finite: the curve ends
            before the first that is not.
        smoothed: the exponential moving average of `losses`, corrected for its bias.
        suggestion: a learning rate to train with: where `smoothed` falls most steeply over the logarithm of the
            learning rate, but at most a tenth of where it is lowest. None if it does not fall.
        reason: why there is no suggestion, and what to do about it; None if there is one.
    """

    lrs: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    suggestion: float | None
    reason: str | None

    def plot(self, path_or_ax: "str | os.PathLike[str] | Axes") -> "Axes":
        """Draw the losses over the learning rate, and mark the suggestion.

        Args:
            path_or_ax: a file to write, of the type that its name says (.png, .svg, .pdf), or the axes to draw into.

        Returns:
            The axes. pyplot is not used: no display is needed, and no figure stays open.

        Raises:
            ImportError: if Matplotlib is not installed.
            TypeError: for anything but a path or axes.
        """
        try:
            from matplotlib.axes import Axes
            from matplotlib.figure import Figure
        except ModuleNotFoundError as error:
            raise ImportError("plot needs Matplotlib, which is not installed: pip install matplotlib") from error
        if isinstance(path_or_ax, Axes):
            _draw(self, path_or_ax)
            return path_or_ax
        if not isinstance(path_or_ax, str | os.PathLike):
            raise TypeError(f"path_or_ax is {path_or_ax!r}; expected a path, or the axes of a Matplotlib figure")
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.add_subplot()
        _draw(self, axes)
        figure.savefig(path_or_ax, dpi=150)
        return axes


def lr_find(
    model: nn.Module,
    optimizer: Optimizer,
    loader: Iterable[Any],
    loss_fn: Callable[[Any, Any], Tensor],
    *,
    start: float = 1e-7,
    end: float = 10.0,
    steps: int = 100,
    smoothing: float = 0.9,
    early_stop_threshold: float | None = 4.0,
    autocast: torch.dtype | None = None,
) -> LRFindResult:
    """Find a learning rate by the range test: train a few steps, raise it from step to step, and watch the loss.

    Afterwards, and after an error or Ctrl-C too, everything is as before: parameters and buffers, also those of a
    `loss_fn` that is a module; gradients; which modules are in training mode; the optimizer, by its own state dict,
    with tensor learning rates the same tensors; the random number generators of Python, NumPy and PyTorch; and the
    loader, if it has `state_dict` and `load_state_dict`, as `fastfeed.DataLoader` does. A generator or sampler that a
    loader of PyTorch's was given moves on. It takes the memory of one more copy of the parameters, the buffers and the
    optimizer's state.

    Parameter groups keep the ratios of their learning rates, and the largest is the one that is raised, recorded and
    suggested. To train with a suggestion, multiply the `lr` of every group by the suggestion over the largest `lr`.

    The host waits for a GPU every eighth step only, to see whether the loss diverges; the steps that were too many are
    not in the result. Under DistributedDataParallel or FSDP2 all ranks must call this: their losses are averaged, and
    they stop at the same step with the same result.

    Args:
        model: is put into training mode if it is not in it; otherwise modules in evaluation mode, such as frozen batch
            norms, stay in it.
        optimizer: over the parameters of the model, with the options that it will train with; its learning rates matter
            by their ratios alone. If they are all 0, all groups get the same.
        loader: of batches, each a tuple or list of images, target, and maybe more, which is left out. Images and target
            may be tensors or trees of them, such as a `fastfeed.MixedTarget`, and are copied to the device of the
            model's first parameter. It begins anew when it ends before `steps`.
        loss_fn: called as ``loss_fn(model(images), target)``; returns a scalar.
        start: learning rate of the first step; above 0.
        end: learning rate of the last step; above `start`.
        steps: 10 or more. Of each factor of 10 between `start` and `end` a dozen steps should be left.
        smoothing: weight of the past in the moving average of the losses, 0 (none) to 1, exclusive.
        early_stop_threshold: stop when the smoothed loss is above this times its minimum so far; above 1. With None
            only a loss that is not finite stops the test, as it always does.
        autocast: torch.bfloat16 or torch.float16 for forward passes under `torch.autocast`; with float16 the loss is
            scaled by a GradScaler of its own. None for a model in one precision, or that casts by itself.

    Raises:
        TypeError: for an optimizer or function that is none, batches that are no tuples or lists, or a loss that is no
            tensor.
        ValueError: for an argument out of range, a parameter group without `lr`, a loader that has no batches or, being
            an iterator, fewer than `steps`, or a loss that is no scalar.

    Source: Smith, Cyclical Learning Rates for Training Neural Networks (https://arxiv.org/abs/1506.01186), section 3.3,
    with the exponential range, the moving average and the early stop of fastai. The point of steepest descent alone is
    often at the edge of what is stable, hence the limit of a tenth of the minimum's.
    """
    check_whole("steps", steps, 10)
    _check(optimizer, loss_fn, start, end, smoothing, early_stop_threshold, autocast)
    modules = [module for module in (model, loss_fn) if isinstance(module, nn.Module)]
    parameters = unique_parameters(modules, optimizer)
    device = next(model.parameters(), parameters[0]).device
    ranks = _process_groups(model)
    lrs = [start * (end / start) ** (step / (steps - 1)) for step in range(steps)]
    ratios = _lr_ratios(optimizer)
    scaler = torch.amp.GradScaler(device.type, enabled=autocast == torch.float16)
    curve = _Curve(smoothing, early_stop_threshold)

    with (
        restored(modules, optimizer, loader),
        closing(_batches(loader, steps, device)) as batches,
        torch.enable_grad(),
    ):
        if not model.training:
            model.train()
        unread: list[Tensor] = []
        for step, (images, target) in enumerate(batches, 1):
            for group, ratio in zip(optimizer.param_groups, ratios, strict=True):
                _set_lr(group, lrs[step - 1] * ratio)
            optimizer.zero_grad()
            with torch.autocast(device.type, autocast, enabled=autocast is not None):
                loss = loss_fn(model(images), target)
            _check_loss(loss)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            unread.append(loss.detach())
            if len(unread) == _read_every(device) or step == steps:
                for value in _read(unread, ranks):
                    curve.add(value)
                if not curve.is_open:
                    break
                unread = []
    lrs = lrs[: len(curve.losses)]
    suggestion, reason = _suggest(lrs, curve.losses, curve.smoothed, smoothing)
    return LRFindResult(tuple(lrs), tuple(curve.losses), tuple(curve.smoothed), suggestion, reason)


class _Curve:
    """The losses, raw and smoothed, up to where they diverge."""

    def __init__(self, smoothing: float, threshold: float | None) -> None:
        self.losses: list[float] = []
        self.smoothed: list[float] = []
        self.is_open = True
        self._smoothing, self._threshold = smoothing, threshold
        self._average, self._best = 0.0, math.inf

    def add(self, loss: float) -> None:
        """Add the loss of the next step, unless one before it has diverged."""
        self.is_open = self.is_open and math.isfinite(loss)
        if not self.is_open:
            return
        self._average = self._smoothing * self._average + (1 - self._smoothing) * loss
        smoothed = self._average / (1 - self._smoothing ** (len(self.losses) + 1))
        self.losses.append(loss)
        self.smoothed.append(smoothed)
        self._best = min(self._best, smoothed)
        if self._threshold is not None:
            # That is threshold * best for losses above 0, and above the best for those below 0 too.
            self.is_open = smoothed <= self._best + (self._threshold - 1) * abs(self._best)


def _suggest(
    lrs: Sequence[float], losses: Sequence[float], smoothed: Sequence[float], smoothing: float
) -> tuple[float | None, str | None]:
    """Return a learning rate, or None and the reason."""
    skipped = len(losses) // 10  # where the average is one of few losses, it moves as they do
    if len(losses) - skipped < 5:
        return None, (
            f"the loss diverged, or was not finite, after {len(losses)} steps: lower start, or raise steps if it fell "
            "before that; if the very first losses are like that, no learning rate is at fault"
        )
    x, y = np.log(lrs[skipped:]), np.asarray(smoothed[skipped:])
    lowest = int(y.argmin())
    fall = y[: lowest + 1].max() - y[lowest]
    # About the standard deviation of the average's noise, from that of a loss: the median of the differences, which a
    # few steep steps do not move. An average of noise alone falls, somewhere, by more than seven of these once in a
    # hundred tests.
    noise = float(np.median(np.abs(np.diff(losses)))) * math.sqrt((1 - smoothing) / (1 + smoothing))
    if lowest < 2 or fall <= max(7 * noise, torch.finfo(torch.float32).eps * np.abs(y).max()):
        return None, (
            f"the smoothed loss does not fall, between learning rates of {lrs[0]:.2g} and {lrs[-1]:.2g}, by more than "
            "losses differ from batch to batch: see whether the model learns at all, raise end if the loss did not "
            "diverge, lower start if it did, or take larger batches"
        )
    steepest = int(np.gradient(y, x)[: lowest + 1].argmin())
    return min(lrs[skipped + steepest], lrs[skipped + lowest] / 10), None


def _batches(loader: Iterable[Any], steps: int, device: torch.device) -> Generator[tuple[Any, Any], None, None]:
    """Yield images and target of `steps` batches, on `device`, from the beginning of the loader as often as need be."""

    def move(_: Any, leaf: Any) -> Any:
        return leaf.to(device, non_blocking=True) if isinstance(leaf, Tensor) else leaf

    given = 0
    while given < steps:
        before = given
        for batch in loader:
            if not isinstance(batch, tuple | list) or len(batch) < 2:
                raise TypeError(
                    f"the loader gave a batch of type {type(batch).__name__}; expected a tuple or list of images and "
                    "target"
                )
            yield replace_leaves(batch[0], move), replace_leaves(batch[1], move)
            given += 1
            if given == steps:
                return
        if given == before:
            raise ValueError(
                f"the loader gave {given} batches, and then none when it was begun anew; expected {steps}, or what can "
                "be iterated again and again, such as a DataLoader or a list, and not an iterator"
                if given
                else "the loader gave no batches; expected at least one"
            )


def _check(
    optimizer: Any,
    loss_fn: Any,
    start: float,
    end: float,
    smoothing: float,
    threshold: float | None,
    autocast: torch.dtype | None,
) -> None:
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer is of type {type(optimizer).__name__}; expected a torch.optim.Optimizer")
    if not callable(loss_fn):
        raise TypeError(
            f"loss_fn is of type {type(loss_fn).__name__}; expected a function (output, target) -> loss, after the "
            "loader"
        )
    for i, group in enumerate(optimizer.param_groups):
        if "lr" not in group:
            raise ValueError(f"parameter group {i} of the optimizer has no lr; expected one in every group")
    if not 0 < start < end < math.inf:
        raise ValueError(f"start is {start!r} and end is {end!r}; expected learning rates with 0 < start < end")
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing is {smoothing!r}; expected 0 (none) or more, and below 1")
    if threshold is not None and not threshold > 1:
        raise ValueError(
            f"early_stop_threshold is {threshold!r}; expected a factor on the lowest loss, above 1, or None to not stop"
        )
    if autocast not in (None, torch.bfloat16, torch.float16):
        raise ValueError(f"autocast is {autocast!r}; expected torch.bfloat16, torch.float16 or None")


def _check_loss(loss: Any) -> None:
    if not isinstance(loss, Tensor):
        raise TypeError(f"loss_fn returned an object of type {type(loss).__name__}; expected a tensor with one value")
    if loss.dim() != 0:
        raise ValueError(
            f"loss_fn returned a tensor of shape {list(loss.shape)}; expected a scalar, such as its mean()"
        )


def _lr_ratios(optimizer: Optimizer) -> list[float]:
    """Return each parameter group's learning rate as a share of the largest."""
    lrs = [float(group["lr"]) for group in optimizer.param_groups]
    return [lr / max(lrs) if max(lrs) > 0 else 1.0 for lr in lrs]


def _set_lr(group: dict[str, Any], lr: float) -> None:
    if isinstance(group["lr"], Tensor):  # a compiled or captured step reads this very one
        group["lr"].fill_(lr)
    else:
        group["lr"] = lr


def _process_groups(model: nn.Module) -> list[Any]:
    """Return the process groups over which the ranks that train `model` together are spread."""
    if not dist.is_available() or not dist.is_initialized():
        return []
    from torch.distributed.tensor import DTensor

    for module in model.modules():
        if isinstance(module, nn.parallel.DistributedDataParallel):
            return [module.process_group]
    for parameter in model.parameters():
        if isinstance(parameter, DTensor):
            # Ranks of a mesh's tensor-parallel dimension have the same loss: its average is no other.
            return parameter.device_mesh.get_all_groups()
    return []


def _read_every(device: torch.device) -> int:
    """Return the steps between readings of the losses.

    To stop at once the host would have to wait for a GPU after every step, and the GPU for the host after that. A few
    steps too many do no harm: their losses are dropped, and what they did is undone.
    """
    return 1 if device.type == "cpu" else 8


def _read(losses: Sequence[Tensor], groups: Sequence[Any]) -> list[float]:
    """Return the values of losses, averaged over the ranks of process groups; waits for their device."""
    values = torch.stack([loss.float() for loss in losses])
    for group in groups:
        dist.all_reduce(values, group=group)
        values /= dist.get_world_size(group)
    return values.tolist()


def _draw(result: LRFindResult, axes: "Axes") -> None:
    axes.plot(result.lrs, result.losses, color="0.7", linewidth=1, label="loss of the batch")
    axes.plot(result.lrs, result.smoothed, color="tab:blue", linewidth=2, label="smoothed")
    if result.suggestion is not None:
        height = np.interp(math.log(result.suggestion), np.log(result.lrs), result.smoothed)
        axes.axvline(result.suggestion, color="tab:red", linewidth=1, linestyle="--")
        axes.plot(result.suggestion, height, "o", color="tab:red", label=f"suggestion: {result.suggestion:.2g}")
        # The losses up to the lowest, and a little room above them: those that diverge would press them flat.
        skipped = len(result.losses) // 10
        shown = skipped + int(np.argmin(result.smoothed[skipped:])) + 1
        losses = (*result.losses[:shown], *result.smoothed[:shown])
        low, high = min(losses), max(losses)
        axes.set_ylim(low - 0.1 * (high - low), high + 0.5 * (high - low))
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("training loss")
    axes.set_title("Learning-rate range test" + (": no suggestion" if result.suggestion is None else ""))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
