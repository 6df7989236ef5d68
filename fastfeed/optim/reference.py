"""What the eager references of the optimizers share: columns of tensors in the precision they are computed in."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastfeed.optim.layout import memory_order


@dataclass
class Columns:
    """Tensors of one parameter group, device and dtype, for a reference to update in place.

    params, grads, states: in fp32, or fp64 where the parameters are; a list of each state. Gradients are unscaled and
        clipped, or what the first pass made of them, and must not be changed.
    step: the step that this is, one for each parameter, [T] in the same dtype.
    sums: over the elements of each parameter, on all ranks that hold a shard of it, by the first pass, [T, 2].
    """

    params: list[Tensor]
    grads: list[Tensor]
    states: list[list[Tensor]]
    step: Tensor
    sums: Tensor = field(default_factory=lambda: torch.empty(0, 2))


def one_minus_power(base: float, exponents: Tensor) -> Tensor:
    """1 - base ** exponents, which as it stands would cancel while the exponent is small."""
    return -torch.expm1(exponents * (math.log(base) if base > 0 else -math.inf))


def add_weight_decay(grads: list[Tensor], params: list[Tensor], weight_decay: float, maximize: bool) -> list[Tensor]:
    """Return the gradients, negated to maximize, with L2 weight decay."""
    if maximize:
        grads = list(torch._foreach_neg(grads))
    if weight_decay != 0:
        grads = list(torch._foreach_add(grads, params, alpha=weight_decay))
    return grads


def squares_of_both(params: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """Sums of the squares of each parameter, and of something else that has its elements, [T, 2]."""
    columns = [torch.stack([t.square().sum() for t in tensors]) for tensors in (params, others)]
    return torch.stack(columns, dim=1)


def _philox(counter: list[Tensor], seed: int, rounds: int = 7) -> list[Tensor]:
    """Philox 4x32 (Salmon et al., 2011) on int64 tensors that hold 32 bits each."""
    low = 0xFFFFFFFF
    a, b, c, d = counter
    key0, key1 = seed & low, seed >> 32 & low
    for _ in range(rounds):
        # 32 x 32 bits wrap in int64, but keep every bit; the shift must not bring copies of the sign.
        first, second = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = (
            (second >> 32 & low) ^ b ^ key0,
            second & low,
            (first >> 32 & low) ^ d ^ key1,
            first & low,
        )
        key0, key1 = key0 + 0x9E3779B9 & low, key1 + 0xBB67AE85 & low
    return [a, b, c, d]


def random_bits(numel: int, seed: int, step: Tensor, number: int) -> Tensor:
    """32 random bits for each element, int64 [numel]: those of the kernels (kernels/rounding.py)."""
    index = torch.arange((numel + 3) // 4, device=step.device)
    rest = [index >> 32, step.to(torch.int64).expand_as(index), torch.full_like(index, number)]
    return torch.stack(_philox([index & 0xFFFFFFFF, *rest], seed), dim=1).flatten()[:numel]


def shift_bits(bits: Tensor, state: int) -> Tensor:
    """The bits that round a state: 0, 1 or 2; the parameter takes the lower half of them as they are."""
    if state == 0:
        return bits >> 16
    return (bits * 0x9E3779B1 & 0xFFFFFFFF) >> 16


def stochastically_rounded(x: Tensor, bits: Tensor) -> Tensor:
    """fp32 -> bf16, up or down, so that the mean is x; by the lower 16 of `bits`, in the order of x's memory."""
    if memory_order(x) is None:
        bits = bits.view(x.shape)
    else:
        bits = bits.as_strided(x.shape, x.stride())
    raw = x.view(torch.int32).to(torch.int64)
    rounded = ((raw + (bits & 0xFFFF)) & ~0xFFFF).to(torch.int32).view(torch.float32)
    return torch.where(x.isnan(), x, rounded).to(torch.bfloat16)
