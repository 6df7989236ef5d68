"""The optimizers in fp32: AdamW, SGD with momentum, LAMB and Lion."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch

import fastfeed.optim
from benchmarks.case import Options
from benchmarks.optimizers import OptimizerCase, timm_optim, torch_providers
from benchmarks.timing import Run


class AdamWCase(OptimizerCase):
    """`fastfeed.optim.AdamW` against PyTorch's, by default, foreach, fused and compiled, and apex's FusedAdam.

    28 bytes per parameter: reads the parameter p, its gradient g and their two averages m and v, and writes all but the
    gradient. 13 operations: p times 1 - lr * decay (1), m + (1 - beta1) (g - m) (3), beta2 v + (1 - beta2) g g (4),
    and p - a m / (sqrt(v) + b) (5: root, sum, product, quotient, difference).
    """

    name = "adamw"
    accesses = 7
    flops = 13
    quick_on_cpu = ("squeezenet", "resnet18")
    quick_on_gpu = ("squeezenet", "resnet50", "vit_l16", "1000x1000")

    providers: ClassVar = {
        **torch_providers(torch.optim.AdamW),
        "apex": lambda case: case.apex("FusedAdam", adam_w_mode=True),
        "fastfeed": lambda case: case.stepper(fastfeed.optim.AdamW),
    }


class SGDCase(OptimizerCase):
    """`fastfeed.optim.SGD` with momentum against PyTorch's, by default, foreach, fused and compiled.

    20 bytes per parameter: reads the parameter p, its gradient g and the momentum buffer b, and writes p and b. 6
    operations: g + decay p (2), momentum b + g (2), p - lr b (2).
    """

    name = "sgd"
    accesses = 5
    flops = 6
    graphs = 2  # the first step has no buffers yet

    providers: ClassVar = {
        **torch_providers(torch.optim.SGD, momentum=0.9),
        "fastfeed": lambda case: case.stepper(fastfeed.optim.SGD, momentum=0.9),
    }


class EagerOptimizer:
    """The textbook's step in PyTorch's foreach operations: what one would write without timm or apex."""

    def __init__(self, params: Sequence[torch.Tensor], lr: float, weight_decay: float) -> None:
        self.params, self.lr, self.weight_decay = params, lr, weight_decay
        self.steps = 0
        self.m, self.v = ([torch.zeros_like(param) for param in params] for _ in range(2))

    def step(self) -> None:
        """Step all parameters."""
        self.steps += 1
        with torch.no_grad():
            self.update([param.grad for param in self.params])

    def update(self, grads: list[torch.Tensor]) -> None:
        """Do the arithmetic of a step, in place."""
        raise NotImplementedError


class EagerLAMB(EagerOptimizer):
    """LAMB, with the betas and the epsilon that are usual."""

    def update(self, grads: list[torch.Tensor]) -> None:
        """Do the arithmetic of a step, in place."""
        torch._foreach_lerp_(self.m, grads, 0.1)
        torch._foreach_mul_(self.v, 0.999)
        torch._foreach_addcmul_(self.v, grads, grads, 0.001)
        denominators = torch._foreach_sqrt(self.v)
        torch._foreach_div_(denominators, math.sqrt(1 - 0.999**self.steps))
        torch._foreach_add_(denominators, 1e-6)
        updates = torch._foreach_div(self.m, 1 - 0.9**self.steps)
        torch._foreach_div_(updates, denominators)
        torch._foreach_add_(updates, self.params, alpha=self.weight_decay)
        ratios = torch._foreach_div(torch._foreach_norm(self.params), torch._foreach_norm(updates))  # no norm here is 0
        torch._foreach_mul_(updates, ratios)
        torch._foreach_sub_(self.params, updates, alpha=self.lr)


class LAMBCase(OptimizerCase):
    """`fastfeed.optim.LAMB` against the formula in foreach operations, timm's, by default and foreach, and apex's.

    40 bytes per parameter, since the norms of a whole tensor stand between its update and its parameters: reads the
    parameter p, its gradient g and their averages m and v, and writes m and v; then reads p, m and v, and writes p. 19
    operations: m and v (3 and 4), the update u with its decay (4 and 2), the squares of p and u (2 each), p - r u (2).
    """

    name = "lamb"
    accesses = 10
    flops = 19

    def __init__(self, options: Options, shape: str, dtype: torch.dtype) -> None:
        super().__init__(options, shape, dtype)
        torch._foreach_mul_(self.params, 3)  # for trust ratios of about 3: with 1 one could leave them out

    def gradients(self, original: Sequence[torch.Tensor], step: int) -> Sequence[torch.Tensor]:
        """Return the gradients for a step of a check, in two directions: in one, trust ratios would hide the betas."""
        grads = super().gradients(original, step)
        return [grad.roll(1) for grad in grads] if step == 1 else grads

    def _timm(self, **options: Any) -> Run:
        return self.stepper(timm_optim().Lamb, max_grad_norm=None, **options)

    providers: ClassVar = {
        "torch": lambda case: case.stepper(EagerLAMB),
        "timm": lambda case: case._timm(foreach=False),
        "timm foreach": lambda case: case._timm(foreach=True),
        "apex": lambda case: case.apex("FusedLAMB", max_grad_norm=math.inf),
        "fastfeed": lambda case: case.stepper(fastfeed.optim.LAMB),
    }


class EagerLion(EagerOptimizer):
    """Lion, with the betas that are usual."""

    def update(self, grads: list[torch.Tensor]) -> None:
        """Do the arithmetic of a step, in place."""
        torch._foreach_mul_(self.params, 1 - self.lr * self.weight_decay)
        updates = torch._foreach_lerp(self.m, grads, 0.1)
        torch._foreach_sign_(updates)
        torch._foreach_sub_(self.params, updates, alpha=self.lr)
        torch._foreach_lerp_(self.m, grads, 0.01)


class LionCase(OptimizerCase):
    """`fastfeed.optim.Lion` against the formula in foreach operations, and timm's, by default and foreach.

    20 bytes per parameter: reads the parameter p, its gradient g and its average m, and writes p and m. 10 operations:
    p times 1 - lr * decay (1), the sign of m + (1 - beta1) (g - m) (4), p - lr times it (2), m (3).
    """

    name = "lion"
    accesses = 5
    flops = 10
    # m is 0.01 after the first, in units of the gradient. The sign turns at -0.09 in the second step and at -0.08105 in
    # the third, and just about there if a beta is another: above in the one, below in the other.
    scales = (1, -0.0895, -0.0815)

    providers: ClassVar = {
        "torch": lambda case: case.stepper(EagerLion),
        "timm": lambda case: case.stepper(timm_optim().Lion, foreach=False),
        "timm foreach": lambda case: case.stepper(timm_optim().Lion, foreach=True),
        "fastfeed": lambda case: case.stepper(fastfeed.optim.Lion),
    }
