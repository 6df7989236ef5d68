"""Label-smoothed cross-entropy of [N, C] logits and of pixels, [N, C, H, W], forward and backward."""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F

import fastfeed.functional
from benchmarks.case import Options, largest_error
from benchmarks.losses import Loss, LossCase
from benchmarks.peers import Absent, need
from benchmarks.timing import Run

SMOOTHING = 0.1

APEX = (
    "built from source, APEX_CPP_EXT=1 APEX_CUDA_EXT=1 APEX_XENTROPY=1 pip install --no-build-isolation "
    "git+https://github.com/NVIDIA/apex"
)


def torch_cross_entropy(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """What people use today."""
    return F.cross_entropy(logits, target, label_smoothing=SMOOTHING)


class CrossEntropyCase(LossCase):
    """`fastfeed.functional.cross_entropy` against PyTorch's, eager and compiled, Liger-Kernel's and apex's.

    A run is the mean loss and the gradient of the logits, through autograd. Liger-Kernel's has the host wait for the
    GPU several times (for the number of rows that count, the range of the targets, and whether the loss is scaled),
    so its time holds what the GPU idles then.
    """

    name = "cross_entropy"
    torch_loss: ClassVar[Loss] = staticmethod(torch_cross_entropy)
    # From 256 KB of bf16, which is all launches, to 2.1 GB, which is all bandwidth; and pixels.
    shapes = (
        (128, 1000),
        (1024, 1000),
        (4096, 1000),
        (256, 21843),
        (1024, 21843),
        (4096, 32768),
        (16384, 32000),
        (8192, 128256),
        (2, 19, 256, 256),
        (4, 19, 512, 512),
    )
    quick = ((128, 1000), (1024, 1000), (256, 21843), (2, 19, 256, 256))
    uncapturable = frozenset({"liger-kernel"})
    packages: ClassVar = {"liger-kernel": "liger-kernel", "apex": "apex"}

    def __init__(self, options: Options, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        super().__init__(options, shape, dtype)
        rows, classes = math.prod(shape) // shape[1], shape[1]
        # The forward reads the logits and the targets, 8 bytes each; the backward reads both again and writes the
        # gradient of the logits. What else a row needs, its loss and its normaliser, is some bytes. (A forward that
        # leaves the gradient behind, Liger-Kernel's, can do with one read of rows that fit into a multiprocessor, and
        # so pass for faster than the memory.)
        self.bytes_per_run = rows * (3 * classes * dtype.itemsize + 2 * 8)
        # Per logit x: 5 in the forward (compare with the maximum, subtract it, exp, add to the sum of exps and to the
        # sum of x for the smoothing) and 4 in the backward (x - lse, exp, minus smoothing / C, times the gradient of
        # the loss). An exp counts as one; what a row does once is left out.
        self.flops_per_run = 9 * rows * classes

    def check(self, provider: str) -> float:
        """Compare with PyTorch's in fp32, so that in bf16 the baseline's rounding does not hide errors of others.

        Returns:
            The larger of the loss's error and the gradient's.
        """
        loss, grad = self.providers[provider](self)()
        logits = self.logits.detach().float().requires_grad_()
        expected_loss, expected_grad = self.run(torch_cross_entropy, logits)()
        rtol = 1e-4 if self.logits.dtype == torch.float32 else 1e-2
        if provider == self.baseline:
            rtol *= 10  # PyTorch rounds the log-probabilities to bf16, which makes its gradient up to 5 % wrong
        torch.testing.assert_close(loss.float(), expected_loss, rtol=rtol, atol=0)
        # A gradient may cancel to 0. What it cancels from is the share of the smoothing in it.
        smallest = SMOOTHING / logits.numel()
        torch.testing.assert_close(grad.float(), expected_grad, rtol=rtol, atol=rtol * smallest)
        return max(largest_error(loss, expected_loss), largest_error(grad, expected_grad))

    def _liger(self) -> Run:
        self.need_gpu()
        self._need_rows()
        loss = need("liger_kernel.transformers").LigerCrossEntropyLoss(label_smoothing=SMOOTHING)
        # Its forward writes the gradient over the logits. To a network, which computes them anew in every step, that
        # costs nothing, so no copy is timed; but the other providers need the case's, so it gets its own. From the
        # second run on they hold a gradient: its kernel does the same for any values.
        return self.run(loss, self.logits.detach().clone().requires_grad_())

    def _apex(self) -> Run:
        self.need_gpu()
        self._need_rows()
        loss = need("apex.contrib.xentropy", APEX).SoftmaxCrossEntropyLoss
        padding = -100  # no target, so every row counts
        # Else it keeps the normalisers of the rows, which its backward needs, in bf16.
        half_to_float = self.logits.dtype != torch.float32
        return self.run(lambda logits, target: loss.apply(logits, target, SMOOTHING, padding, half_to_float).mean())

    def _fastfeed(self) -> Run:
        cross_entropy = fastfeed.functional.cross_entropy
        return self.run(lambda logits, target: cross_entropy(logits, target, label_smoothing=SMOOTHING))

    def _need_rows(self) -> None:
        if self.logits.dim() != 2:
            raise Absent("takes [N, C] only")

    providers: ClassVar = {
        **LossCase.providers,
        "liger-kernel": _liger,
        "apex": _apex,
        "fastfeed": _fastfeed,
    }
