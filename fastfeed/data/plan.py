"""What happens to each sample: a function of (seed, epoch, sample index), drawn for a whole batch at once."""

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from fastfeed.data.philox import Float64, philox, uniform
from fastfeed.data.transforms import CenterCrop, RandomResizedCrop, Transform

# One number per random decision. A new decision takes a new number, so that old ones keep their draws.
_CROP, _FLIP = 0, 1

_ATTEMPTS = 10  # of RandomResizedCrop, as in torchvision


@dataclass(frozen=True)
class Plan:
    """The parameters of a batch of N samples, in pixels of the stored images.

    Attributes:
        start: [N, 2] int32, top and left of the window that is decoded.
        shape: [N, 2] int32, height and width of that window.
        roi_start: [N, 2] float32, top and left, inside the window, of the region that becomes the output.
        roi_end: [N, 2] float32, bottom and right of that region.
        flip: [N] bool, whether to mirror left to right.
    """

    start: npt.NDArray[np.int32]
    shape: npt.NDArray[np.int32]
    roi_start: npt.NDArray[np.float32]
    roi_end: npt.NDArray[np.float32]
    flip: npt.NDArray[np.bool_]

    def at(self, samples: slice) -> "Plan":
        """Return the parameters of some of the samples."""
        return Plan(*(getattr(self, field.name)[samples] for field in fields(self)))


def make_plan(
    transform: Transform,
    sizes: npt.NDArray[np.int64],
    indices: npt.NDArray[np.int64],
    *,
    seed: int,
    epoch: int,
) -> Plan:
    """Draw the parameters of a batch.

    Args:
        transform: what to draw from.
        sizes: [N, 2] height and width of each image, in pixels.
        indices: [N] index of each sample in its dataset; together with `seed` and `epoch` it decides every draw.
        seed: 64 bits.
        epoch: 32 bits.
    """
    if isinstance(transform.crop, RandomResizedCrop):
        start, shape = _random_windows(transform.crop, sizes, _draw(seed, epoch, indices, _CROP, _ATTEMPTS))
        # torchvision crops before it resizes: the filter sees nothing outside the window.
        roi_start, roi_end = np.zeros_like(start, np.float32), shape.astype(np.float32)
    else:
        start, shape, roi_start, roi_end = _center_windows(transform.crop, sizes)
    flip = _draw(seed, epoch, indices, _FLIP, 1)[:, 0, 0] < transform.horizontal_flip
    return Plan(start.astype(np.int32), shape.astype(np.int32), roi_start, roi_end, flip)


def _draw(seed: int, epoch: int, indices: npt.NDArray[np.int64], purpose: int, attempts: int) -> Float64:
    """Return [N, attempts, 4] uniform numbers in [0, 1)."""
    counter = np.empty((len(indices), attempts, 4), np.uint32)
    counter[..., 0] = (indices & 0xFFFFFFFF)[:, None]
    counter[..., 1] = (indices >> 32)[:, None]
    counter[..., 2] = epoch & 0xFFFFFFFF
    counter[..., 3] = purpose << 16 | np.arange(attempts)
    return uniform(philox(seed, counter))


def _random_windows(
    crop: RandomResizedCrop, sizes: npt.NDArray[np.int64], draws: Float64
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
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
    free_y, free_x = sizes[:, 0] - h + 1, sizes[:, 1] - w + 1
    top = np.floor(draws[rows, first, 2] * free_y).astype(np.int64)
    left = np.floor(draws[rows, first, 3] * free_x).astype(np.int64)

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


def _center_windows(
    crop: CenterCrop, sizes: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    short = sizes.min(axis=1, keepdims=True)
    resized = crop.resize * sizes // short  # torchvision: int(resize * long / short)
    offset = np.rint((resized - crop.size) / 2.0)
    begin, end = offset * sizes / resized, (offset + crop.size) * sizes / resized
    # The window was resized with the rest of the image around it, so the filter reads beyond its edges: as far
    # as the triangle filter reaches, one output pixel, and at least one input pixel.
    reach = np.maximum(sizes / resized, 1.0)
    start = np.maximum(np.floor(begin - reach), 0).astype(np.int64)
    stop = np.minimum(np.ceil(end + reach), sizes).astype(np.int64)
    return start, stop - start, (begin - start).astype(np.float32), (end - start).astype(np.float32)
