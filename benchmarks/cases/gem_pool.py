"""GeM pooling of [N, C, H, W], forward and backward."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F

import fastfeed.functional
from benchmarks.case import Case, Options, largest_error
from benchmarks.pools import pool_gradient, pool_input, pool_parameters
from benchmarks.results import COMPILED
from benchmarks.timing import Run

EPS = 1e-6

Pool = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # of x [N, C, H, W] and p [1]


def textbook_gem_pool(x: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """What people use today."""
    return F.adaptive_avg_pool2d(x.clamp(min=EPS).pow(p), 1).pow(1.0 / p)


class GeMPoolCase(Case):
    """`fastfeed.functional.gem_pool2d` against the composite of PyTorch's ops, eager and compiled.

    A run is the result and the gradients of x and of one p for all channels, through autograd. p is in float32 as in
    mixed precision, so that the textbook's powers are too. On the CPU ours is a composite of PyTorch's ops as well, one
    that scales by the maximum.
    """

    name = "gem_pool"
    direction = "forward+backward"
    baseline = "eager"

    @classmethod
    def parameters(cls, options: Options) -> list[dict[str, Any]]:
        """The ends of networks, in both memory formats."""
        return pool_parameters(options)

    def __init__(self, options: Options, shape: str, dtype: torch.dtype) -> None:
        self.x = pool_input(options, shape, dtype)
        self.p = torch.tensor([3.0], device=options.device, requires_grad=True)
        self.grad = pool_gradient(options, (*self.x.shape[:2], 1, 1))
        # The forward reads x; the backward reads it and writes its gradient. A result, its gradient, and what the
        # backward needs besides, are some bytes for each channel of a sample.
        self.bytes_per_run = 3 * self.x.numel() * dtype.itemsize
        # Per element: 3 in the forward (compare with eps, a power, add) and 7 in the backward (compare, a power, times
        # the gradient, which is dx; and for p a product with x, a logarithm, their product, a sum).
        self.flops_per_run = 10 * self.x.numel()

    def close(self) -> None:
        """Forget what was compiled: each shape counts towards the recompilations that torch.compile allows."""
        torch.compiler.reset()

    def check(self, provider: str) -> float:
        """Compare with the textbook in float64.

        Returns:
            The largest error of the result, and of the gradients relative to their largest element.
        """
        actual = self.providers[provider](self)()
        expected = self.run(textbook_gem_pool, self.x.detach().double().requires_grad_(), self.p.double())()
        errors = []
        for computed, true, dtype in zip(actual, expected, (torch.float32, self.x.dtype, torch.float32), strict=True):
            rtol = 1e-4 if dtype == torch.float32 else 1e-2
            scale = true.abs().max().item()
            torch.testing.assert_close(computed.double(), true, rtol=rtol, atol=rtol * 0.1 * scale)
            errors.append(largest_error(computed, true) / scale)
        return max(errors)

    def run(self, pool: Pool, x: torch.Tensor | None = None, p: torch.Tensor | None = None) -> Run:
        """Return a run of a pool, on the case's tensors by default. It returns (y, dx, dp)."""
        x = self.x if x is None else x
        p = self.p if p is None else p.detach().requires_grad_()
        grad = self.grad

        def run() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            y = pool(x, p)
            grad_x, grad_p = torch.autograd.grad(y, (x, p), grad.to(y.dtype))
            return y.detach(), grad_x, grad_p

        return run

    def _compiled(self) -> Run:
        # With fullgraph=True torch.compile raises where it would otherwise run eagerly.
        return self.run(torch.compile(textbook_gem_pool, fullgraph=True, dynamic=False))

    providers: ClassVar = {
        "eager": lambda case: case.run(textbook_gem_pool),
        COMPILED: _compiled,
        "fastfeed": lambda case: case.run(lambda x, p: fastfeed.functional.gem_pool2d(x, p, EPS)),
    }
