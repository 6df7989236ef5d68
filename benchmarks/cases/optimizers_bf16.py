"""AdamW of bf16 parameters: with fp32 masters, and with stochastic rounding instead of them."""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch

import fastfeed.optim
from benchmarks.case import largest_error
from benchmarks.optimizers import LR, WEIGHT_DECAY, OptimizerCase
from benchmarks.peers import need
from benchmarks.timing import Run

Tensors = list[torch.Tensor]

ULP = 2**-7  # of bf16: from one number to the next, in units of it, at most


class AdamWMasterCase(OptimizerCase):
    """`fastfeed.optim.AdamW` with `master_weights`, against PyTorch's fused AdamW on masters that the user keeps.

    28 bytes per parameter: reads and writes the master (8) and its two averages (16), reads the gradient in bf16 (2),
    and writes the parameter in bf16 (2). Operations are those of AdamW in fp32.

    What the user does casts the gradients for the masters (6 bytes), steps these (28), and copies them back (6).
    """

    name = "adamw_master"
    dtype = torch.bfloat16
    accesses = 14  # of two bytes
    flops = 13

    def check(self, provider: str) -> float:
        """Compare the masters as in fp32, and look whether the parameters are their copies."""
        error = super().check(provider)
        masters, params = self.providers[provider](self)()
        for param, master in zip(params, masters(), strict=True):
            torch.testing.assert_close(param.float(), master.detach(), rtol=ULP, atol=0)
        return error

    def stepped(self, returned: tuple[Callable[[], Tensors], Tensors]) -> Tensors:
        """Return the masters, of what a run returns: a function that lists them, and the parameters."""
        return returned[0]()

    def _by_hand(self) -> Run:
        params = self.leaves()
        masters = [param.detach().float().requires_grad_() for param in params]
        for master in masters:
            master.grad = torch.empty_like(master)
        grads = [master.grad for master in masters]
        optimizer = torch.optim.AdamW(masters, lr=LR, weight_decay=WEIGHT_DECAY, fused=True)

        def run() -> tuple[Callable[[], Tensors], Tensors]:
            torch._foreach_copy_(grads, self.grads)
            optimizer.step()
            with torch.no_grad():
                torch._foreach_copy_(params, masters)
            return lambda: masters, params

        return run

    def _fastfeed(self) -> Run:
        params = self.leaves()
        optimizer = fastfeed.optim.AdamW(params, lr=LR, weight_decay=WEIGHT_DECAY, master_weights=True)

        def run() -> tuple[Callable[[], Tensors], Tensors]:
            optimizer.step()
            return lambda: [optimizer.state[param]["master"] for param in params], params

        return run

    providers: ClassVar = {"torch": _by_hand, "fastfeed": _fastfeed}


class AdamWStochasticCase(OptimizerCase):
    """`fastfeed.optim.AdamW` with `stochastic_rounding`, all in bf16, against PyTorch's fused AdamW and torchao's.

    14 bytes per parameter: reads the parameter, its gradient and their two averages, and writes all but the gradient.
    Operations are those of AdamW in fp32. PyTorch rounds to nearest, and torchao rounds its averages so.
    """

    name = "adamw_stochastic"
    dtype = torch.bfloat16
    accesses = 7
    flops = 13
    stochastic = frozenset({"torchao", "fastfeed"})  # whose parameters are rounded without a bias

    def check(self, provider: str) -> float:
        """Compare with AdamW in fp32: each parameter to its roundings, and where rounding has no bias their mean too.

        Errors of single parameters are as large as a step, but not their mean: it is looked at in the direction of the
        steps, where other betas or rates show, and of the parameters, where another weight decay shows.
        """
        exact = [param.float().requires_grad_() for param in self.params]
        optimizer = torch.optim.AdamW(exact, lr=LR, weight_decay=WEIGHT_DECAY)
        for scale in self.scales:
            for param, grad in zip(exact, self.grads, strict=True):
                param.grad = grad.float() * scale
            optimizer.step()
        actual = [param.detach().float() for param in self.trained(provider)]
        expected = [param.detach() for param in exact]
        # A step of 1e-2 takes what is close to 0 as far as that, and its error with it.
        torch.testing.assert_close(actual, expected, rtol=len(self.scales) * ULP, atol=ULP * LR * len(self.scales) ** 2)
        if provider in self.stochastic:
            self._check_mean([a - e for a, e in zip(actual, expected, strict=True)], expected)
        return max(largest_error(a, e) for a, e in zip(actual, expected, strict=True))

    def _check_mean(self, errors: Tensors, expected: Tensors) -> None:
        before = [param.float() for param in self.params]
        steps = torch._foreach_sub(expected, before)
        for name, direction in (("steps", steps), ("parameters", before)):
            products = [(e.double() * d.double()) for e, d in zip(errors, direction, strict=True)]
            total = sum(p.sum().item() for p in products)
            deviation = math.sqrt(sum(p.square().sum().item() for p in products))
            length = sum(d.double().square().sum().item() for d in direction)
            # Six deviations, and the bias that two roundings of the averages have in their quotient.
            allowed = 6 * deviation + ULP**2 * length
            if abs(total) > allowed:
                raise AssertionError(
                    f"rounding is biased: along the {name} the errors add up to {total:.3g}, allowed is {allowed:.3g}"
                )

    def _torchao(self) -> Run:
        optimizer = need("torchao.optim", "pip install torchao")._AdamW  # without the other ways to save memory
        self.leave_out_of_quick("it compiles a step for each shape", on_gpu=True)
        return self.stepper(optimizer, bf16_stochastic_round=True)

    providers: ClassVar[dict[str, Callable[[Any], Run]]] = {
        "torch": lambda case: case.stepper(torch.optim.AdamW, fused=True),
        "torchao": _torchao,
        "fastfeed": lambda case: case.stepper(fastfeed.optim.AdamW, stochastic_rounding=True),
    }
