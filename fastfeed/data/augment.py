"""Colour and geometry of uint8 images: what the user asks for, what is drawn for each sample, and doing it on the CPU.

Everything becomes a short sequence of operations for each sample, a `Kind` and a magnitude each. They are done in C++
(`augment_`) or by DALI (augment_dali.py), after the resize and before the last pass.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastfeed._extension import extension
from fastfeed.data.declarations import is_number, listed, probability, replace_values, rgb_fill, whole
from fastfeed.data.finish import check_storage
from fastfeed.data.philox import Float64, philox, uniform
from fastfeed.data.policies import POLICIES, Kind, auto_augment_policy, rand_augment_space, trivial_augment_space

Fill = int | Sequence[int] | None

_UINT16, _UINT32 = 0xFFFF, 0xFFFFFFFF


@dataclass(frozen=True)
class RandomHorizontalFlip:
    """Mirror left to right with probability `p`: ``torchvision.transforms.RandomHorizontalFlip``.

    Raises:
        TypeError: for a `p` that is no number.
        ValueError: for a `p` outside 0 to 1.
    """

    p: float = 0.5

    def __post_init__(self) -> None:
        replace_values(self, p=probability("RandomHorizontalFlip: p", self.p))


@dataclass(frozen=True)
class RandomVerticalFlip:
    """Mirror top to bottom with probability `p`: ``torchvision.transforms.RandomVerticalFlip``.

    Raises:
        TypeError: for a `p` that is no number.
        ValueError: for a `p` outside 0 to 1.
    """

    p: float = 0.5

    def __post_init__(self) -> None:
        replace_values(self, p=probability("RandomVerticalFlip: p", self.p))


@dataclass(frozen=True)
class RandomGrayscale:
    """Replace all three channels by their luma with probability `p`: ``torchvision.transforms.RandomGrayscale``.

    Raises:
        TypeError: for a `p` that is no number.
        ValueError: for a `p` outside 0 to 1.
    """

    p: float = 0.1

    def __post_init__(self) -> None:
        replace_values(self, p=probability("RandomGrayscale: p", self.p))


@dataclass(frozen=True)
class ColorJitter:
    """Change brightness, contrast, saturation and hue, in a random order: ``torchvision.transforms.ColorJitter``.

    Args:
        brightness: the factor is uniform in [max(0, 1 - brightness), 1 + brightness], or in the range given.
        contrast: likewise.
        saturation: likewise.
        hue: turns of the colour wheel, uniform in [-hue, hue], or in the range given; -0.5 to 0.5.

    Raises:
        TypeError: for what is neither a number nor a pair of numbers.
        ValueError: for a negative number, a range that is given high end first, or one that reaches below 0 (for hue,
            outside of -0.5 to 0.5) or is not finite in fp32.
    """

    brightness: float | tuple[float, float] = 0
    contrast: float | tuple[float, float] = 0
    saturation: float | tuple[float, float] = 0
    hue: float | tuple[float, float] = 0

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation", "hue"):
            replace_values(self, **{name: _jitter(name, getattr(self, name))})
        self.ranges()

    def ranges(self) -> dict[Kind, tuple[float, float]]:
        """Return the range of each factor that is not always without effect."""
        largest = float(np.finfo(np.float32).max)
        ranges = {
            Kind.BRIGHTNESS: _jitter_range("brightness", self.brightness, 1.0, (0.0, largest)),
            Kind.CONTRAST: _jitter_range("contrast", self.contrast, 1.0, (0.0, largest)),
            Kind.SATURATION: _jitter_range("saturation", self.saturation, 1.0, (0.0, largest)),
            Kind.HUE: _jitter_range("hue", self.hue, 0.0, (-0.5, 0.5)),
        }
        unchanged = {kind: 0.0 if kind == Kind.HUE else 1.0 for kind in ranges}
        return {kind: (low, high) for kind, (low, high) in ranges.items() if not low == high == unchanged[kind]}


@dataclass(frozen=True)
class TrivialAugmentWide:
    """One operation of random strength: ``torchvision.transforms.TrivialAugmentWide``, nearest interpolation.

    Args:
        num_magnitude_bins: how many strengths there are, at least 2.
        fill: a level, 0 to 255, or one each for R, G and B, of pixels from outside of the image; None is 0.

    Raises:
        TypeError: for a number of bins that is no whole number, or a fill of another type.
        ValueError: for fewer than 2 bins, or a fill that has not one or three levels from 0 to 255.
    """

    num_magnitude_bins: int = 31
    fill: Fill = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        bins = whole("TrivialAugmentWide: num_magnitude_bins", self.num_magnitude_bins, 2)
        replace_values(self, num_magnitude_bins=bins, fill=_fill_levels("TrivialAugmentWide", self.fill))


@dataclass(frozen=True)
class RandAugment:
    """A few operations of one strength: ``torchvision.transforms.RandAugment``, nearest interpolation.

    Args:
        num_ops: how many, one after the other; an operation may come again.
        magnitude: the strength, a bin, from 0.
        num_magnitude_bins: how many bins there are, at least 2.
        fill: as for `TrivialAugmentWide`.

    Raises:
        TypeError: for a number that is not whole, or a fill of another type.
        ValueError: for a negative num_ops, fewer than 2 bins, a magnitude that is no bin, or a fill that has not one
            or three levels from 0 to 255.
    """

    num_ops: int = 2
    magnitude: int = 9
    num_magnitude_bins: int = 31
    fill: Fill = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        bins = whole("RandAugment: num_magnitude_bins", self.num_magnitude_bins, 2)
        replace_values(
            self,
            num_ops=whole("RandAugment: num_ops", self.num_ops, 0, _UINT16),
            magnitude=whole("RandAugment: magnitude", self.magnitude, 0, bins - 1),
            num_magnitude_bins=bins,
            fill=_fill_levels("RandAugment", self.fill),
        )


@dataclass(frozen=True)
class AutoAugment:
    """A random pair of a policy's, each done with its probability: ``torchvision.transforms.AutoAugment``, nearest.

    Args:
        policy: "imagenet", "cifar10" or "svhn".
        fill: as for `TrivialAugmentWide`.

    Raises:
        TypeError: for a fill of another type.
        ValueError: for another policy, or a fill that has not one or three levels from 0 to 255.
    """

    policy: str = "imagenet"
    fill: Fill = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.policy not in tuple(POLICIES):  # whose members need no hash
            raise ValueError(
                f"AutoAugment: policy is {self.policy!r}; expected one of {', '.join(map(repr, POLICIES))}"
            )
        replace_values(self, fill=_fill_levels("AutoAugment", self.fill))


Step = (
    RandomHorizontalFlip
    | RandomVerticalFlip
    | RandomGrayscale
    | ColorJitter
    | TrivialAugmentWide
    | RandAugment
    | AutoAugment
)


# Of steps that have one operation.
FIXED_KINDS: dict[type[Step], Kind] = {
    RandomHorizontalFlip: Kind.HORIZONTAL_FLIP,
    RandomVerticalFlip: Kind.VERTICAL_FLIP,
    RandomGrayscale: Kind.GRAYSCALE,
}


@dataclass(frozen=True)
class Operations:
    """What is done to each of N samples: up to K operations, one after the other.

    Attributes:
        kind: [N, K] uint8, of `Kind`.
        magnitude: [N, K] float32, in the unit of the kind; 0 for kinds that have none.
        fill: R, G and B, 0 to 255, of pixels that come from outside of an image.
    """

    kind: npt.NDArray[np.uint8]
    magnitude: npt.NDArray[np.float32]
    fill: tuple[int, int, int] = (0, 0, 0)

    def at(self, samples: slice | npt.NDArray[np.int64]) -> "Operations":
        """Return the operations of some of the samples."""
        return Operations(self.kind[samples], self.magnitude[samples], self.fill)


def draw_operations(
    steps: Sequence[Step],
    indices: npt.NDArray[np.int64],
    copies: npt.NDArray[np.int64],
    *,
    seed: int,
    epoch: int,
    height: int,
    width: int,
) -> Operations:
    """Draw the operations of a batch: a function of the arguments alone, and for each sample of its own index and copy.

    A step's draws do not depend on which other kinds of step there are: a second `ColorJitter` in `steps` has its own,
    and a `RandomGrayscale` before it changes nothing.

    Args:
        steps: what to draw from, in the order in which it is done.
        indices: [N] index of each sample in its dataset, 32 bits.
        copies: [N] which of the copies of a sample that comes several times in an epoch, 32 bits.
        seed: 64 bits.
        epoch: 32 bits.
        height: of the images, in pixels: RandAugment and AutoAugment translate by a share of it.
        width: likewise.

    Raises:
        TypeError: for a step of another class.
        ValueError: for an index or copy outside of its range, more than 16 steps of one class, or steps with different
            fills.
    """
    indices, copies = np.asarray(indices, np.int64), np.asarray(copies, np.int64)
    _check_range("indices", indices, _UINT32)
    _check_range("copies", copies, _UINT32)
    fill = common_fill(steps)
    kinds, magnitudes = [np.zeros((len(indices), 0), np.uint8)], [np.zeros((len(indices), 0), np.float32)]
    seen: Counter[type[Step]] = Counter()
    for step in steps:
        purpose = _purpose(step, seen[type(step)])
        seen[type(step)] += 1

        def draw(attempts: int, purpose: int = purpose) -> Float64:
            return _draw(seed, epoch, indices, copies, purpose, attempts)

        kind, magnitude = _draw_step(step, draw, height, width)
        kinds.append(kind.astype(np.uint8))
        magnitudes.append(magnitude.astype(np.float32))
    return Operations(np.concatenate(kinds, axis=1), np.concatenate(magnitudes, axis=1), fill)


def check_steps(steps: Sequence[Step]) -> None:
    """Raise what `draw_operations` would for these steps."""
    nobody = np.zeros(0, np.int64)
    draw_operations(steps, nobody, nobody, seed=0, epoch=0, height=1, width=1)


def mirrors_alike(steps: Sequence[Step]) -> bool:
    """Whether the steps do the same to an image's mirror image, so that it may be flipped after them."""
    return not any(isinstance(step, TrivialAugmentWide | RandAugment | AutoAugment) for step in steps)


def augment_(images: torch.Tensor, operations: Operations, pool: Any) -> torch.Tensor:
    """Do the operations, in place, on the CPU, and return the images.

    The results are bit for bit those of Pillow, called as by ``torchvision.transforms``.

    Args:
        images: [N, H, W, 3] uint8, contiguous.
        operations: for N samples.
        pool: the extension's threads, such as ``Finish.pool``.

    Raises:
        TypeError: for kinds or magnitudes of another dtype than uint8 and float32.
        ValueError: for images of another shape, dtype, layout or device; for an unknown kind; for a magnitude that is
            not finite, a hue outside -0.5 to 0.5, or a number of bits outside 1 to 8.
    """
    extension().augment(pool, *_arguments(images, operations), None)
    return images


def submit_augment_(images: torch.Tensor, operations: Operations, pool: Any) -> Any:
    """Begin to do the operations, in place, in background threads.

    Args:
        images: as for `augment_`; to be read after ``ticket.wait()`` only.
        operations: likewise.
        pool: likewise.

    Returns:
        A ticket, which keeps the memory alive.

    Raises:
        TypeError: as `augment_`.
        ValueError: likewise.
    """
    return extension().augment(pool, *_arguments(images, operations), images)


def _arguments(images: torch.Tensor, operations: Operations) -> tuple[Any, ...]:
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[3] != 3:
        raise ValueError(f"images are {images.dtype} {list(images.shape)}; expected torch.uint8 [N, H, W, 3]")
    if images.device.type != "cpu" or not images.is_contiguous():
        raise ValueError(
            f"images are on {images.device} with strides {images.stride()}; expected a contiguous CPU tensor"
        )
    check_storage("images", images)
    if operations.kind.shape[:1] != images.shape[:1]:
        raise ValueError(f"operations are for {len(operations.kind)} samples, but there are {len(images)} images")
    if not images.is_inference():
        torch.autograd.graph.increment_version(images)  # they are written to where autograd does not see it
    return images.data_ptr(), tuple(images.shape[:3]), operations.kind, operations.magnitude, operations.fill


# Philox's key and the last two words of a counter, epoch and purpose << 16 | attempt, are shared with plan.py and
# mix.py, whose purposes lie below 0x200. Each class of step has 16, for as many steps of that class.
_PURPOSES: dict[type[Step], int] = {
    RandomHorizontalFlip: 0x200,
    RandomVerticalFlip: 0x210,
    RandomGrayscale: 0x220,
    ColorJitter: 0x230,
    TrivialAugmentWide: 0x240,
    RandAugment: 0x250,
    AutoAugment: 0x260,
}


def _purpose(step: Step, before: int) -> int:
    if type(step) not in _PURPOSES:
        names = ", ".join(cls.__name__ for cls in _PURPOSES)
        raise TypeError(f"a step is {type(step).__name__}; expected one of {names}")
    if before >= 16:
        raise ValueError(f"there are more than 16 steps of class {type(step).__name__}; expected at most 16 of each")
    return _PURPOSES[type(step)] + before


def _draw(
    seed: int,
    epoch: int,
    indices: npt.NDArray[np.int64],
    copies: npt.NDArray[np.int64],
    purpose: int,
    attempts: int,
) -> Float64:
    """Return [N, attempts, 4] uniform numbers in [0, 1)."""
    counter = np.empty((len(indices), attempts, 4), np.uint32)
    counter[..., 0] = indices[:, None]
    counter[..., 1] = copies[:, None]
    counter[..., 2] = epoch & 0xFFFFFFFF
    counter[..., 3] = purpose << 16 | np.arange(attempts)
    return uniform(philox(seed, counter))


_Drawn = tuple[npt.NDArray[Any], npt.NDArray[Any]]  # kind and magnitude, [N, K of the step]


def _draw_step(step: Step, draw: Callable[[int], Float64], height: int, width: int) -> _Drawn:
    if isinstance(step, ColorJitter):
        return _draw_color_jitter(step, draw(2))
    if isinstance(step, TrivialAugmentWide):
        u = draw(1)[:, 0]
        space = trivial_augment_space(step.num_magnitude_bins)
        choice = _integers(u[:, 0], len(space.kind))
        chosen = space.magnitude[choice, _integers(u[:, 1], step.num_magnitude_bins), _integers(u[:, 2], 2)]
        return space.kind[choice, None], chosen[:, None]
    if isinstance(step, RandAugment):
        u = draw(step.num_ops)
        space = rand_augment_space(step.num_magnitude_bins, height, width)
        choice = _integers(u[..., 0], len(space.kind))
        return space.kind[choice], space.magnitude[choice, step.magnitude, _integers(u[..., 1], 2)]
    if isinstance(step, AutoAugment):
        u = draw(2)
        policy = auto_augment_policy(step.policy, height, width)
        pair = _integers(u[:, 0, 0], len(policy.kind))
        done = u[:, 0, 1:3] < policy.probability[pair]
        magnitude = policy.magnitude[pair[:, None], np.arange(2), _integers(u[:, 1, :2], 2)]
        return policy.kind[pair] * done, magnitude * done
    done = draw(1)[:, 0, :1] < step.p
    return done * FIXED_KINDS[type(step)].value, np.zeros(done.shape)


def _draw_color_jitter(step: ColorJitter, u: Float64) -> _Drawn:
    ranges = step.ranges()
    columns = [kind - Kind.BRIGHTNESS for kind in ranges]  # so that a factor's draws are its own
    low, high = np.array(list(ranges.values())).reshape(-1, 2).T
    factors = low + u[:, 0, columns] * (high - low)
    # Sorting by independent keys is a uniform permutation.
    order = np.argsort(u[:, 1, columns], axis=1, kind="stable")
    return np.array(list(ranges), np.uint8)[order], np.take_along_axis(factors, order, axis=1)


def _integers(u: Float64, count: int) -> npt.NDArray[np.int64]:
    """Map uniform numbers in [0, 1) to 0 .. count - 1, equally often."""
    return (u * count).astype(np.int64)


def _check_range(name: str, values: npt.NDArray[np.int64], largest: int) -> None:
    if values.size and not 0 <= int(values.min()) <= int(values.max()) <= largest:
        raise ValueError(f"{name} are from {values.min()} to {values.max()}; expected 0 to {largest}")


def _jitter(name: str, value: Any) -> float | tuple[float, float]:
    """Return a number, or a pair of them, as Python's."""
    if is_number(value):
        if value < 0:
            raise ValueError(f"ColorJitter: {name} is {value!r}; expected 0 or more, or a pair (low, high)")
        return float(value)
    pair = listed(value)
    if not isinstance(pair, tuple | list) or len(pair) != 2 or not all(map(is_number, pair)):
        raise TypeError(f"ColorJitter: {name} is {value!r}; expected a number or a pair (low, high)")
    return float(pair[0]), float(pair[1])


def _jitter_range(
    name: str, value: float | tuple[float, float], centre: float, bounds: tuple[float, float]
) -> tuple[float, float]:
    if isinstance(value, tuple):
        low, high = value
    else:
        # A factor's range ends at 0; a hue of more than half a turn is an error.
        low, high = centre - value, centre + value
        if name != "hue":
            low = max(low, 0.0)
    if not bounds[0] <= low <= high <= bounds[1]:
        expected = "-0.5 <= low <= high <= 0.5" if name == "hue" else "0 <= low <= high, both finite"
        raise ValueError(f"ColorJitter: {name} is {value!r}, a range from {low} to {high}; expected {expected}")
    return low, high


def _fill_levels(owner: str, fill: Fill) -> tuple[int, int, int]:
    return rgb_fill(owner, 0 if fill is None else fill)


def common_fill(steps: Sequence[Step]) -> tuple[int, int, int]:
    """Return the levels that all of these steps fill with, and 0 if none does.

    Raises:
        ValueError: if they differ.
    """
    with_fill = [s for s in steps if isinstance(s, TrivialAugmentWide | RandAugment | AutoAugment)]
    fills = {_fill_levels(type(step).__name__, step.fill) for step in with_fill}
    if len(fills) > 1:
        raise ValueError(f"the steps have different fills, {' and '.join(map(str, sorted(fills)))}; give all the same")
    return next(iter(fills), (0, 0, 0))
