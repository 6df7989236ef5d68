"""AdamW over all the parameters of a network, in fp32."""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch

import fastfeed.optim
from benchmarks.case import Case, Options, largest_error
from benchmarks.peers import Absent, need
from benchmarks.results import COMPILED
from benchmarks.timing import Run

Shape = tuple[int, ...]

APEX = (
    "built from source, APEX_CPP_EXT=1 APEX_CUDA_EXT=1 pip install --no-build-isolation "
    "git+https://github.com/NVIDIA/apex"
)


def squeezenet_shapes(classes: int = 1000) -> list[Shape]:
    """Return the shapes of the parameters of SqueezeNet 1.1 (Iandola et al., 2016), in order."""
    shapes: list[Shape] = []

    def conv(inputs: int, outputs: int, kernel: int) -> None:
        shapes.extend([(outputs, inputs, kernel, kernel), (outputs,)])

    conv(3, 64, 3)
    channels = 64
    for squeeze, expand in ((16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256)):
        conv(channels, squeeze, 1)
        conv(squeeze, expand, 1)
        conv(squeeze, expand, 3)
        channels = 2 * expand
    conv(channels, classes, 1)
    return shapes


def resnet_shapes(blocks: tuple[int, ...], bottleneck: bool, classes: int = 1000) -> list[Shape]:
    """Return the shapes of a ResNet's parameters (He et al., 2016), in order, for its `blocks` per stage."""
    shapes: list[Shape] = []

    def conv_bn(inputs: int, outputs: int, kernel: int) -> None:
        shapes.extend([(outputs, inputs, kernel, kernel), (outputs,), (outputs,)])

    conv_bn(3, 64, 7)
    channels = 64
    for stage, count in enumerate(blocks):
        width = 64 << stage
        outputs = 4 * width if bottleneck else width
        for _ in range(count):
            if bottleneck:
                conv_bn(channels, width, 1)
                conv_bn(width, width, 3)
                conv_bn(width, outputs, 1)
            else:
                conv_bn(channels, width, 3)
                conv_bn(width, outputs, 3)
            if channels != outputs:
                conv_bn(channels, outputs, 1)  # the shortcut
            channels = outputs
    return [*shapes, (classes, channels), (classes,)]


def vit_shapes(width: int, depth: int, patch: int = 16, size: int = 224, classes: int = 1000) -> list[Shape]:
    """Return the shapes of a vision transformer's parameters (Dosovitskiy et al., 2021), in order."""

    def linear(inputs: int, outputs: int) -> list[Shape]:
        return [(outputs, inputs), (outputs,)]

    norm: list[Shape] = [(width,), (width,)]
    attention = [*linear(width, 3 * width), *linear(width, width)]
    mlp = [*linear(width, 4 * width), *linear(4 * width, width)]
    tokens: list[Shape] = [(1, 1, width), (1, 1 + (size // patch) ** 2, width)]  # the class's, and all positions
    patches: list[Shape] = [(width, 3, patch, patch), (width,)]
    return [*tokens, *patches, *depth * (norm + attention + norm + mlp), *norm, *linear(width, classes)]


NETWORKS = {
    "squeezenet": squeezenet_shapes(),  # 1.2 million parameters in 52 tensors
    "resnet18": resnet_shapes((2, 2, 2, 2), bottleneck=False),  # 12 in 62
    "resnet50": resnet_shapes((3, 4, 6, 3), bottleneck=True),  # 26 in 161
    "vit_b16": vit_shapes(width=768, depth=12),  # 87 in 152
    "vit_l16": vit_shapes(width=1024, depth=24),  # 304 in 296
}
QUICK = ("squeezenet", "resnet18")
ON_CPU = ("squeezenet", "resnet18", "resnet50")  # each provider's 12 bytes per parameter must fit into its memory


class AdamWCase(Case):
    """`fastfeed.optim.AdamW` against PyTorch's, by default, foreach, fused and compiled, and apex's FusedAdam.

    PyTorch's default is foreach on a GPU, and a loop over the parameters on a CPU.
    """

    name = "adamw"
    direction = "step"
    baseline = "torch"
    uncapturable = frozenset({"torch"})  # by default it counts its steps on the host
    packages: ClassVar = {"apex": "apex"}

    @classmethod
    def parameters(cls, options: Options) -> list[dict[str, Any]]:
        """Networks from 1.2 million parameters to 304 million."""
        names = QUICK if options.quick else NETWORKS if options.device.type == "cuda" else ON_CPU
        return [{"shape": name, "dtype": torch.float32} for name in names]

    def __init__(self, options: Options, shape: str, dtype: torch.dtype) -> None:
        generator = torch.Generator(options.device).manual_seed(0)
        randn = partial(torch.randn, dtype=dtype, device=options.device, generator=generator)
        self.options = options
        self.params = [randn(shape) for shape in NETWORKS[shape]]
        self.grads = [randn(param.shape) for param in self.params]
        elements = sum(param.numel() for param in self.params)
        # Reads the parameter p, its gradient g and their two averages m and v, and writes all but the gradient.
        self.bytes_per_run = 7 * dtype.itemsize * elements
        # With the scalars folded: p times 1 - lr * decay (1), m + (1 - beta1) (g - m) (3), beta2 v + (1 - beta2) g g
        # (4), and p - a m / (sqrt(v) + b) (5: root, sum, product, quotient, difference).
        self.flops_per_run = 13 * elements

    def close(self) -> None:
        """Forget what was compiled: each step counts towards the recompilations that torch.compile allows."""
        torch.compiler.reset()

    def check(self, provider: str) -> float:
        """Compare the parameters after three steps: the bias corrections differ in each."""
        expected, actual = (self.providers[name](self) for name in (self.baseline, provider))
        # While gradients stay the same, so do their corrected averages, whatever the betas. In the end they are back.
        for scale in (1, 2, 0.5):
            torch._foreach_mul_(self.grads, scale)
            expected_params, actual_params = expected(), actual()
        # Some roundings; three steps are 3e-2 and their weight decay 3e-4 of a parameter, so errors in either show.
        torch.testing.assert_close(actual_params, expected_params, rtol=1e-6, atol=1e-6)
        return max(largest_error(a, e) for a, e in zip(actual_params, expected_params, strict=True))

    def stepper(self, optimizer: Callable[..., torch.optim.Optimizer], **options: Any) -> Run:
        """Return a run of one step by a new optimizer, on parameters of its own. It returns them."""
        params = [param.clone().requires_grad_() for param in self.params]
        for param, grad in zip(params, self.grads, strict=True):
            param.grad = grad
        stepper = optimizer(params, lr=1e-2, weight_decay=1e-2, **options)

        def run() -> list[torch.Tensor]:
            stepper.step()
            return params

        return run

    def _compiled(self) -> Run:
        if self.options.quick and self.options.device.type == "cpu":
            raise Absent("left out of --quick on a CPU: compiling a step takes about 20 s")
        graphs = []

        def inductor(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
            graphs.append(graph)
            return torch._dynamo.lookup_backend("inductor")(graph, inputs)

        step = torch.compile(self.stepper(torch.optim.AdamW), backend=inductor, dynamic=False)

        def run() -> list[torch.Tensor]:
            params = step()
            # With fullgraph=True torch.compile would raise where it otherwise runs eagerly; but PyTorch's optimizers
            # break the graph on purpose, around the one that holds all of a step's arithmetic.
            if len(graphs) != 1:
                raise RuntimeError(f"torch.compile made {len(graphs)} graphs of the step; expected 1")
            return params

        return run

    def _apex(self) -> Run:
        if self.options.device.type != "cuda":
            raise Absent("runs on NVIDIA GPUs only")
        need("amp_C", APEX)  # the kernels: without them apex is imported all the same
        return self.stepper(need("apex.optimizers", APEX).FusedAdam, adam_w_mode=True)

    providers: ClassVar = {
        "torch": lambda case: case.stepper(torch.optim.AdamW),
        "torch foreach": lambda case: case.stepper(torch.optim.AdamW, foreach=True),
        "torch fused": lambda case: case.stepper(torch.optim.AdamW, fused=True),
        COMPILED: _compiled,
        "apex": _apex,
        "fastfeed": lambda case: case.stepper(fastfeed.optim.AdamW),
    }
