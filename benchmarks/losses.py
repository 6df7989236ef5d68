"""What the cases of losses share: logits, a target, and runs that end in the gradient of the logits."""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch

from benchmarks.case import Case, Options
from benchmarks.peers import Absent
from benchmarks.results import COMPILED
from benchmarks.timing import Run

LARGEST_ON_CPU = 1024 * 21843  # logits: 89 MB of fp32, far beyond the caches

# Of logits: from some MB of bf16, which is all launches, to 1 GB, which is all bandwidth.
SHAPES = ((1024, 1000), (4096, 1000), (256, 21843), (1024, 21843), (4096, 32768), (16384, 32000))
QUICK = ((1024, 1000),)

Loss = Callable[[torch.Tensor, Any], torch.Tensor]  # of logits [N, C, ...] and a target


class LossCase(Case):
    """A loss of logits, in the dtypes that networks end in. A run is its value and the gradient of the logits.

    Attributes:
        shapes: of logits, [N, C, ...].
        quick: the ones for a quick run.
        torch_loss: what people use today.
    """

    direction = "forward+backward"
    baseline = "eager"
    shapes: ClassVar[tuple[tuple[int, ...], ...]] = SHAPES
    quick: ClassVar[tuple[tuple[int, ...], ...]] = QUICK
    torch_loss: ClassVar[Loss]

    @classmethod
    def parameters(cls, options: Options) -> list[dict[str, Any]]:
        """Return the table."""
        shapes = cls.quick if options.quick else cls.shapes
        if options.device.type == "cuda":
            dtypes = (torch.bfloat16, torch.float32)
        else:
            dtypes = (torch.float32,)
            shapes = tuple(shape for shape in shapes if math.prod(shape) <= LARGEST_ON_CPU)
        return [{"shape": shape, "dtype": dtype} for shape in shapes for dtype in dtypes]

    def __init__(self, options: Options, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.shape = shape
        self.generator = torch.Generator(options.device).manual_seed(0)
        self.logits = self.draw_logits(dtype).requires_grad_()
        self.target = self.draw_target()

    def draw_logits(self, dtype: torch.dtype) -> torch.Tensor:
        """Return logits of the case's shape."""
        device = self.generator.device
        return torch.randn(self.shape, device=device, generator=self.generator).mul_(3).to(dtype)

    def draw_target(self) -> Any:
        """Return the target: class indices, 8 bytes each."""
        rows = self.shape[0], *self.shape[2:]
        return torch.randint(self.shape[1], rows, device=self.generator.device, generator=self.generator)

    def close(self) -> None:
        """Forget what was compiled: each shape counts towards the recompilations that torch.compile allows."""
        torch.compiler.reset()

    def run(self, loss: Loss, logits: torch.Tensor | None = None, target: Any = None) -> Run:
        """Return a run of a loss, on the case's logits and target by default. It returns (loss, gradient)."""
        logits = self.logits if logits is None else logits
        target = self.target if target is None else target

        def run() -> tuple[torch.Tensor, torch.Tensor]:
            value = loss(logits, target)
            (grad,) = torch.autograd.grad(value, logits)
            return value.detach(), grad

        return run

    def need_gpu(self) -> None:
        """Raise Absent on the CPU."""
        if self.logits.device.type != "cuda":
            raise Absent("runs on NVIDIA GPUs only")

    def _compiled(self) -> Run:
        # With fullgraph=True torch.compile raises where it would otherwise run eagerly.
        return self.run(torch.compile(self.torch_loss, fullgraph=True, dynamic=False))

    providers: ClassVar[dict[str, Callable[[Any], Run]]] = {
        "eager": lambda case: case.run(case.torch_loss),
        COMPILED: _compiled,
    }
