"""Mixup and cutmix: what the user asks for, what is drawn for a batch, and the target that comes of it.

The pixels are mixed by the last pass (`finish.py`). Sources: mixup, Zhang et al., ICLR 2018; CutMix, Yun et al., ICCV
2019; the rules of ``torchvision.transforms.v2.MixUp`` and ``CutMix``.
"""

import operator
import sys
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from fastfeed.data.declarations import number, probability, replace_values, whole
from fastfeed.data.philox import Float64, Uint32, philox, uniform
from fastfeed.data.tree import replace_leaves

# One number per random decision, as in plan.py, with which the key and the last two words of a counter, epoch and
# purpose << 16, are shared: its purposes count up from 0, these from 0x100.
_PURPOSES = range(0x100, 0x103)
_CHOICE, _BETA, _PARTNER = range(len(_PURPOSES))

_MIXED_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # of targets; not 8-bit ones


@dataclass(frozen=True)
class Mix:
    """Mixup, cutmix, or one of the two at random.

    Args:
        mixup: alpha of Beta(alpha, alpha), from which mixup's weights are drawn; 0 for no mixup.
        cutmix: likewise for the share of an image that cutmix keeps; 0 for no cutmix. With both, each is taken
            equally often, as by torchvision's ``RandomChoice([MixUp(...), CutMix(...)])``.
        probability: 0 to 1, that anything is mixed at all.
        per: "batch" draws once for a whole batch, as the papers and torchvision do; "sample" draws for every sample.
        num_classes: C, at least 1, to have class indices become probabilities, [N, C] float32, as torchvision's do;
            None for a `MixedTarget`.

    Raises:
        TypeError: for an alpha or a probability that is no number, or a num_classes that is no whole number.
        ValueError: for an alpha that is negative or not finite, two alphas of 0, a probability outside 0 to 1, another
            `per`, or a num_classes below 1.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    probability: float = field(default=1.0, kw_only=True)
    per: str = field(default="batch", kw_only=True)
    num_classes: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        for name in ("mixup", "cutmix"):
            alpha = number(f"Mix: {name}", getattr(self, name), 0, sys.float_info.max, "a finite alpha, 0 or more")
            replace_values(self, **{name: alpha})
        replace_values(self, probability=probability("Mix: probability", self.probability))
        if self.mixup == self.cutmix == 0:
            raise ValueError("Mix: mixup and cutmix are both 0: nothing to mix. Give one an alpha, as Mix(mixup=0.2)")
        if self.per not in ("batch", "sample"):
            raise ValueError(f"Mix: per is {self.per!r}; expected 'batch' or 'sample'")
        if self.num_classes is not None:
            replace_values(self, num_classes=whole("Mix: num_classes", self.num_classes, 1))


@dataclass(frozen=True)
class MixPlan:
    """How the N samples of a batch are mixed.

    Where `lam` is 1 the partner gives nothing: `weight` is 1, the box is empty, and the partner need not be read.

    Attributes:
        partner: [N] int64, the position in the batch of the sample that each is mixed with. A permutation without
            fixed points, unless the batch has one sample only.
        weight: [N] float32, 0 to 1, of a sample's own pixels in mixup: weight * own + (1 - weight) * partner's.
            1 where mixup is not applied.
        box: [N, 4] int32, top, left, height and width, in pixels of the output, of what cutmix takes from the partner.
            Zeros where it takes nothing.
        lam: [N] float32, 0 to 1, the weight of a sample's own label.
    """

    partner: npt.NDArray[np.int64]
    weight: npt.NDArray[np.float32]
    box: npt.NDArray[np.int32]
    lam: npt.NDArray[np.float32]


def draw_mix(mix: Mix, batch_size: int, height: int, width: int, *, seed: int, epoch: int, batch: int) -> MixPlan:
    """Draw how a batch is mixed: a function of the arguments alone.

    With ``per="sample"``, what is drawn for a position does not depend on the size of the batch; its partner does.
    As by torchvision, a sample is mixed with the one before it, but in an order that is drawn for each batch: classes
    that lie together in the data are not mixed with themselves alone.

    Args:
        mix: what to draw from.
        batch_size: N, 0 or more.
        height: of the output, in pixels.
        width: of the output, in pixels.
        seed: 64 bits.
        epoch: 32 bits.
        batch: index of the batch in its epoch, 32 bits.

    Raises:
        ValueError: for a negative batch size, or a height or width below 1.
    """
    if batch_size < 0 or height < 1 or width < 1:
        raise ValueError(
            f"batch_size, height and width are {batch_size}, {height} and {width}; expected at least 0, 1 and 1"
        )
    words = _draw(batch_size, seed, epoch, batch)
    draws = uniform(words if mix.per == "sample" else words[:1].repeat(batch_size, axis=0))
    choice, beta = draws[:, _CHOICE], draws[:, _BETA]

    mixed = choice[:, 0] < mix.probability
    share_of_cutmix = 0.0 if mix.cutmix == 0 else 1.0 if mix.mixup == 0 else 0.5
    cut = choice[:, 1] < share_of_cutmix
    lam = _symmetric_beta(np.where(cut, float(mix.cutmix), float(mix.mixup)), beta[:, 0], beta[:, 1])
    weight = np.where(mixed & ~cut, lam, 1.0)
    box = _cutmix_boxes(lam, choice[:, 2], choice[:, 3], height, width) * (mixed & cut)[:, None]
    area = box[:, 2] * box[:, 3]
    return MixPlan(
        partner=_partners(words[:, _PARTNER]),
        weight=weight.astype(np.float32),
        box=box.astype(np.int32),
        lam=np.where(cut, 1 - area / (height * width), weight).astype(np.float32),
    )


class MixedTarget(NamedTuple):
    """The target of a mixed batch: two labels for each sample, and how much the first one counts.

    A tuple of tensors, so that pytrees, collating, pinning and moving see what is in it.

    Attributes:
        a: [N] int64, the samples' own labels.
        b: [N] int64, their partners' labels, or again their own where nothing of the partner is in the image.
        lam: [N] float32, 0 to 1, the weight of `a`; that of `b` is 1 - lam.

    Example, for any loss per sample, without a dense target::

        a = F.cross_entropy(logits, target.a, reduction="none")
        b = F.cross_entropy(logits, target.b, reduction="none")
        loss = (target.lam * a + (1 - target.lam) * b).mean()

    and for a loss that takes probabilities::

        loss = F.cross_entropy(logits, target.dense(num_classes=1000))
    """

    a: torch.Tensor
    b: torch.Tensor
    lam: torch.Tensor

    def dense(self, num_classes: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Return the target as probabilities.

        Labels may also be [N, d1, ...], of pixels say, and `lam` a tensor of one number.

        Args:
            num_classes: C, at least 1.
            dtype: a floating-point dtype; the arithmetic is in float32 or, if that is wider, in `dtype`.

        Returns:
            [N, C], or [N, C, d1, ...]: lam at `a` plus 1 - lam at `b`, on their device. On a GPU, where an error would
            have to wait for the labels, and under torch.compile, one that is no class makes its row NaN.

        Raises:
            IndexError: on the CPU, for a label that is no class.
            TypeError: for num_classes that is no whole number.
            ValueError: for num_classes below 1, another dtype, or tensors whose shapes do not go together.
        """
        if self.a.dim() < 1 or self.b.shape != self.a.shape or self.lam.shape not in ((), (1,), self.a.shape[:1]):
            shapes = ", ".join(f"{name} {list(getattr(self, name).shape)}" for name in self._fields)
            raise ValueError(f"the target's shapes are {shapes}; expected a and b [N] or [N, d1, ...], and lam [N]")
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}; expected at least 1")
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise ValueError(f"dtype is {dtype!r}; expected a floating-point dtype, such as torch.float32")
        labels = torch.stack((self.a, self.b))
        wrong = (labels < 0) | (labels >= num_classes)
        if labels.device.type == "cpu" and not torch.compiler.is_compiling() and wrong.any():
            raise IndexError(f"Target {int(labels[wrong][0])} is out of bounds: expected 0 to {num_classes - 1}")
        inner = [1] * (self.a.dim() - 1)
        classes = torch.arange(operator.index(num_classes), device=labels.device).view(-1, *inner)
        lam = self.lam.to(torch.promote_types(self.lam.dtype, dtype)).view(-1, 1, *inner)
        at_a, at_b = labels[:, :, None] == classes
        probabilities = at_a * lam + at_b * (1 - lam)
        return probabilities.masked_fill(wrong.any(dim=0)[:, None], float("nan")).to(dtype)

    def __getattr__(self, name: str) -> Any:
        """Name the way out to those who take the target of a mixed batch for a tensor."""
        raise AttributeError(
            f"'MixedTarget' object has no attribute {name!r}: it is no tensor, but two labels for each sample, a and "
            "b, and the weight lam of the first. target.a are the samples' own labels, for an accuracy say, and "
            "target.dense(num_classes) the probabilities that other losses take"
        )

    def to(self, device: str | int | torch.device, non_blocking: bool = False) -> "MixedTarget":
        """Return the target on another device, as ``torch.Tensor.to``; the dtypes stay."""
        return MixedTarget(*(tensor.to(device, non_blocking=non_blocking) for tensor in self))


def mix_target(target: torch.Tensor, plan: MixPlan) -> "MixedTarget | torch.Tensor":
    """Return the target of a batch after it was mixed by `plan`.

    Args:
        target: on the CPU: [N] int64 class indices, or [N, ...] of a floating-point dtype: several labels per sample
            (multi-hot), probabilities, values to be predicted.
        plan: for the same batch.

    Returns:
        A `MixedTarget` for class indices, which needs no dense target. Else lam * own + (1 - lam) * partner's, of the
        shape and dtype of `target`; the arithmetic is in float32 or, if that is wider, in its dtype.

    Raises:
        ValueError: for a target of another kind, shape, dtype or device.
    """
    n = len(plan.partner)
    expected = (
        f"expected class indices, torch.int64 [{n}], or floating-point rows, [{n}, ...], to be mixed: several labels "
        "at once as zeros and ones, by target.float()"
    )
    if not isinstance(target, torch.Tensor):
        raise ValueError(f"target is {type(target).__name__}; {expected}")
    is_labels = target.dtype == torch.int64 and target.shape == (n,)
    if not is_labels and not (target.dtype in _MIXED_DTYPES and target.shape[:1] == (n,)):
        raise ValueError(f"target is {target.dtype} {list(target.shape)}; {expected}")
    if target.device.type != "cpu":
        raise ValueError(f"target is on {target.device}; expected a CPU tensor: mix it before it is moved")
    lam, partner = torch.from_numpy(plan.lam), torch.from_numpy(plan.partner)
    if is_labels:
        # Where the partner gives nothing its label must not count either: an infinite loss times 0 would be NaN.
        return MixedTarget(target, torch.where(lam == 1, target, target[partner]), lam)
    weight = lam.to(torch.promote_types(torch.float32, target.dtype)).view(-1, *[1] * (target.dim() - 1))
    mixed = (weight * target + (1 - weight) * target[partner]).to(target.dtype)
    return torch.where(weight == 1, target, mixed)  # here too: an infinite value of the partner's


def as_declared(batch: Any, mix: Mix | None) -> Any:
    """Return a batch with the mixed targets in it as `Mix.num_classes` asks for them."""
    classes = None if mix is None else mix.num_classes
    if classes is None:
        return batch
    return replace_leaves(
        batch, lambda _, leaf: leaf.dense(classes) if isinstance(leaf, MixedTarget) else leaf, stop=MixedTarget
    )


def check_addresses(mix: Mix | None, stable_addresses: bool) -> None:
    """Raise ValueError for probabilities that would have to be at the addresses of the first batch's."""
    if stable_addresses and mix is not None and mix.num_classes is not None:
        raise ValueError(
            "stable_addresses gives the targets of mix as a MixedTarget: leave Mix's num_classes out, and call "
            "target.dense(num_classes) in the step that is captured"
        )


def _draw(count: int, seed: int, epoch: int, batch: int) -> Uint32:
    """Return [count, 3, 4]: four random words for each position in the batch and each purpose."""
    counter = np.empty((count, len(_PURPOSES), 4), np.uint32)
    counter[..., 0] = np.arange(count)[:, None]
    counter[..., 1] = batch & 0xFFFFFFFF
    counter[..., 2] = epoch & 0xFFFFFFFF
    counter[..., 3] = np.array(_PURPOSES) << 16
    return philox(seed, counter)


def _partners(words: Uint32) -> npt.NDArray[np.int64]:
    """Return [N] int64: each sample's predecessor in a random order, and the last one for the first."""
    # Sorting by independent 64-bit keys is a uniform permutation.
    order = np.lexsort((words[:, 0], words[:, 1]))
    partner = np.empty_like(order)
    partner[order] = np.roll(order, 1)
    return partner


def _symmetric_beta(alpha: Float64, u: Float64, v: Float64) -> Float64:
    """Return numbers distributed as Beta(alpha, alpha), for any alpha > 0, from multiples of 2**-32 in [0, 1).

    No rejection, so two numbers always suffice: T = sqrt(2 alpha (u**(-1 / alpha) - 1)) cos(2 pi v) has Student's t
    distribution with 2 alpha degrees of freedom (Bailey, "Polar generation of random variates with the t-distribution",
    1994), and (1 + T / sqrt(2 alpha + T**2)) / 2 that of the beta (Devroye, "Random variate generation in one line of
    code", 1996). Written in powers of u that cannot overflow, and in 1 + 2 alpha / T**2, which is at least 1.
    """
    u, v = u + 2.0**-33, v + 2.0**-33  # the middles of their intervals: u is never 0 or 1, nor the cosine 0
    cosine = np.cos(2 * np.pi * v)
    with np.errstate(over="ignore", under="ignore", divide="ignore"):  # of extreme alphas, whose limits are right
        log_power = np.log(u) / alpha
        inverse = np.exp(log_power) / -np.expm1(log_power) / cosine**2  # 2 alpha / T**2
        return 0.5 + np.copysign(0.5 / np.sqrt(1 + inverse), cosine)


def _cutmix_boxes(lam: Float64, u: Float64, v: Float64, height: int, width: int) -> npt.NDArray[np.int64]:
    """Return [N, 4] top, left, height and width of boxes of a share 1 - lam of the image, clipped to it."""
    sides = np.array([height, width])
    centre = np.floor(np.stack([u, v], axis=1) * sides).astype(np.int64)
    half = (0.5 * np.sqrt(1 - lam)[:, None] * sides).astype(np.int64)
    start, end = np.maximum(centre - half, 0), np.minimum(centre + half, sides)
    shape = end - start
    # One side can be 0 and the other not: nothing is taken then, and the box is no place.
    return np.concatenate([start, shape], axis=1) * (shape > 0).all(axis=1, keepdims=True)
