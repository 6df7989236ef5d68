"""What happens to each sample: a function of (seed, epoch, sample index, copy), drawn for a whole batch at once."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
from PIL.Image import Resampling

from fastfeed.data.augment import Operations, draw_operations, join_operations
from fastfeed.data.philox import Float64, Uint32, philox, uniform
from fastfeed.data.policies import Kind
from fastfeed.data.steps import mirrors_alike
from fastfeed.data.transforms import (
    RANDOM_INTERPOLATIONS,
    CenterCrop,
    Crop,
    RandomCrop,
    RandomErasing,
    RandomResizedCrop,
    Size,
    Transform,
    output_size,
)

# One number per random decision. A new decision takes a new number, so that old ones keep their draws. mix.py has those
# from 0x100, augment.py those from 0x200.
_CROP, _FLIP, _ERASE, _WHETHER_TO_ERASE, _NOISE, _INTERPOLATION = range(6)

_ATTEMPTS = 10  # of RandomResizedCrop and RandomErasing, as in torchvision

_REACH = {"bilinear": 1, "bicubic": 2, "lanczos": 3}  # of the filters, in pixels of the output

Int64 = npt.NDArray[np.int64]
_Draw = Callable[..., Float64]  # of a purpose: [N, attempts, 4] uniform numbers in [0, 1)


@dataclass(frozen=True)
class Plan:
    """The parameters of a batch of N samples.

    Attributes:
        start: [N, 2] int32, top and left of the window that is decoded, in pixels of the stored image.
        shape: [N, 2] int32, height and width of that window.
        box: [N, 4] float64, top, left, bottom and right, inside the window, of the region that becomes the output.
        whole: [N, 4] int64, top and left of the window in the image that is resized, and that image's height and width:
            the stored one's, or the window's own, where it is cropped before.
        resized: [N, 4] int64, top and left of the output in what that image is resized to, and its height and width.
        filter: [N] int64, of ``PIL.Image.Resampling``.
        place: [N, 4] int32, top, left, height and width of where in the output it goes: all of it, but for images that
            are padded.
        flip: [N] int32, 1 left to right, 2 top to bottom, 3 both.
        erase: [N, 4] int32, top, left, height and width, in pixels of the output, of what is erased; zeros for nothing.
        noise_key: [N] uint64, of the noise that erased pixels become.
    """

    start: npt.NDArray[np.int32]
    shape: npt.NDArray[np.int32]
    box: Float64
    whole: Int64
    resized: Int64
    filter: Int64
    place: npt.NDArray[np.int32]
    flip: npt.NDArray[np.int32]
    erase: npt.NDArray[np.int32]
    noise_key: npt.NDArray[np.uint64]

    def at(self, samples: slice | Int64) -> "Plan":
        """Return the parameters of some of the samples."""
        return Plan(*(getattr(self, field.name)[samples] for field in fields(self)))


def make_plan(
    transform: Transform,
    sizes: Int64,
    indices: Int64,
    copies: Int64 | None = None,
    *,
    seed: int,
    epoch: int,
    size: tuple[int, int] | None = None,
) -> Plan:
    """Draw the parameters of a batch.

    Args:
        transform: what to draw from.
        sizes: [N, 2] height and width of each image, in pixels; for a RandomCrop, such that `too_small` says no.
        indices: [N] index of each sample in its dataset, 32 bits.
        copies: [N] which of an epoch's copies of the sample this is, 32 bits; 0 by default. Together with the index,
            `seed` and `epoch` it decides every draw.
        seed: 64 bits.
        epoch: 32 bits.
        size: height and width of the output instead of the transform's.
    """
    n = len(indices)
    height, width = size or transform.size
    copies = np.zeros(n, np.int64) if copies is None else copies

    def draw(purpose: int, attempts: int = 1) -> Float64:
        return uniform(_words(seed, epoch, indices, copies, purpose, attempts))

    crop, output = transform.crop, np.array([height, width])
    origin, place = np.zeros((n, 2), np.int64), np.tile([0, 0, height, width], (n, 1))
    if isinstance(crop, RandomCrop | CenterCrop) and crop.resize is not None:
        results = resized_sizes(crop.resize, output_size(crop.size), sizes, output)
        corner = _corners(crop, results, draw, output)
        start, shape, box = windows_to_resize(sizes, results, corner, output, crop.interpolation)
        whole, resized = np.concatenate([start, sizes], axis=1), np.concatenate([corner, results], axis=1)
    else:
        if isinstance(crop, RandomResizedCrop):
            start, shape = _random_windows(crop, sizes, draw(_CROP, _ATTEMPTS))
        elif isinstance(crop, RandomCrop | CenterCrop):
            start, shape, place = _padded_windows(_corners(crop, sizes, draw, output), sizes, output)
        else:
            start, shape = origin, sizes
        # The window is cropped before it is resized: the filter sees nothing outside of it.
        whole = np.concatenate([origin, shape], axis=1)
        box, resized = whole.astype(np.float64), np.tile([0, 0, height, width], (n, 1))
    flip = draw(_FLIP)[:, 0]
    erase = np.zeros((n, 4), np.int64)
    if transform.erase is not None:
        assert isinstance(transform.erase, RandomErasing)
        chosen = draw(_WHETHER_TO_ERASE)[:, 0, 0] < transform.erase.p
        erase = _erased(transform.erase, height, width, draw(_ERASE, _ATTEMPTS)) * chosen[:, None]
    return Plan(
        start.astype(np.int32),
        shape.astype(np.int32),
        box,
        whole.astype(np.int64),
        resized.astype(np.int64),
        _filters(crop, n, draw),
        place.astype(np.int32),
        (flip[:, 0] < transform.horizontal_flip) + 2 * (flip[:, 1] < transform.vertical_flip).astype(np.int32),
        erase.astype(np.int32),
        _words(seed, epoch, indices, copies, _NOISE, 1).view(np.uint64)[:, 0, 0],
    )


def blank(plan: Plan, samples: Sequence[int] | Int64) -> None:
    """Make `samples`, whose images are bad, decode the one pixel of `graph.BLANK` that stands in for each."""
    plan.start[samples], plan.shape[samples] = 0, 1
    plan.box[samples] = plan.whole[samples] = 0, 0, 1, 1


def draw_augmentations(
    transform: Transform,
    plan: Plan,
    indices: Int64,
    copies: Int64,
    *,
    seed: int,
    epoch: int,
    size: tuple[int, int],
) -> Operations | None:
    """Draw what is done to a batch's pixels between the crop and the normalising; None where that is nothing.

    Auto-augment shears and turns what was flipped before: its flips are operations then, and leave the plan.

    Raises:
        ValueError: for a blur whose kernel is too large for images of this size, height and width.
    """
    steps = transform.steps
    if not steps:
        return None
    height, width = size
    drawn = draw_operations(steps, indices, copies, seed=seed, epoch=epoch, height=height, width=width)
    if mirrors_alike(steps):
        return drawn
    flips = np.stack([plan.flip & 1, plan.flip & 2], axis=1) > 0
    kind = np.where(flips, [Kind.HORIZONTAL_FLIP, Kind.VERTICAL_FLIP], Kind.NOTHING).astype(np.uint8)
    plan.flip[:] = 0
    return join_operations(
        [Operations(kind, np.zeros(flips.shape, np.float32), drawn.fill, bilinear=drawn.bilinear), drawn]
    )


def too_small(transform: Transform, sizes: Int64, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Return [N], whether an image is smaller than the window, height and width, that the transform wants of it."""
    crop = transform.crop
    if not isinstance(crop, RandomCrop) or crop.pad_if_needed or crop.resize is not None:
        return np.zeros(len(sizes), np.bool_)
    smaller = sizes + 2 * crop.padding < size
    return smaller[:, 0] | smaller[:, 1]


def _words(seed: int, epoch: int, indices: Int64, copies: Int64, purpose: int, attempts: int) -> Uint32:
    """Return [N, attempts, 4] random words."""
    counter = np.empty((len(indices), attempts, 4), np.uint32)
    counter[..., 0] = indices[:, None]
    counter[..., 1] = copies[:, None]
    counter[..., 2] = epoch & 0xFFFFFFFF
    counter[..., 3] = purpose << 16 | np.arange(attempts)
    return philox(seed, counter)


def _random_windows(crop: RandomResizedCrop, sizes: Int64, draws: Float64) -> tuple[Int64, Int64]:
    height, width = sizes[:, :1], sizes[:, 1:]
    low, high = np.log(crop.ratio[0]), np.log(crop.ratio[1])
    area = height * width * (crop.scale[0] + draws[..., 0] * (crop.scale[1] - crop.scale[0]))
    ratio = np.exp(low + draws[..., 1] * (high - low))
    w = np.rint(np.sqrt(area * ratio)).astype(np.int64)
    h = np.rint(np.sqrt(area / ratio)).astype(np.int64)
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)

    rows = np.arange(len(sizes))
    first = fits.argmax(axis=1)  # the first attempt that fits; 0 if none does, replaced below
    h, w = h[rows, first], w[rows, first]
    top = _below(draws[rows, first, 2], sizes[:, 0] - h + 1)
    left = _below(draws[rows, first, 3], sizes[:, 1] - w + 1)

    none = ~fits.any(axis=1)
    if none.any():
        image_ratio = sizes[:, 1] / sizes[:, 0]
        # An image narrower than the range keeps its width, a wider one its height, one inside it both.
        fallback_h = np.where(image_ratio < crop.ratio[0], np.rint(sizes[:, 1] / crop.ratio[0]), sizes[:, 0])
        fallback_w = np.where(image_ratio > crop.ratio[1], np.rint(sizes[:, 0] * crop.ratio[1]), sizes[:, 1])
        h = np.where(none, np.clip(fallback_h, 1, sizes[:, 0]), h).astype(np.int64)
        w = np.where(none, np.clip(fallback_w, 1, sizes[:, 1]), w).astype(np.int64)
        top = np.where(none, (sizes[:, 0] - h) // 2, top)
        left = np.where(none, (sizes[:, 1] - w) // 2, left)
    return np.stack([top, left], axis=1), np.stack([h, w], axis=1)


def resized_sizes(resize: Size, declared: tuple[int, int], sizes: Int64, output: Int64) -> Int64:
    """Return [N, 2], what the images are resized to before a window of `output` is cut out of them.

    `resize` is for windows of the `declared` size; for others it is changed in proportion, and never below theirs.
    """
    if isinstance(resize, tuple):
        sides = [round(r * o / d) for r, o, d in zip(resize, output.tolist(), declared, strict=True)]
        return np.tile(sides, (len(sizes), 1))
    short = max(round(resize * output[0] / declared[0]), *output)
    return short * sizes // sizes.min(axis=1, keepdims=True)  # torchvision: int(resize * long / short)


def _corners(crop: RandomCrop | CenterCrop, sizes: Int64, draw: _Draw, output: Int64) -> Int64:
    """Return [N, 2], top and left of the windows in images of `sizes`; negative where they begin in the padding."""
    if isinstance(crop, CenterCrop):
        # As torchvision: what is missing is added on both sides, less before than behind; halves round to even.
        return np.where(sizes < output, (sizes - output + 1) // 2, np.rint((sizes - output) / 2)).astype(np.int64)
    padding = np.full_like(sizes, crop.padding)
    if crop.pad_if_needed:
        # As torchvision: on both sides by all that is missing.
        padding += np.maximum(output - (sizes + 2 * padding), 0)
    return _below(draw(_CROP)[:, 0, :2], sizes + 2 * padding - output + 1) - padding


def windows_to_resize(
    sizes: Int64, results: Int64, corner: Int64, output: Int64, interpolation: str
) -> tuple[Int64, Int64, Float64]:
    """Return which windows of the images are needed for windows of `output` of what they are resized to."""
    begin, end = corner * sizes / results, (corner + output) * sizes / results
    # The window is resized with the rest of the image around it, so the filter reads beyond its edges: some pixels of
    # the output, and at least as many of the input.
    reach = _REACH[interpolation] * np.maximum(sizes / results, 1.0)
    start = np.maximum(np.floor(begin - reach), 0).astype(np.int64)
    stop = np.minimum(np.ceil(end + reach), sizes).astype(np.int64)
    box = np.concatenate([begin - start, np.minimum(end - start, stop - start)], axis=1)
    return start, stop - start, box


def _padded_windows(corner: Int64, sizes: Int64, output: Int64) -> tuple[Int64, Int64, Int64]:
    """Return where the windows begin in the images, how much of the images they hold, and where that goes."""
    start, stop = np.clip(corner, 0, sizes - 1), np.clip(corner + output, 1, sizes)
    # A window that misses the image, beyond a padding wider than itself, still needs a pixel to be decoded: none of it
    # is placed.
    missed = ((corner >= sizes) | (corner + output <= 0)).any(axis=1, keepdims=True)
    shape = np.maximum(stop - start, 1)
    place = np.concatenate([start - corner, shape], axis=1) * ~missed
    return start, np.where(missed, 1, shape), place


def _filters(crop: Crop, n: int, draw: _Draw) -> Int64:
    """Return [N], of ``PIL.Image.Resampling``."""
    if crop.interpolation != "random":
        return np.full(n, Resampling[crop.interpolation.upper()], np.int64)
    filters = np.array([Resampling[name.upper()] for name in RANDOM_INTERPOLATIONS], np.int64)
    return filters[_below(draw(_INTERPOLATION)[:, 0, 0], len(filters))]


def _erased(erasing: RandomErasing, height: int, width: int, draws: Float64) -> Int64:
    """Return [N, 4]: the first of the attempted rectangles that is smaller than the image, or zeros."""
    area = height * width * (erasing.scale[0] + draws[..., 0] * (erasing.scale[1] - erasing.scale[0]))
    low, high = math.log(erasing.ratio[0]), math.log(erasing.ratio[1])
    ratio = np.exp(low + draws[..., 1] * (high - low))
    h = np.rint(np.sqrt(area * ratio)).astype(np.int64)
    w = np.rint(np.sqrt(area / ratio)).astype(np.int64)
    fits = (h < height) & (w < width)
    rows = np.arange(len(draws))
    first = fits.argmax(axis=1)
    h, w = h[rows, first], w[rows, first]
    top, left = _below(draws[rows, first, 2], height - h + 1), _below(draws[rows, first, 3], width - w + 1)
    return np.stack([top, left, h, w], axis=1) * fits.any(axis=1, keepdims=True)


def _below(draws: Float64, end: Int64 | int) -> Int64:
    """Return whole numbers, uniform from 0 to `end` - 1."""
    return np.floor(draws * end).astype(np.int64)
