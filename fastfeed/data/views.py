"""Views: several crops of each sample, for test-time augmentation."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastfeed.data.declarations import flag, listed, replace_values, whole
from fastfeed.data.plan import Int64, Plan, resized_sizes, windows_to_resize
from fastfeed.data.transforms import CenterCrop, Transform, output_size


@dataclass(frozen=True)
class TTA:
    """Test-time augmentation: several views of each image, for predictions that are averaged.

    A loader with it gives images [N, V, 3, H, W]: of each of N samples V views, one for each of the scales, flips and
    crops, the crops changing fastest. Five crops are those of ``torchvision.transforms.FiveCrop``, in its order: the
    corners (top left, top right, bottom left, bottom right) and the centre; with `horizontal_flip` those of
    ``TenCrop``: of the image, then of its mirror image. An image is decoded once on the CPU, and for each view on a
    GPU.

    Sources: ten crops, Krizhevsky et al., NeurIPS 2012; several scales, Simonyan and Zisserman, ICLR 2015.

    Args:
        crops: 1, the centre, or 5.
        horizontal_flip: the mirror image too.
        vertical_flip: likewise, top to bottom; with both there are four.
        scales: lengths that the short side is resized to, in pixels, each at least the transform's size; one number, or
            several. None is the transform's own.

    Raises:
        TypeError: for a number or a flag of another type.
        ValueError: for another number of crops, no scales, or a scale below 1.
    """

    crops: int = 1
    horizontal_flip: bool = False
    vertical_flip: bool = False
    scales: int | Sequence[int] | None = None

    def __post_init__(self) -> None:
        crops = whole("TTA: crops", self.crops, 1)
        if crops not in (1, 5):
            raise ValueError(f"TTA: crops is {crops}; expected 1, the centre, or 5, the corners too")
        scales = listed(self.scales)
        if scales is not None:
            scales = tuple(scales) if isinstance(scales, tuple | list) else (scales,)
            scales = tuple(whole("TTA: scales", scale, 1) for scale in scales)
            if not scales:
                raise ValueError("TTA: scales is empty; expected lengths of the short side, or None")
        replace_values(
            self,
            crops=crops,
            horizontal_flip=flag("TTA: horizontal_flip", self.horizontal_flip),
            vertical_flip=flag("TTA: vertical_flip", self.vertical_flip),
            scales=scales,
        )

    @property
    def views(self) -> int:
        """V, how many views there are of a sample."""
        scales = self.scales
        return (
            self.crops
            * (1 + self.horizontal_flip)
            * (1 + self.vertical_flip)
            * len(scales if isinstance(scales, tuple) else (None,))
        )

    def check(self, transform: Transform) -> None:
        """Raise ValueError for a transform without views, or with flips or erasing, which they would not share."""
        crop = transform.crop
        if not isinstance(crop, CenterCrop) or crop.resize is None:
            raise ValueError(
                f"tta takes a transform with a CenterCrop of the resized image, as fastfeed.transforms.eval(224); its "
                f"crop is {crop!r}"
            )
        if transform.horizontal_flip or transform.vertical_flip or transform.erase is not None:
            raise ValueError("tta takes a transform without random flips and erasing, as fastfeed.transforms.eval(224)")
        scales = self.scales if isinstance(self.scales, tuple) else ()
        if scales and min(scales) < max(transform.size):
            raise ValueError(
                f"TTA: scales has {min(scales)}, and the transform's windows have {transform.size[0]} x "
                f"{transform.size[1]} pixels: expected scales at least as large"
            )


def view_plan(tta: TTA, transform: Transform, plan: Plan, sizes: Int64, size: tuple[int, int]) -> Plan:
    """Return the plan of a batch's views: [N * V], those of a sample together, all from one window of its image.

    Args:
        tta: which views.
        transform: that `TTA.check` takes.
        plan: of the samples.
        sizes: [N, 2] height and width of each image, in pixels.
        size: height and width of the views.
    """
    crop, output = transform.crop, np.array(size)
    assert isinstance(crop, CenterCrop)
    assert crop.resize is not None
    flips = list(product(*((False, True)[: 1 + mirrored] for mirrored in (tta.vertical_flip, tta.horizontal_flip))))
    starts, stops, regions, corners, results, mirrors = [], [], [], [], [], []
    for scale in tta.scales if isinstance(tta.scales, tuple) else (crop.resize,):
        result = resized_sizes(scale, output_size(crop.size), sizes, output)
        for flip, position in product(flips, _POSITIONS[-tta.crops :]):
            corner = _corner(position, result, output)
            corner = np.where(flip, result - output - corner, corner)  # of the mirror image
            start, shape, box = windows_to_resize(sizes, result, corner, output, crop.interpolation)
            starts.append(start)
            stops.append(start + shape)
            regions.append(box + np.tile(start, 2))
            corners.append(corner)
            results.append(result)
            mirrors.append(np.full((len(sizes), 1), flip[1] + 2 * flip[0]))
    of_sample = np.repeat(np.arange(len(sizes)), tta.views)
    window = np.min(starts, axis=0)[of_sample]

    def of_views(values: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
        return np.stack(values, axis=1).reshape(len(of_sample), -1)

    return replace(
        plan.at(of_sample),
        start=window.astype(np.int32),
        shape=(np.max(stops, axis=0)[of_sample] - window).astype(np.int32),
        box=of_views(regions) - np.tile(window, 2),
        whole=np.concatenate([window, sizes[of_sample]], axis=1),
        resized=np.concatenate([of_views(corners), of_views(results)], axis=1),
        flip=of_views(mirrors)[:, 0].astype(np.int32),
    )


def average_logits(logits: torch.Tensor, views: int) -> torch.Tensor:
    """Return the mean of what a model says to each sample's views.

    Example::

        for images, target in loader:  # images: [N, V, 3, H, W]
            logits = fastfeed.average_logits(model(images.flatten(0, 1)), views=images.shape[1])

    Args:
        logits: [N * V, ...] of a floating-point dtype, those of a sample together. Give probabilities instead, by
            ``softmax(-1)``, to have those averaged.
        views: V, at least 1.

    Returns:
        [N, ...] of the dtype of `logits`, or float32 where that is narrower.

    Raises:
        ValueError: for a number of rows that does not go up in `views`.
    """
    if views < 1 or len(logits) % views:
        raise ValueError(f"logits has {len(logits)} rows, which do not go up in {views} views")
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return wide.unflatten(0, (-1, views)).mean(dim=1)


# Whether a crop lies at the end of an axis, height and width; None for its middle. FiveCrop's order.
_POSITIONS = ((False, False), (False, True), (True, False), (True, True), None)


def _corner(position: tuple[bool, bool] | None, result: Int64, output: Int64) -> Int64:
    """Return [N, 2], top and left of a crop in images of the sizes `result`."""
    if position is None:
        return np.rint((result - output) / 2).astype(np.int64)
    return (result - output) * np.array(position)
