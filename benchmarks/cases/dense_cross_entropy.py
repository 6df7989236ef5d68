"""Label-smoothed cross-entropy with probabilities as targets, and with those of mixup, forward and backward."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F

import fastfeed.functional
from benchmarks.case import Case, Options, largest_error
from benchmarks.results import COMPILED
from benchmarks.timing import Run
from fastfeed import MixedTarget

SMOOTHING = 0.1

# From some MB of bf16 logits, which is all launches, to 268 MB, which is all bandwidth.
SHAPES = ((1024, 1000), (4096, 1000), (256, 21843), (1024, 21843), (4096, 32768))
QUICK = ((1024, 1000), (256, 21843))
LARGEST_ON_CPU = 1024 * 21843  # 89 MB of fp32, far beyond the caches

Loss = Callable[[torch.Tensor, Any], torch.Tensor]  # of logits [N, C] and targets


def torch_cross_entropy(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """What people use today, given probabilities [N, C]."""
    return F.cross_entropy(logits, target, label_smoothing=SMOOTHING)


def torch_mixup_cross_entropy(logits: torch.Tensor, target: MixedTarget) -> torch.Tensor:
    """What people use today for mixup and cutmix: a row of probabilities for each sample."""
    return torch_cross_entropy(logits, target.dense(logits.shape[1]))


def fastfeed_cross_entropy(logits: torch.Tensor, target: torch.Tensor | MixedTarget) -> torch.Tensor:
    """Ours, for either target."""
    return fastfeed.functional.cross_entropy(logits, target, label_smoothing=SMOOTHING)


class DenseCrossEntropyCase(Case):
    """`fastfeed.functional.cross_entropy` of given probabilities, in fp32, against PyTorch's, eager and compiled.

    A run is the mean loss and the gradient of the logits, through autograd.
    """

    name = "cross_entropy_dense"
    direction = "forward+backward"
    baseline = "eager"
    torch_loss: ClassVar[Loss] = staticmethod(torch_cross_entropy)

    @classmethod
    def parameters(cls, options: Options) -> list[dict[str, Any]]:
        """The classes of ImageNet-1k and ImageNet-21k and a language model's, in the dtypes that networks end in."""
        shapes = QUICK if options.quick else SHAPES
        if options.device.type == "cuda":
            dtypes = (torch.bfloat16, torch.float32)
        else:
            dtypes = (torch.float32,)
            shapes = tuple(s for s in shapes if s[0] * s[1] <= LARGEST_ON_CPU)
        return [{"shape": shape, "dtype": dtype} for shape in shapes for dtype in dtypes]

    def __init__(self, options: Options, shape: tuple[int, int], dtype: torch.dtype) -> None:
        self.shape = rows, classes = shape
        self.generator = torch.Generator(options.device).manual_seed(0)
        logits = torch.randn(shape, device=options.device, generator=self.generator).mul_(3)
        self.logits = logits.to(dtype).requires_grad_()
        self.target = self.draw_target()
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

    def close(self) -> None:
        """Forget what was compiled: each shape counts towards the recompilations that torch.compile allows."""
        torch.compiler.reset()

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

    def run(self, cross_entropy: Loss, logits: torch.Tensor | None = None) -> Run:
        """Return a run of a loss function, on the case's logits by default. It returns (loss, gradient)."""
        logits = self.logits if logits is None else logits
        target = self.target

        def run() -> tuple[torch.Tensor, torch.Tensor]:
            loss = cross_entropy(logits, target)
            (grad,) = torch.autograd.grad(loss, logits)
            return loss.detach(), grad

        return run

    def _compiled(self) -> Run:
        # With fullgraph=True torch.compile raises where it would otherwise run eagerly.
        return self.run(torch.compile(self.torch_loss, fullgraph=True, dynamic=False))

    providers: ClassVar = {
        "eager": lambda case: case.run(case.torch_loss),
        COMPILED: _compiled,
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
