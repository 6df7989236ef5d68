"""AdamW over all the parameters of a ResNet, in fp32."""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch

import fastfeed.optim
from benchmarks.case import Case, Options
from benchmarks.timing import Run

Shape = tuple[int, ...]

# Bottleneck blocks per stage. ResNet-50 has 161 tensors and 25.6 million parameters, ResNet-14 53 and 10.
BLOCKS = {"resnet14": (1, 1, 1, 1), "resnet50": (3, 4, 6, 3)}


def resnet_shapes(blocks: tuple[int, ...], classes: int = 1000) -> list[Shape]:
    """Return the shapes of a bottleneck ResNet's parameters (He et al., 2016), in order."""
    shapes: list[Shape] = []

    def conv_bn(inputs: int, outputs: int, kernel: int) -> None:
        shapes.extend([(outputs, inputs, kernel, kernel), (outputs,), (outputs,)])

    conv_bn(3, 64, 7)
    channels = 64
    for stage, count in enumerate(blocks):
        width = 64 << stage
        for block in range(count):
            conv_bn(channels, width, 1)
            conv_bn(width, width, 3)
            conv_bn(width, 4 * width, 1)
            if block == 0:
                conv_bn(channels, 4 * width, 1)  # the shortcut, where the number of channels changes
            channels = 4 * width
    return [*shapes, (classes, channels), (classes,)]


class AdamWCase(Case):
    """`fastfeed.optim.AdamW` against PyTorch's, by default (foreach on a GPU) and fused."""

    name = "adamw"
    direction = "step"
    graphs = False  # PyTorch's default counts its steps on the host
    baseline = "torch"

    @classmethod
    def parameters(cls, options: Options) -> list[dict[str, Any]]:
        """A ResNet-50, and a smaller one."""
        names = ["resnet14"] if options.quick else ["resnet14", "resnet50"]
        return [{"shape": name, "dtype": torch.float32} for name in names]

    def __init__(self, options: Options, shape: str, dtype: torch.dtype) -> None:
        generator = torch.Generator(options.device).manual_seed(0)
        randn = partial(torch.randn, dtype=dtype, device=options.device, generator=generator)
        self.params = [randn(shape) for shape in resnet_shapes(BLOCKS[shape])]
        self.grads = [randn(param.shape) for param in self.params]
        # Reads the parameter, its gradient and two averages, and writes all but the gradient, 4 bytes each.
        self.bytes_per_run = 28 * sum(param.numel() for param in self.params)

    def check(self, provider: str) -> None:
        """Compare the parameters after three steps: the bias corrections differ in each."""
        expected, actual = (self.providers[name](self) for name in (self.baseline, provider))
        # While gradients stay the same, so do their corrected averages, whatever the betas. In the end they are back.
        for scale in (1, 2, 0.5):
            torch._foreach_mul_(self.grads, scale)
            expected_params, actual_params = expected(), actual()
        # Some roundings; three steps are 3e-3 and their weight decay 3e-5 of a parameter, so errors in either show.
        torch.testing.assert_close(actual_params, expected_params, rtol=1e-6, atol=1e-6)

    def _stepper(self, optimizer: Callable[..., torch.optim.Optimizer], **options: Any) -> Run:
        params = [param.clone().requires_grad_() for param in self.params]
        for param, grad in zip(params, self.grads, strict=True):
            param.grad = grad
        stepper = optimizer(params, lr=1e-3, weight_decay=1e-2, **options)

        def run() -> list[torch.Tensor]:
            stepper.step()
            return params

        return run

    providers: ClassVar = {
        "torch": lambda case: case._stepper(torch.optim.AdamW),
        "fused": lambda case: case._stepper(torch.optim.AdamW, fused=True),
        "fastfeed": lambda case: case._stepper(fastfeed.optim.AdamW),
    }
