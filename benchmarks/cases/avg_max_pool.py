"""Average and maximum pooling of [N, C, H, W], concatenated, forward and backward."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F

import fastfeed.functional
from benchmarks.case import Case, Options, largest_error
from benchmarks.peers import need
from benchmarks.pools import pool_gradient, pool_input, pool_parameters
from benchmarks.results import COMPILED
from benchmarks.timing import Run

Pool = Callable[[torch.Tensor], torch.Tensor]  # [N, C, H, W] to [N, 2 C, 1, 1]


def torch_avg_max_pool(x: torch.Tensor) -> torch.Tensor:
    """What people use today."""
    return torch.cat((F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, 1)), dim=1)


class AvgMaxPoolCase(Case):
    """`fastfeed.functional.avg_max_pool2d` against PyTorch's two pools, eager and compiled, and timm's "catavgmax".

    A run is the result and the gradient of x, through autograd. On the CPU ours is PyTorch's two pools.
    """

    name = "avg_max_pool"
    direction = "forward+backward"
    baseline = "eager"
    packages: ClassVar = {"timm": "timm"}

    @classmethod
    def parameters(cls, options: Options) -> list[dict[str, Any]]:
        """The ends of networks, in both memory formats."""
        return pool_parameters(options)

    def __init__(self, options: Options, shape: str, dtype: torch.dtype) -> None:
        self.x = pool_input(options, shape, dtype)
        samples, channels = self.x.shape[:2]
        self.grad = pool_gradient(options, (samples, 2 * channels, 1, 1)).to(dtype)
        # The forward reads x; the backward writes its gradient, and needs no x. The results, their gradients, and where
        # the maxima are, are some bytes for each channel of a sample.
        self.bytes_per_run = 2 * self.x.numel() * dtype.itemsize
        # Per element 2 in the forward: add, and compare with the maximum. The backward spreads what it has computed for
        # a whole channel.
        self.flops_per_run = 2 * self.x.numel()

    def close(self) -> None:
        """Forget what was compiled: each shape counts towards the recompilations that torch.compile allows."""
        torch.compiler.reset()

    def check(self, provider: str) -> float:
        """Compare with PyTorch's in float64.

        Returns:
            The larger of the result's error and the gradient's.
        """
        actual = self.providers[provider](self)()
        expected = self.run(torch_avg_max_pool, self.x.detach().double().requires_grad_())()
        errors = []
        for computed, true in zip(actual, expected, strict=True):
            rtol = 1e-5 if computed.dtype == torch.float32 else 1e-2
            torch.testing.assert_close(computed.double(), true, rtol=rtol, atol=rtol * 0.1)
            errors.append(largest_error(computed, true))
        return max(errors)

    def run(self, pool: Pool, x: torch.Tensor | None = None) -> Run:
        """Return a run of a pool, on the case's input by default. It returns (y, dx)."""
        x = self.x if x is None else x
        grad = self.grad.to(x.dtype)

        def run() -> tuple[torch.Tensor, torch.Tensor]:
            y = pool(x)
            (grad_x,) = torch.autograd.grad(y, x, grad)
            return y.detach(), grad_x

        return run

    def _compiled(self) -> Run:
        # With fullgraph=True torch.compile raises where it would otherwise run eagerly.
        return self.run(torch.compile(torch_avg_max_pool, fullgraph=True, dynamic=False))

    def _timm(self) -> Run:
        return self.run(need("timm.layers").SelectAdaptivePool2d(pool_type="catavgmax"))

    providers: ClassVar = {
        "eager": lambda case: case.run(torch_avg_max_pool),
        COMPILED: _compiled,
        "timm": _timm,
        "fastfeed": lambda case: case.run(fastfeed.functional.avg_max_pool2d),
    }
