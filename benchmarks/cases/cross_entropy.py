"""Label-smoothed cross-entropy of [N, C] logits, forward and backward."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F

import fastfeed.functional
from benchmarks.case import Case, Options
from benchmarks.timing import Run

SMOOTHING = 0.1


class CrossEntropyCase(Case):
    """`fastfeed.functional.cross_entropy` against PyTorch's."""

    name = "cross_entropy"
    direction = "forward+backward"
    baseline = "torch"

    @classmethod
    def parameters(cls, options: Options) -> list[dict[str, Any]]:
        """The classes of ImageNet-1k and of ImageNet-21k."""
        dtypes = (torch.bfloat16, torch.float32) if options.device.type == "cuda" else (torch.float32,)
        return [{"shape": shape, "dtype": dtype} for shape in ((1024, 1000), (256, 21843)) for dtype in dtypes]

    def __init__(self, options: Options, shape: tuple[int, int], dtype: torch.dtype) -> None:
        rows, classes = shape
        generator = torch.Generator(options.device).manual_seed(0)
        logits = torch.randn(shape, device=options.device, generator=generator).mul_(3)
        self.logits = logits.to(dtype).requires_grad_()
        self.target = torch.randint(classes, (rows,), device=options.device, generator=generator)
        # The forward reads the logits; the backward reads them again and writes their gradient.
        self.bytes_per_run = 3 * rows * classes * dtype.itemsize

    def check(self, provider: str) -> None:
        """Compare with the baseline in fp32, so that in bf16 its rounding does not hide errors of others."""
        loss, grad = self.providers[provider](self)()
        logits = self.logits.detach().float().requires_grad_()
        expected_loss, expected_grad = _step(F.cross_entropy, logits, self.target)()
        rtol = 1e-4 if self.logits.dtype == torch.float32 else 1e-2
        if provider == self.baseline:
            rtol *= 10  # PyTorch rounds the log-probabilities to bf16, which makes its gradient up to 5 % wrong
        torch.testing.assert_close(loss.float(), expected_loss, rtol=rtol, atol=0)
        # A gradient may cancel to 0. What it cancels from is the share of the smoothing in it.
        smallest = SMOOTHING / logits.numel()
        torch.testing.assert_close(grad.float(), expected_grad, rtol=rtol, atol=rtol * smallest)

    providers: ClassVar = {
        "torch": lambda case: _step(F.cross_entropy, case.logits, case.target),
        "fastfeed": lambda case: _step(fastfeed.functional.cross_entropy, case.logits, case.target),
    }


def _step(cross_entropy: Callable[..., torch.Tensor], logits: torch.Tensor, target: torch.Tensor) -> Run:
    def run() -> tuple[torch.Tensor, torch.Tensor]:
        loss = cross_entropy(logits, target, label_smoothing=SMOOTHING)
        (grad,) = torch.autograd.grad(loss, logits)
        return loss.detach(), grad

    return run
