"""Label-smoothed cross-entropy with probabilities as targets, and with those of mixup, forward and backward."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F

import fastfeed.functional
from benchmarks.case import Options, largest_error
from benchmarks.losses import Loss, LossCase
from fastfeed import MixedTarget

SMOOTHING = 0.1


def torch_cross_entropy(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """What people use today, given probabilities [N, C]."""
    return F.cross_entropy(logits, target, label_smoothing=SMOOTHING)


def torch_mixup_cross_entropy(logits: torch.Tensor, target: MixedTarget) -> torch.Tensor:
    """What people use today for mixup and cutmix: a row of probabilities for each sample."""
    return torch_cross_entropy(logits, target.dense(logits.shape[1]))


def fastfeed_cross_entropy(logits: torch.Tensor, target: torch.Tensor | MixedTarget) -> torch.Tensor:
    """Ours, for either target."""
    return fastfeed.functional.cross_entropy(logits, target, label_smoothing=SMOOTHING)


class DenseCrossEntropyCase(LossCase):
    """`fastfeed.functional.cross_entropy` of given probabilities, in fp32, against PyTorch's, eager and compiled.

    A run is the mean loss and the gradient of the logits, through autograd.
    """

    name = "cross_entropy_dense"
    torch_loss: ClassVar[Loss] = staticmethod(torch_cross_entropy)

    def __init__(self, options: Options, shape: tuple[int, int], dtype: torch.dtype) -> None:
        super().__init__(options, shape, dtype)
        rows, classes = shape
        # The forward reads the logits and the targets; the backward reads both again and writes the gradient of the
        # logits. What else a row needs, its loss and its normaliser, is some bytes.
        self.bytes_per_run = 3 * rows * classes * dtype.itemsize + 2 * self.bytes_of_target()
        # Per logit x, with the smoothed target q: 9 in the forward (two for q, add it to its sum; compare x with the
        # maximum, subtract it, exp, add; times q, add) and 7 in the backward (two for q, x - maximum - log-sum, exp,
        # times sum of q, minus q, times the gradient of the loss). An exp counts as one.
        self.flops_per_run = 16 * rows * classes

    def draw_target(self) -> Any:
        """Return the targets: probabilities [N, C], fp32."""
        return torch.rand(self.shape, device=self.logits.device, generator=self.generator).mul_(8).softmax(1)

    def bytes_of_target(self) -> int:
        """Return the bytes of the targets."""
        return self.target.numel() * self.target.itemsize

    def check(self, provider: str) -> float:
        """Compare with PyTorch's in fp32, so that in bf16 the baseline's rounding does not hide errors of others.

        Returns:
            The larger of the loss's error and the gradient's.
        """
        loss, grad = self.providers[provider](self)()
        expected_loss, expected_grad = self.run(self.torch_loss, self.logits.detach().float().requires_grad_())()
        rtol = 1e-4 if self.logits.dtype == torch.float32 else 1e-2
        # A gradient may cancel to 0. What it cancels from is a probability, which fp32 rounds; the share of the
        # smoothing in it, which is far less, must be seen nevertheless.
        largest = expected_grad.abs().max().item()
        atol = rtol * SMOOTHING / self.logits.numel() + 1e-6 * largest
        if self.logits.dtype != torch.float32 and provider == self.baseline:
            rtol *= 10  # PyTorch rounds the log-probabilities to bf16
            atol = rtol * largest
        torch.testing.assert_close(loss.float(), expected_loss, rtol=rtol, atol=0)
        torch.testing.assert_close(grad.float(), expected_grad, rtol=rtol, atol=atol)
        return max(largest_error(loss, expected_loss), largest_error(grad, expected_grad))

    providers: ClassVar = {
        **LossCase.providers,
        "fastfeed": lambda case: case.run(fastfeed_cross_entropy),
    }


class MixupCrossEntropyCase(DenseCrossEntropyCase):
    """The same with a target of mixup or cutmix: two labels and a weight for each sample.

    PyTorch's loss takes their probabilities [N, C], which a run builds. Ours takes the labels themselves; how long it
    takes for their probabilities is a row of its own.
    """

    name = "cross_entropy_mixup"
    torch_loss: ClassVar[Loss] = staticmethod(torch_mixup_cross_entropy)
    no_peers: ClassVar = frozenset({"fastfeed dense"})

    def draw_target(self) -> MixedTarget:
        """Return the targets: two labels of 8 bytes for each sample, and the weight of the first, of 4."""
        rows, classes = self.shape
        device, generator = self.logits.device, self.generator
        a, b = torch.randint(classes, (2, rows), device=device, generator=generator)
        return MixedTarget(a, b, torch.rand(rows, device=device, generator=generator))

    def bytes_of_target(self) -> int:
        """Return the bytes of the targets."""
        return sum(part.numel() * part.itemsize for part in self.target)

    providers: ClassVar = DenseCrossEntropyCase.providers | {
        "fastfeed dense": lambda case: case.run(
            lambda logits, target: fastfeed_cross_entropy(logits, target.dense(logits.shape[1]))
        ),
    }
