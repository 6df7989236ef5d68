"""Distillation: the KL divergence of a student's softmax from a teacher's, at a temperature, forward and backward."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F

import fastfeed.functional
from benchmarks.case import Case, Options, largest_error
from benchmarks.peers import Absent, need
from benchmarks.results import COMPILED
from benchmarks.timing import Run

TEMPERATURE = 4.0

# From some MB of bf16 logits, which is all launches, to 268 MB each, which is all bandwidth.
SHAPES = ((1024, 1000), (4096, 1000), (256, 21843), (1024, 21843), (4096, 32768))
QUICK = ((1024, 1000), (256, 21843))
LARGEST_ON_CPU = 1024 * 21843  # 89 MB of fp32, far beyond the caches

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # of the logits of student and teacher, [N, C]


def torch_kl_divergence(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """What people write today."""
    q, p = (F.log_softmax(logits / TEMPERATURE, dim=1) for logits in (student, teacher))
    return F.kl_div(q, p, reduction="batchmean", log_target=True) * TEMPERATURE**2


def fastfeed_kl_divergence(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Ours."""
    return fastfeed.functional.kl_divergence(student, teacher, TEMPERATURE)


class KLDivergenceCase(Case):
    """`fastfeed.functional.kl_divergence` against PyTorch's ops, eager and compiled, and Liger-Kernel's.

    A run is the loss and the gradient of the student's logits, through autograd. Liger-Kernel's takes
    log-probabilities, which PyTorch computes for it, and has the host wait for the GPU in the backward.
    """

    name = "kl_divergence"
    direction = "forward+backward"
    baseline = "eager"
    uncapturable = frozenset({"liger-kernel"})
    packages: ClassVar = {"liger-kernel": "liger-kernel"}

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
        generator = torch.Generator(options.device).manual_seed(0)
        student, teacher = torch.randn((2, *shape), device=options.device, generator=generator).mul_(3).to(dtype)
        self.student = student.requires_grad_()
        self.teacher = teacher
        # The forward reads both logits, the backward reads them again and writes the gradient of the student's. What
        # else a row needs, its loss and its normalisers, is some bytes.
        self.bytes_per_run = 5 * student.numel() * dtype.itemsize
        # Per class: 13 in the forward (for each of both: compare with the maximum, subtract it, divide by T, exp, add;
        # subtract one from the other, times the teacher's exp, add) and 10 in the backward (for each of both: subtract
        # the maximum, divide by T, exp, divide by the sum; subtract, times the gradient of the loss). An exp counts as
        # one.
        self.flops_per_run = 23 * student.numel()

    def close(self) -> None:
        """Forget what was compiled: each shape counts towards the recompilations that torch.compile allows."""
        torch.compiler.reset()

    def check(self, provider: str) -> float:
        """Compare with PyTorch's in fp32, so that in bf16 the baseline's rounding does not hide errors of others.

        Returns:
            The larger of the loss's error and the gradient's.
        """
        loss, grad = self.providers[provider](self)()
        expected_loss, expected_grad = self.run(
            torch_kl_divergence, self.student.detach().float().requires_grad_(), self.teacher.float()
        )()
        rtol = 1e-4 if self.student.dtype == torch.float32 else 1e-2
        # A gradient may cancel to 0. What it cancels from are two probabilities, which fp32 rounds.
        largest = expected_grad.abs().max().item()
        atol = 1e-6 * largest
        if self.student.dtype != torch.float32 and provider in (self.baseline, "liger-kernel"):
            rtol *= 10  # PyTorch rounds the log-probabilities to bf16, of whose difference little is left
            atol = rtol * largest
        torch.testing.assert_close(loss.float(), expected_loss, rtol=rtol, atol=0)
        torch.testing.assert_close(grad.float(), expected_grad, rtol=rtol, atol=atol)
        return max(largest_error(loss, expected_loss), largest_error(grad, expected_grad))

    def run(self, loss: Loss, student: torch.Tensor | None = None, teacher: torch.Tensor | None = None) -> Run:
        """Return a run of a loss function, on the case's logits by default. It returns (loss, gradient)."""
        student = self.student if student is None else student
        teacher = self.teacher if teacher is None else teacher

        def run() -> tuple[torch.Tensor, torch.Tensor]:
            value = loss(student, teacher)
            (grad,) = torch.autograd.grad(value, student)
            return value.detach(), grad

        return run

    def _compiled(self) -> Run:
        # With fullgraph=True torch.compile raises where it would otherwise run eagerly.
        return self.run(torch.compile(torch_kl_divergence, fullgraph=True, dynamic=False))

    def _liger(self) -> Run:
        if self.student.device.type != "cuda":
            raise Absent("runs on NVIDIA GPUs only")
        loss = need("liger_kernel.transformers").LigerKLDIVLoss(reduction="batchmean", log_target=True)

        def kl_divergence(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
            q, p = (F.log_softmax(logits / TEMPERATURE, dim=1) for logits in (student, teacher))
            return loss(q, p) * TEMPERATURE**2

        return self.run(kl_divergence)

    providers: ClassVar = {
        "eager": lambda case: case.run(torch_kl_divergence),
        COMPILED: _compiled,
        "liger-kernel": _liger,
        "fastfeed": lambda case: case.run(fastfeed_kl_divergence),
    }
