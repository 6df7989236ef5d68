"""What the cases of optimizers share: the parameters of networks, their gradients, and runs that are one step."""

from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType
from typing import Any, ClassVar

import torch

from benchmarks.case import Case, Options, largest_error
from benchmarks.networks import NETWORKS
from benchmarks.peers import Absent, need
from benchmarks.results import COMPILED
from benchmarks.timing import Run
from benchmarks.torchvision_ops import import_torchvision

APEX = (
    "built from source, APEX_CPP_EXT=1 APEX_CUDA_EXT=1 pip install --no-build-isolation "
    "git+https://github.com/NVIDIA/apex"
)
LR = WEIGHT_DECAY = 1e-2  # large, so that a check sees them

# On a GPU: those that the optimizers are made for, and a small network. Each provider takes 12 bytes per parameter and
# more, and all are there at once, hence the smaller ones on a CPU.
ON_GPU = ("squeezenet", "resnet18", "resnet50", "vit_b16", "vit_l16", "1000x1000")
ON_CPU = ("squeezenet", "resnet18", "resnet50", "1000x1000")

# torch.compile takes a minute and more for a step of several hundred tensors, twice: for the check, and to be timed.
MANY_TENSORS = 100

Optimizer = Callable[..., Any]  # (params, lr=, weight_decay=, ...) -> what has a step()


class OptimizerCase(Case):
    """One step over all the parameters of a network.

    Attributes:
        accesses: how often a step reads or writes a number of each parameter; all have the parameter's dtype.
        flops: operations per parameter, with the scalars folded.
        scales: of the gradients, in the steps after which parameters are compared. While gradients stay the same, the
            corrected averages of Adam are those gradients, whatever the betas.
        graphs: that torch.compile makes of a step, the first one included, which may be unlike the others.
        quick_on_cpu, quick_on_gpu: the networks for a quick run.
    """

    direction = "step"
    baseline = "torch"
    uncapturable = frozenset({"torch"})  # it counts its steps on the host
    packages: ClassVar[dict[str, str]] = {"apex": "apex", "timm": "timm", "timm foreach": "timm", "torchao": "torchao"}
    # Some roundings; the steps are 1e-2 and their weight decay 1e-4 of a parameter, so errors in either show.
    tolerance: ClassVar[dict[str, Any]] = {"rtol": 1e-6, "atol": 1e-6}
    accesses: ClassVar[int]
    flops: ClassVar[int]
    scales: ClassVar[Sequence[float]] = (1, 2, 0.5)
    graphs: ClassVar[int] = 1
    dtype: ClassVar[torch.dtype] = torch.float32
    quick_on_cpu: ClassVar[Sequence[str]] = ("squeezenet",)
    quick_on_gpu: ClassVar[Sequence[str]] = ("resnet50",)

    @classmethod
    def parameters(cls, options: Options) -> list[dict[str, Any]]:
        """Networks from 1.2 million parameters to 304 million, and many small tensors."""
        if options.device.type == "cuda":
            names = cls.quick_on_gpu if options.quick else ON_GPU
        else:
            names = cls.quick_on_cpu if options.quick else ON_CPU
        return [{"shape": name, "dtype": cls.dtype} for name in names]

    def __init__(self, options: Options, shape: str, dtype: torch.dtype) -> None:
        generator = torch.Generator(options.device).manual_seed(0)
        randn = partial(torch.randn, dtype=dtype, device=options.device, generator=generator)
        self.options = options
        self.params = [randn(shape) for shape in NETWORKS[shape]]
        self.grads = [randn(param.shape) for param in self.params]
        self.elements = sum(param.numel() for param in self.params)
        self.bytes_per_run = self.accesses * dtype.itemsize * self.elements
        self.flops_per_run = self.flops * self.elements

    def close(self) -> None:
        """Forget what was compiled: each step counts towards the recompilations that torch.compile allows."""
        torch.compiler.reset()

    def check(self, provider: str) -> float:
        """Compare what was stepped after a step with each of the `scales`."""
        actual, expected = self.trained(provider), self.trained(self.baseline)
        torch.testing.assert_close(actual, expected, **self.tolerance)
        return max(largest_error(a, e) for a, e in zip(actual, expected, strict=True))

    def trained(self, provider: str) -> list[torch.Tensor]:
        """Return what a provider has stepped after a step with each of the `scales`; gradients are then as before."""
        run = self.providers[provider](self)
        original = [grad.clone() for grad in self.grads]
        for step in range(len(self.scales)):
            torch._foreach_copy_(self.grads, self.gradients(original, step))
            returned = run()
        torch._foreach_copy_(self.grads, original)
        return self.stepped(returned)

    def gradients(self, original: Sequence[torch.Tensor], step: int) -> Sequence[torch.Tensor]:
        """Return the gradients for a step of a check."""
        return torch._foreach_mul(original, self.scales[step])

    def stepped(self, returned: Any) -> list[torch.Tensor]:
        """Return what a run has stepped, from what it returned."""
        return returned

    def leaves(self) -> list[torch.Tensor]:
        """Return new parameters that have the case's gradients."""
        params = [param.clone().requires_grad_() for param in self.params]
        for param, grad in zip(params, self.grads, strict=True):
            param.grad = grad
        return params

    def stepper(self, optimizer: Optimizer, **options: Any) -> Run:
        """Return a run of one step by a new optimizer, on parameters of its own. It returns them."""
        params = self.leaves()
        stepper = optimizer(params, lr=LR, weight_decay=WEIGHT_DECAY, **options)

        def run() -> list[torch.Tensor]:
            stepper.step()
            return params

        return run

    def compiled(self, optimizer: Optimizer, **options: Any) -> Run:
        """Return a run of one step that torch.compile has compiled."""
        if len(self.params) > MANY_TENSORS:
            self.leave_out_of_quick(f"compiling a step of {len(self.params)} tensors takes minutes", on_gpu=True)
        self.leave_out_of_quick("compiling a step takes about 20 s", on_gpu=False)
        graphs = []

        def inductor(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
            graphs.append(graph)
            return torch._dynamo.lookup_backend("inductor")(graph, inputs)

        step = torch.compile(self.stepper(optimizer, **options), backend=inductor, dynamic=False)

        def run() -> list[torch.Tensor]:
            params = step()
            # With fullgraph=True torch.compile would raise where it otherwise runs eagerly; but PyTorch's optimizers
            # break the graph on purpose, around the one that holds all of a step's arithmetic.
            if not 1 <= len(graphs) <= self.graphs:
                raise RuntimeError(f"torch.compile made {len(graphs)} graphs of the step; expected {self.graphs}")
            return params

        return run

    def apex(self, name: str, **options: Any) -> Run:
        """Return a run of one step by an optimizer of apex."""
        if self.options.device.type != "cuda":
            raise Absent("runs on NVIDIA GPUs only")
        need("amp_C", APEX)  # the kernels: without them apex is imported all the same
        return self.stepper(getattr(need("apex.optimizers", APEX), name), **options)

    def leave_out_of_quick(self, reason: str, on_gpu: bool) -> None:
        """Raise Absent in a quick run on a CPU, and `on_gpu` on a GPU too."""
        if self.options.quick and (on_gpu or self.options.device.type == "cpu"):
            raise Absent(f"left out of --quick{'' if on_gpu else ' on a CPU'}: {reason}")


def torch_providers(optimizer: Optimizer, **options: Any) -> dict[str, Callable[[Any], Run]]:
    """Return PyTorch's ways to do a step: its default (foreach on a GPU, a loop on a CPU), and those to choose from."""
    return {
        "torch": lambda case: case.stepper(optimizer, **options),
        "torch foreach": lambda case: case.stepper(optimizer, foreach=True, **options),
        "torch fused": lambda case: case.stepper(optimizer, fused=True, **options),
        COMPILED: lambda case: case.compiled(optimizer, **options),
    }


def timm_optim() -> ModuleType:
    """Import timm.optim, which needs none of torchvision's compiled part, although timm does.

    Raises:
        Absent: it is not installed.
    """
    try:
        return import_torchvision("timm.optim")
    except ModuleNotFoundError:
        raise Absent('not installed: pip install ".[peers]"') from None
