"""Distillation: the KL divergence of a student's softmax from a teacher's, at a temperature, forward and backward."""

from typing import ClassVar

import torch
import torch.nn.functional as F

import fastfeed.functional
from benchmarks.case import Options, largest_error
from benchmarks.losses import Loss, LossCase
from benchmarks.peers import need
from benchmarks.timing import Run

TEMPERATURE = 4.0


def torch_kl_divergence(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """What people write today."""
    q, p = (F.log_softmax(logits / TEMPERATURE, dim=1) for logits in (student, teacher))
    return F.kl_div(q, p, reduction="batchmean", log_target=True) * TEMPERATURE**2


def fastfeed_kl_divergence(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Ours."""
    return fastfeed.functional.kl_divergence(student, teacher, TEMPERATURE)


class KLDivergenceCase(LossCase):
    """`fastfeed.functional.kl_divergence` against PyTorch's ops, eager and compiled, and Liger-Kernel's.

    A run is the loss and the gradient of the student's logits, through autograd. Liger-Kernel's takes
    log-probabilities, which PyTorch computes for it, and has the host wait for the GPU in the backward.
    """

    name = "kl_divergence"
    torch_loss: ClassVar[Loss] = staticmethod(torch_kl_divergence)
    uncapturable = frozenset({"liger-kernel"})
    packages: ClassVar = {"liger-kernel": "liger-kernel"}

    def __init__(self, options: Options, shape: tuple[int, int], dtype: torch.dtype) -> None:
        super().__init__(options, shape, dtype)
        # The forward reads both logits, the backward reads them again and writes the gradient of the student's. What
        # else a row needs, its loss and its normalisers, is some bytes.
        self.bytes_per_run = 5 * self.logits.numel() * dtype.itemsize
        # Per class: 13 in the forward (for each of both: compare with the maximum, subtract it, divide by T, exp, add;
        # subtract one from the other, times the teacher's exp, add) and 10 in the backward (for each of both: subtract
        # the maximum, divide by T, exp, divide by the sum; subtract, times the gradient of the loss). An exp counts as
        # one.
        self.flops_per_run = 23 * self.logits.numel()

    def draw_target(self) -> torch.Tensor:
        """Return the teacher's logits, in the student's dtype."""
        return self.draw_logits(self.logits.dtype)

    def check(self, provider: str) -> float:
        """Compare with PyTorch's in fp32, so that in bf16 the baseline's rounding does not hide errors of others.

        Returns:
            The larger of the loss's error and the gradient's.
        """
        loss, grad = self.providers[provider](self)()
        expected_loss, expected_grad = self.run(
            torch_kl_divergence, self.logits.detach().float().requires_grad_(), self.target.float()
        )()
        rtol = 1e-4 if self.logits.dtype == torch.float32 else 1e-2
        # A gradient may cancel to 0. What it cancels from are two probabilities, which fp32 rounds.
        largest = expected_grad.abs().max().item()
        atol = 1e-6 * largest
        if self.logits.dtype != torch.float32 and provider in (self.baseline, "liger-kernel"):
            rtol *= 10  # PyTorch rounds the log-probabilities to bf16, of whose difference little is left
            atol = rtol * largest
        torch.testing.assert_close(loss.float(), expected_loss, rtol=rtol, atol=0)
        torch.testing.assert_close(grad.float(), expected_grad, rtol=rtol, atol=atol)
        return max(largest_error(loss, expected_loss), largest_error(grad, expected_grad))

    def _liger(self) -> Run:
        self.need_gpu()
        loss = need("liger_kernel.transformers").LigerKLDIVLoss(reduction="batchmean", log_target=True)

        def kl_divergence(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
            q, p = (F.log_softmax(logits / TEMPERATURE, dim=1) for logits in (student, teacher))
            return loss(q, p) * TEMPERATURE**2

        return self.run(kl_divergence)

    providers: ClassVar = {
        **LossCase.providers,
        "liger-kernel": _liger,
        "fastfeed": lambda case: case.run(fastfeed_kl_divergence),
    }
