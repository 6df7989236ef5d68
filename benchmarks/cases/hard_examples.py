"""Losses that look at hard examples: top-k OHEM and the focal loss, of rows and of pixels, forward and backward."""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F

import fastfeed.functional
from benchmarks.case import Case, Options, largest_error
from benchmarks.results import COMPILED
from benchmarks.timing import Run

SHARE = 0.7  # of the rows, which OHEM keeps
GAMMA = 2.0  # of the focal loss
SHAPES = ((1024, 1000), (256, 21843), (8, 19, 512, 512))  # of logits
QUICK = ((1024, 1000), (2, 19, 256, 256))
LARGEST_ON_CPU = 1024 * 21843

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # of logits [N, C, ...] and targets [N, ...]


def torch_ohem(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """What people use today: sort the losses, and keep the first."""
    loss = F.cross_entropy(logits, target, reduction="none").flatten()
    return loss.topk(math.floor(SHARE * loss.numel())).values.mean()


def torch_focal(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Likewise: the probability from the loss."""
    loss = F.cross_entropy(logits, target, reduction="none")
    return ((1 - (-loss).exp()) ** GAMMA * loss).mean()


class OhemCase(Case):
    """`fastfeed.functional.ohem_cross_entropy` of the hardest 70 %, against topk of PyTorch's losses.

    A run is the mean loss and the gradient of the logits, through autograd.
    """

    name = "ohem"
    direction = "forward+backward"
    baseline = "eager"
    torch_loss: ClassVar[Loss] = staticmethod(torch_ohem)
    fastfeed_loss: ClassVar[Loss] = staticmethod(
        lambda logits, target: fastfeed.functional.ohem_cross_entropy(logits, target, k=SHARE)
    )

    @classmethod
    def parameters(cls, options: Options) -> list[dict[str, Any]]:
        """The classes of ImageNet-1k and ImageNet-21k, and of a street scene's pixels."""
        shapes = QUICK if options.quick else SHAPES
        if options.device.type == "cuda":
            dtypes = (torch.bfloat16, torch.float32)
        else:
            dtypes = (torch.float32,)
            shapes = tuple(s for s in shapes if math.prod(s) <= LARGEST_ON_CPU)
        return [{"shape": shape, "dtype": dtype} for shape in shapes for dtype in dtypes]

    def __init__(self, options: Options, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        generator = torch.Generator(options.device).manual_seed(0)
        logits = torch.randn(shape, device=options.device, generator=generator).mul_(3)
        self.logits = logits.to(dtype).requires_grad_()
        target = torch.randint(shape[1], (shape[0], *shape[2:]), device=options.device, generator=generator)
        self.target = target
        # The forward reads the logits and the targets, 8 bytes each; the backward reads those of the rows that count
        # again, and writes the gradient of the logits. What else a row needs is some bytes.
        read_again = self.share_read_again()
        self.bytes_per_run = int(logits.numel() * dtype.itemsize * (2 + read_again)) + target.numel() * 2 * 8

    def share_read_again(self) -> float:
        """Return the share of the logits that the backward has to read."""
        return SHARE

    def close(self) -> None:
        """Forget what was compiled: each shape counts towards the recompilations that torch.compile allows."""
        torch.compiler.reset()

    def check(self, provider: str) -> float:
        """Compare with PyTorch's in fp32; return the larger of the loss's error and the gradient's.

        In bf16 the baseline, which ranks rounded losses, may keep other rows: there only the losses are compared.
        """
        loss, grad = self.providers[provider](self)()
        logits = self.logits.detach().float().requires_grad_()
        expected_loss, expected_grad = self.run(self.torch_loss, logits)()
        exact = self.logits.dtype == torch.float32
        torch.testing.assert_close(loss.float(), expected_loss, rtol=1e-4 if exact else 3e-2, atol=0)
        if not exact and provider != "fastfeed":
            return largest_error(loss, expected_loss)
        rtol = 1e-4 if exact else 2e-2
        atol = rtol / self.target.numel() / self.logits.shape[1]  # gradients may cancel to 0
        torch.testing.assert_close(grad.float(), expected_grad, rtol=rtol, atol=atol)
        return max(largest_error(loss, expected_loss), largest_error(grad, expected_grad))

    def run(self, loss_function: Loss, logits: torch.Tensor | None = None) -> Run:
        """Return a run of a loss function, on the case's logits by default. It returns (loss, gradient)."""
        logits = self.logits if logits is None else logits
        target = self.target

        def run() -> tuple[torch.Tensor, torch.Tensor]:
            loss = loss_function(logits, target)
            (grad,) = torch.autograd.grad(loss, logits)
            return loss.detach(), grad

        return run

    providers: ClassVar = {
        "eager": lambda case: case.run(case.torch_loss),
        COMPILED: lambda case: case.run(torch.compile(case.torch_loss, fullgraph=True, dynamic=False)),
        "fastfeed": lambda case: case.run(case.fastfeed_loss),
    }


class FocalCase(OhemCase):
    """`fastfeed.functional.focal_cross_entropy`, against the formula over PyTorch's losses."""

    name = "focal"
    torch_loss: ClassVar[Loss] = staticmethod(torch_focal)
    fastfeed_loss: ClassVar[Loss] = staticmethod(
        lambda logits, target: fastfeed.functional.focal_cross_entropy(logits, target, gamma=GAMMA)
    )

    def share_read_again(self) -> float:
        """Return the share of the logits that the backward has to read: all."""
        return 1.0
