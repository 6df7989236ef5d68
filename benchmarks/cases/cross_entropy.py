"""Label-smoothed cross-entropy of [N, C] logits and of pixels, [N, C, H, W], forward and backward."""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F

import fastfeed.functional
from benchmarks.case import Case, Options, largest_error
from benchmarks.peers import Absent, need
from benchmarks.results import COMPILED
from benchmarks.timing import Run

SMOOTHING = 0.1

# Of logits: from 256 KB of bf16, which is all launches, to 2.1 GB, which is all bandwidth; and pixels.
SHAPES = (
    (128, 1000),
    (1024, 1000),
    (4096, 1000),
    (256, 21843),
    (1024, 21843),
    (4096, 32768),
    (16384, 32000),
    (8192, 128256),
    (8, 19, 512, 512),
)
QUICK = ((128, 1000), (1024, 1000), (256, 21843), (2, 19, 256, 256))
LARGEST_ON_CPU = 1024 * 21843  # 89 MB of fp32, far beyond the caches

APEX = (
    "built from source, APEX_CPP_EXT=1 APEX_CUDA_EXT=1 APEX_XENTROPY=1 pip install --no-build-isolation "
    "git+https://github.com/NVIDIA/apex"
)

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # of logits [N, C, ...] and targets [N, ...]


def torch_cross_entropy(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """What people use today."""
    return F.cross_entropy(logits, target, label_smoothing=SMOOTHING)


class CrossEntropyCase(Case):
    """`fastfeed.functional.cross_entropy` against PyTorch's, eager and compiled, Liger-Kernel's and apex's.

    A run is the mean loss and the gradient of the logits, through autograd. Liger-Kernel's has the host wait for the
    GPU several times (for the number of rows that count, the range of the targets, and whether the loss is scaled),
    so its time holds what the GPU idles then.
    """

    name = "cross_entropy"
    direction = "forward+backward"
    baseline = "eager"
    uncapturable = frozenset({"liger-kernel"})
    packages: ClassVar = {"liger-kernel": "liger-kernel", "apex": "apex"}

    @classmethod
    def parameters(cls, options: Options) -> list[dict[str, Any]]:
        """The classes of ImageNet-1k and ImageNet-21k and a language model's, in the dtypes that networks end in.

        fp16 is not among them: outside of autocast, which computes the loss in fp32, PyTorch's smoothed loss adds up
        the log-probabilities of a row, and with ImageNet-21k's classes that is more than fp16 holds.
        """
        shapes = QUICK if options.quick else SHAPES
        if options.device.type == "cuda":
            dtypes = (torch.bfloat16, torch.float32)
        else:
            dtypes = (torch.float32,)
            shapes = tuple(s for s in shapes if math.prod(s) <= LARGEST_ON_CPU)
        return [{"shape": shape, "dtype": dtype} for shape in shapes for dtype in dtypes]

    def __init__(self, options: Options, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        rows, classes = math.prod(shape) // shape[1], shape[1]
        generator = torch.Generator(options.device).manual_seed(0)
        logits = torch.randn(shape, device=options.device, generator=generator).mul_(3)
        self.logits = logits.to(dtype).requires_grad_()
        self.target = torch.randint(classes, (shape[0], *shape[2:]), device=options.device, generator=generator)
        # The forward reads the logits and the targets, 8 bytes each; the backward reads both again and writes the
        # gradient of the logits. What else a row needs, its loss and its normaliser, is some bytes. (A forward that
        # leaves the gradient behind, Liger-Kernel's, can do with one read of rows that fit into a multiprocessor, and
        # so pass for faster than the memory.)
        self.bytes_per_run = rows * (3 * classes * dtype.itemsize + 2 * 8)
        # Per logit x: 5 in the forward (compare with the maximum, subtract it, exp, add to the sum of exps and to the
        # sum of x for the smoothing) and 4 in the backward (x - lse, exp, minus smoothing / C, times the gradient of
        # the loss). An exp counts as one; what a row does once is left out.
        self.flops_per_run = 9 * rows * classes

    def close(self) -> None:
        """Forget what was compiled: each shape counts towards the recompilations that torch.compile allows."""
        torch.compiler.reset()

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
        return self.run(torch.compile(torch_cross_entropy, fullgraph=True, dynamic=False))

    def _liger(self) -> Run:
        self._need_gpu()
        self._need_rows()
        loss = need("liger_kernel.transformers").LigerCrossEntropyLoss(label_smoothing=SMOOTHING)
        # Its forward writes the gradient over the logits. To a network, which computes them anew in every step, that
        # costs nothing, so no copy is timed; but the other providers need the case's, so it gets its own. From the
        # second run on they hold a gradient: its kernel does the same for any values.
        return self.run(loss, self.logits.detach().clone().requires_grad_())

    def _apex(self) -> Run:
        self._need_gpu()
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

    def _need_gpu(self) -> None:
        if self.logits.device.type != "cuda":
            raise Absent("runs on NVIDIA GPUs only")

    providers: ClassVar = {
        "eager": lambda case: case.run(torch_cross_entropy),
        COMPILED: _compiled,
        "liger-kernel": _liger,
        "apex": _apex,
        "fastfeed": _fastfeed,
    }
