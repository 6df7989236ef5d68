"""All that stands between the backward pass and the next forward, in one step and in separate ones."""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch.nn.utils import clip_grad_norm_, get_total_norm

import fastfeed.optim
from benchmarks.case import Options
from benchmarks.optimizers import LR, WEIGHT_DECAY, OptimizerCase
from benchmarks.timing import Run

EMA_DECAY = 0.99
EPS = 0.1  # large: with a small one the step is the same for gradients of any size, unscaled or not
# Of the loss. Separate steps change gradients in place, run after run: here unscaling doubles them and clipping halves
# them, so they neither vanish nor grow, and every run does the same work.
SCALE = 0.5
CLIPPED_TO = 0.75  # of the norm of the unscaled gradients: two steps of a check are clipped, and one is not

Tensors = list[torch.Tensor]


class FullStepCase(OptimizerCase):
    """Unscale, look for inf and NaN, clip by the global norm, AdamW, and average the weights.

    `fastfeed.optim.AdamW` with `max_grad_norm` and `ema_decay`, against unscale_, clip_grad_norm_, PyTorch's fused
    AdamW and a lerp of the averages; torch.amp.GradScaler is there in both.

    40 bytes per parameter: reads the gradient for its norm (4), does AdamW (28), and reads and writes the average (8).
    In separate steps 60: unscale_ reads and writes the gradient (8), the norm reads it (4) and clipping reads and
    writes it (8), AdamW (28), and the average is read and written, and the parameter read once more (12). GradScaler
    itself looks for inf and NaN before the optimizer's step, and writes gradients as it does: ours is 48 with it.
    "fastfeed without scaler" is told the scale, and that all is finite.

    19 operations: unscaling and clipping by one factor (1), the squares (2), AdamW (13), the average (3).
    """

    name = "adamw_full_step"
    accesses = 10
    flops = 19
    tolerance: ClassVar = {"rtol": 1e-6, "atol": 2e-6}  # the norm's rounding is in every step
    quick_on_gpu = ("resnet50", "vit_l16")
    no_peers = frozenset({"fastfeed without scaler"})
    packages: ClassVar = {"fastfeed without scaler": "fastfeed"}

    def __init__(self, options: Options, shape: str, dtype: torch.dtype) -> None:
        super().__init__(options, shape, dtype)
        self.max_norm = CLIPPED_TO / SCALE * get_total_norm(self.grads).item()
        self.found_inf = torch.zeros((), device=options.device)

    def leaves(self) -> Tensors:
        """Return new parameters, with gradients of their own."""
        params = super().leaves()
        for param in params:
            param.grad = param.grad.clone()
        return params

    def trained(self, provider: str) -> Tensors:
        """Return parameters and averages after some steps; then see that an inf in a gradient stops a step.

        Raises:
            AssertionError: it does not.
        """
        run = self.providers[provider](self)
        for scale in (*self.scales[1:], 1):  # the first step has the gradients as they are
            params, averages = run()
            torch._foreach_copy_([param.grad for param in params], torch._foreach_mul(self.grads, scale))
        stepped = [tensor.detach().clone() for tensor in (*params, *averages())]
        params[0].grad.flatten()[0] = math.inf
        self.found_inf.fill_(1)
        run()
        self.found_inf.zero_()
        if not all(map(torch.equal, params, stepped)):
            raise AssertionError("parameters were stepped although a gradient is infinite")
        return stepped

    def scaler(self) -> torch.amp.GradScaler:
        """Return a GradScaler whose scale does not grow."""
        device = self.options.device
        scaler = torch.amp.GradScaler(device.type, init_scale=SCALE, growth_interval=2**30)
        scaler.scale(torch.zeros((), device=device))  # as of a loss, in the forward pass: it makes the scale
        return scaler

    def _apart(self) -> Run:
        params, scaler = self.leaves(), self.scaler()
        averages = [param.detach().clone() for param in params]
        optimizer = torch.optim.AdamW(params, lr=LR, eps=EPS, weight_decay=WEIGHT_DECAY, fused=True)

        def run() -> tuple[Tensors, Callable[[], Tensors]]:
            scaler.unscale_(optimizer)
            clip_grad_norm_(params, self.max_norm, foreach=True)
            scaler.step(optimizer)
            scaler.update()
            with torch.no_grad():
                torch._foreach_lerp_(averages, params, 1 - EMA_DECAY)
            return params, lambda: averages

        return run

    def _fastfeed(self, with_scaler: bool) -> Run:
        params, scaler = self.leaves(), self.scaler()
        optimizer = fastfeed.optim.AdamW(
            params, lr=LR, eps=EPS, weight_decay=WEIGHT_DECAY, max_grad_norm=self.max_norm, ema_decay=EMA_DECAY
        )
        if not with_scaler:
            optimizer.grad_scale = torch.full((), SCALE, device=self.options.device)
            optimizer.found_inf = self.found_inf

        def run() -> tuple[Tensors, Callable[[], Tensors]]:
            if with_scaler:
                scaler.step(optimizer)
                scaler.update()
            else:
                optimizer.step()
            return params, lambda: [optimizer.state[param]["ema"] for param in params]

        return run

    providers: ClassVar[dict[str, Callable[[Any], Run]]] = {
        "torch": _apart,
        "fastfeed without scaler": lambda case: case._fastfeed(with_scaler=False),
        "fastfeed": lambda case: case._fastfeed(with_scaler=True),
    }
