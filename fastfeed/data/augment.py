"""Colour and geometry of uint8 images: what is drawn for each sample, and doing it on the CPU.

The steps that the user asks for (steps.py) become a short sequence of operations for each sample, a `Kind` and a
magnitude each. They are done in C++ (`augment_`) or by DALI (augment_dali.py), after the resize and before the last
pass.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastfeed._extension import extension
from fastfeed.data.declarations import replace_values
from fastfeed.data.finish import check_storage
from fastfeed.data.philox import Float64, philox, uniform
from fastfeed.data.policies import Kind, auto_augment_policy, rand_augment_space, trivial_augment_space
from fastfeed.data.steps import (
    FIXED_KINDS,
    AutoAugment,
    ColorJitter,
    GaussianBlur,
    RandAugment,
    RandomAdjustSharpness,
    RandomApply,
    RandomAutocontrast,
    RandomEqualize,
    RandomGrayscale,
    RandomHorizontalFlip,
    RandomInvert,
    RandomPosterize,
    RandomSolarize,
    RandomVerticalFlip,
    Step,
    TrivialAugmentWide,
    common_fill,
    common_interpolation,
)

_UINT32 = 0xFFFFFFFF


@dataclass(frozen=True)
class Operations:
    """What is done to each of N samples: up to K operations, one after the other.

    Attributes:
        kind: [N, K] uint8, of `Kind`.
        magnitude: [N, K] float32, in the unit of the kind; 0 for kinds that have none.
        fill: R, G and B, 0 to 255, of pixels that come from outside of an image.
        kernel_size: [N, K, 2] int32, height and width, in pixels, of the kernels of blurs; it means nothing for other
            kinds. 0 by default.
        bilinear: whether pixels of sheared and rotated images are interpolated, or the nearest ones.
    """

    kind: npt.NDArray[np.uint8]
    magnitude: npt.NDArray[np.float32]
    fill: tuple[int, int, int] = (0, 0, 0)
    kernel_size: npt.NDArray[np.int32] = None  # type: ignore[assignment]  # never that: see __post_init__
    bilinear: bool = False

    def __post_init__(self) -> None:
        if self.kernel_size is None:
            replace_values(self, kernel_size=np.zeros((*self.kind.shape, 2), np.int32))

    def at(self, samples: slice | npt.NDArray[np.int64]) -> "Operations":
        """Return the operations of some of the samples."""
        return Operations(
            self.kind[samples], self.magnitude[samples], self.fill, self.kernel_size[samples], self.bilinear
        )


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
    and a `RandomGrayscale` before it changes nothing; nor does it matter that a `RandomApply` holds it.

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
        ValueError: for an index or copy outside of its range, more than 16 steps of one class, steps with different
            fills or interpolations, or a blur whose kernel is too large for the images.
    """
    indices, copies = np.asarray(indices, np.int64), np.asarray(copies, np.int64)
    _check_range("indices", indices, _UINT32)
    _check_range("copies", copies, _UINT32)
    fill, bilinear = common_fill(steps), common_interpolation(steps) == "bilinear"
    seen: Counter[type[Step]] = Counter()

    def draw(step: Step) -> Operations:
        purpose = _purpose(step, seen[type(step)])
        seen[type(step)] += 1

        def numbers(attempts: int) -> Float64:
            return _draw(seed, epoch, indices, copies, purpose, attempts)

        if isinstance(step, RandomApply):
            drawn, done = draw_all(step.transforms), numbers(1)[:, 0, :1] < step.p
            return Operations(drawn.kind * done, drawn.magnitude * done, fill, drawn.kernel_size, bilinear)
        kind, magnitude = _draw_step(step, numbers, height, width)
        kernel_size = np.zeros((*kind.shape, 2), np.int32)
        if isinstance(step, GaussianBlur):
            kernel_size[:] = _fitting_kernel(step, height, width)
        return Operations(kind.astype(np.uint8), magnitude.astype(np.float32), fill, kernel_size, bilinear)

    def draw_all(steps: Sequence[Step]) -> Operations:
        nothing = np.zeros((len(indices), 0), np.uint8), np.zeros((len(indices), 0), np.float32)
        return join_operations([Operations(*nothing, fill, bilinear=bilinear), *map(draw, steps)])

    return draw_all(steps)


def join_operations(parts: Sequence[Operations]) -> Operations:
    """Return the operations of all parts, for the same samples, with one fill and interpolation, in their order."""
    return Operations(
        np.concatenate([part.kind for part in parts], axis=1),
        np.concatenate([part.magnitude for part in parts], axis=1),
        parts[0].fill,
        np.concatenate([part.kernel_size for part in parts], axis=1),
        parts[0].bilinear,
    )


def check_steps(steps: Sequence[Step], height: int, width: int) -> None:
    """Raise what `draw_operations` would for these steps, and images of this size."""
    nobody = np.zeros(0, np.int64)
    draw_operations(steps, nobody, nobody, seed=0, epoch=0, height=height, width=width)


def augment_(images: torch.Tensor, operations: Operations, pool: Any) -> torch.Tensor:
    """Do the operations, in place, on the CPU, and return the images.

    The results are bit for bit those of Pillow, called as by ``torchvision.transforms``. Blurs torchvision does itself:
    of their levels two in 100,000 are the next one, or up to one in 2,000 where an image has two levels alone.

    Args:
        images: [N, H, W, 3] uint8, contiguous.
        operations: for N samples.
        pool: the extension's threads, such as ``Finish.pool``.

    Raises:
        TypeError: for kinds, magnitudes or kernel sizes of another dtype than uint8, float32 and int32.
        ValueError: for images of another shape, dtype, layout or device; for an unknown kind; for a magnitude that is
            not finite, a hue outside -0.5 to 0.5, a number of bits outside 1 to 8, or a blur's sigma that is not
            positive; for a blur's kernel of an even size, or one that is too large for the images.
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
    of = operations
    return images.data_ptr(), tuple(images.shape[:3]), of.kind, of.magnitude, of.kernel_size, of.fill, of.bilinear


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
    GaussianBlur: 0x270,
    RandomInvert: 0x280,
    RandomPosterize: 0x290,
    RandomSolarize: 0x2A0,
    RandomAdjustSharpness: 0x2B0,
    RandomAutocontrast: 0x2C0,
    RandomEqualize: 0x2D0,
    RandomApply: 0x2E0,
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
    u = draw(1)[:, 0, :1]
    if isinstance(step, GaussianBlur):
        low, high = step.range
        return np.full(u.shape, Kind.GAUSSIAN_BLUR.value), low + u * (high - low)
    assert not isinstance(step, RandomApply)  # whose draws are of other steps
    done = u < step.p
    return done * FIXED_KINDS[type(step)].value, done * _fixed_magnitude(step)


def _fixed_magnitude(step: Step) -> float:
    if isinstance(step, RandomPosterize):
        return step.bits
    if isinstance(step, RandomSolarize):
        # The levels are whole, so this is the same threshold; a float32 might be another.
        return min(max(math.ceil(step.threshold), 0), 256)
    if isinstance(step, RandomAdjustSharpness):
        return step.sharpness_factor
    return 0.0


def _fitting_kernel(blur: GaussianBlur, height: int, width: int) -> tuple[int, int]:
    """Return height and width of the kernel, or raise a ValueError for images that it reaches too far beyond."""
    kernel_height, kernel_width = blur.size
    if kernel_width >= 2 * width or kernel_height >= 2 * height:
        raise ValueError(
            f"GaussianBlur: kernel_size is {kernel_width} x {kernel_height} (width x height), too large for images of "
            f"{width} x {height} pixels to be reflected at their edges; expected at most {2 * width - 1} x "
            f"{2 * height - 1}, or larger images"
        )
    return blur.size


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
