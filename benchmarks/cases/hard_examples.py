"""Losses that look at hard examples: top-k OHEM and the focal loss, of rows and of pixels, forward and backward."""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F

import fastfeed.functional
from benchmarks.case import Options, largest_error
from benchmarks.losses import Loss, LossCase

SHARE = 0.7  # of the rows, which OHEM keeps
GAMMA = 2.0  # of the focal loss


def torch_ohem(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """What people use today: sort the losses, and keep the first."""
    loss = F.cross_entropy(logits, target, reduction="none").flatten()
    return loss.topk(math.floor(SHARE * loss.numel())).values.mean()


def torch_focal(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Likewise: the probability from the loss."""
    loss = F.cross_entropy(logits, target, reduction="none")
    return ((1 - (-loss).exp()) ** GAMMA * loss).mean()


class OhemCase(LossCase):
    """`fastfeed.functional.ohem_cross_entropy` of the hardest 70 %, against topk of PyTorch's losses.

    A run is the mean loss and the gradient of the logits, through autograd.
    """

    name = "ohem"
    shapes = ((1024, 1000), (256, 21843), (16384, 32000), (2, 19, 256, 256), (4, 19, 512, 512))
    quick = ((2, 19, 256, 256),)
    torch_loss: ClassVar[Loss] = staticmethod(torch_ohem)
    fastfeed_loss: ClassVar[Loss] = staticmethod(
        lambda logits, target: fastfeed.functional.ohem_cross_entropy(logits, target, k=SHARE)
    )

    def __init__(self, options: Options, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        super().__init__(options, shape, dtype)
        # The forward reads the logits and the targets, 8 bytes each; the backward reads those of the rows that count
        # again, and writes the gradient of the logits. What else a row needs is some bytes.
        read = 2 + self.share_read_again()
        self.bytes_per_run = int(self.logits.numel() * dtype.itemsize * read) + self.target.numel() * 2 * 8

    def share_read_again(self) -> float:
        """Return the share of the logits that the backward has to read."""
        return SHARE

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

    providers: ClassVar = {
        **LossCase.providers,
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
