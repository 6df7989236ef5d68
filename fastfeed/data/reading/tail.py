"""The tail of a transform, the conversion to floats and Normalize: for the last pass, and not for PyTorch's workers.

The workers get a copy of the dataset whose transform leaves images as bytes, and batches of bytes travel; the last pass
makes the same floats of them, bit for bit. Only torchvision's own datasets are copied so, for of a class of one's own
nobody knows what it does with an image after its transform.
"""

import copy
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import PIL.Image
import torch
from torch.utils.data import ConcatDataset, Subset, default_collate

from fastfeed.data.collate import PIL_CHANNELS, source_of, stacked
from fastfeed.data.finish import check_mean_std
from fastfeed.data.reading.reasons import is_changed, torchvision_class

# torchvision's classes (of 0.28) whose `__getitem__` does nothing to an image after its transform, and returns it with
# the target in a tuple of two: those that call `transform`, and those that call `transforms` for image and target.
_CALL_TRANSFORM = (
    "CIFAR10", "CLEVRClassification", "Caltech101", "Caltech256", "CelebA", "DTD", "DatasetFolder", "FER2013",
    "FGVCAircraft", "FakeData", "Flickr30k", "Flickr8k", "Flowers102", "Food101", "GTSRB", "INaturalist",
    "Imagenette", "LFWPeople", "LSUNClass", "MNIST", "Omniglot", "PCAM", "QMNIST", "RenderedSST2", "SBU", "SEMEION",
    "STL10", "SUN397", "SVHN", "StanfordCars", "USPS", "WIDERFace",
)  # fmt: skip
_CALL_TRANSFORMS = (
    "Cityscapes", "CocoDetection", "Kitti", "OxfordIIITPet", "Places365", "SBDataset", "VOCDetection",
    "VOCSegmentation",
)  # fmt: skip
_DATASETS = "torchvision.datasets"
_HOOKS = ("__getattr__", "__getattribute__", "__getitem__", "__getitems__")
_COPYING = ("__copy__", "__getstate__", "__reduce__", "__reduce_ex__", "__setstate__")
_IMAGE = ("torchvision.tv_tensors", "Image")
_CHANNELS = tuple(PIL_CHANNELS.values())


@dataclass(frozen=True)
class Scaling:
    """What becomes of a byte: (byte / 255 - mean) / std, in float32.

    Attributes:
        mean: one value per channel, or one for any number of channels.
        std: as many.
        factor: what the byte is multiplied by, and not divided by 255: 1 / 255 in version 2; see `Finish`.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    factor: float | None = None


@dataclass(frozen=True, eq=False)
class Tail:
    """The end of a transform.

    Attributes:
        transforms: the transforms, to be called one after the other.
        scaling: what they do to bytes.
        of_tensors: whether that is to uint8 tensors [C, H, W]; else it is to PIL images.
        to_default_dtype: whether the floats are of PyTorch's default dtype; else they are float32.
    """

    transforms: tuple[Callable[[Any], Any], ...]
    scaling: Scaling
    of_tensors: bool
    to_default_dtype: bool

    def __call__(self, image: Any) -> Any:
        """Do to an image what the transform's end does."""
        for transform in self.transforms:
            image = transform(image)
        return image

    @property
    def names(self) -> tuple[str, ...]:
        """The transforms' classes."""
        return tuple(type(transform).__name__ for transform in self.transforms)

    def is_scaling(self, image: Any) -> bool:
        """Whether all that is done to this image is the scaling.

        Raises:
            OSError: for a PIL image that cannot be loaded; loading closes its file.
        """
        if self.to_default_dtype and torch.get_default_dtype() is not torch.float32:
            return False
        if self.of_tensors:
            is_plain = type(image) is torch.Tensor or torchvision_class(image, ("torchvision.tv_tensors",)) == _IMAGE
            if not is_plain or image.dtype != torch.uint8 or image.dim() != 3:
                return False
            if image.device.type != "cpu" or image.layout != torch.strided:
                return False
            channels, empty = image.shape[0], image.numel() == 0
        else:
            if not isinstance(image, PIL.Image.Image) or image.mode not in PIL_CHANNELS:
                return False
            image.load()
            channels, empty = PIL_CHANNELS[image.mode], 0 in image.size
        return not empty and channels in _CHANNELS and len(self.scaling.mean) in (1, channels)


class Split(NamedTuple):
    """A dataset without its tail.

    Attributes:
        dataset: the copy, which gives images as bytes where it can, for `collate_left`.
        tail: what is left to do.
    """

    dataset: Any
    tail: Tail


class LeftBatch(NamedTuple):
    """A batch of images that were left as bytes.

    Attributes:
        images: uint8 [N, H, W, C].
        rest: what else the samples hold, collated, without the image that stands before it.
        scaling: what is left to do.
    """

    images: torch.Tensor
    rest: list[Any]
    scaling: Scaling


@dataclass(eq=False, slots=True)
class _Left:
    """An image that was left as bytes, and what is left to do."""

    image: Any
    tail: Tail


class _Leave(torch.nn.Module):
    """What stands in a tail's place: it leaves images as bytes, if the tail does no more than scale them."""

    def __init__(self, tail: Tail) -> None:
        super().__init__()
        self._tail = tail

    def forward(self, image: Any) -> Any:
        if not self._tail.is_scaling(image):
            return self._tail(image)
        # A copy, as ToTensor makes one: what gave the image may write the next one into the same memory.
        return _Left(image.clone() if self._tail.of_tensors else image.copy(), self._tail)


def split_tail(dataset: Any, collate_fn: Callable[[list[Any]], Any] | None = None) -> Split | None:
    """Return a dataset without its transform's tail.

    Args:
        dataset: one of torchvision's datasets of images, or a subclass that does not override how a sample is made,
            whose transform ends with ``ToTensor``, or ``ConvertImageDtype`` or a scaling ``ToDtype`` to float32, and
            perhaps one ``Normalize``; or a Subset or ConcatDataset of these, nested as you like, all with equal tails.
        collate_fn: what makes batches of its samples: `torch.utils.data.default_collate`, or None for it.

    Returns:
        A copy, which shares what the dataset holds; None for any other dataset, or collate function.
    """
    if collate_fn is not None and collate_fn is not default_collate:
        return None
    if isinstance(dataset, Subset) and _inherits(dataset, Subset, ("dataset", "indices")):
        inner = split_tail(dataset.dataset)
        return None if inner is None else Split(_copy(dataset, dataset=inner.dataset), inner.tail)
    if isinstance(dataset, ConcatDataset) and _inherits(dataset, ConcatDataset, ("datasets", "cumulative_sizes")):
        parts = [split for part in dataset.datasets if (split := split_tail(part)) is not None]
        same = {(part.tail.scaling, part.tail.names) for part in parts}
        if len(parts) < len(dataset.datasets) or len(same) != 1:
            return None
        return Split(_copy(dataset, datasets=[part.dataset for part in parts]), parts[0].tail)
    base = next(cls for cls in type(dataset).__mro__ if "__getitem__" in vars(cls) or cls is object)
    name = base.__name__
    if getattr(sys.modules.get(_DATASETS), name, None) is not base:
        return None
    own = vars(base)["__getitem__"]
    if getattr(own, "__globals__", {}).get("__name__") != base.__module__:  # somebody has put another function there
        return None
    if not _inherits(dataset, base, own.__code__.co_names):
        return None
    if name in _CALL_TRANSFORM:
        replaced = _replace_tail(vars(dataset).get("transform"))
        return None if replaced is None else Split(_copy(dataset, transform=replaced[0]), replaced[1])
    both = vars(dataset).get("transforms")  # of image and target
    if name not in _CALL_TRANSFORMS or torchvision_class(both, (f"{_DATASETS}.vision",)) is None:
        return None
    replaced = _replace_tail(both.transform)
    if replaced is None:
        return None
    return Split(_copy(dataset, transforms=_copy(both, transform=replaced[0])), replaced[1])


def collate_left(batch: Sequence[Any]) -> Any:
    """Collate samples as `torch.utils.data.default_collate`, of a dataset that `split_tail` made.

    Returns:
        A `LeftBatch`, if all images were left as bytes, and are of one shape; else, with all tails done, what
        `default_collate` makes. Images are in shared memory, if this is a worker.
    """
    left = [sample[0] for sample in batch if isinstance(sample[0], _Left)]
    if left and len(left) == len(batch):
        sources, shapes = zip(*(source_of(one.image) for one in left), strict=True)
        kinds = {(one.tail.scaling, one.tail.of_tensors) for one in left}
        if len(set(shapes)) == len(kinds) == 1:
            images = stacked(sources, shapes[0])
            rest = default_collate([sample[1:] for sample in batch])
            tail = left[0].tail
            return LeftBatch(images.permute(0, 2, 3, 1) if tail.of_tensors else images, rest, tail.scaling)
    return default_collate([(_done(sample[0]), *sample[1:]) for sample in batch])


def _done(image: Any) -> Any:
    return image.tail(image.image) if isinstance(image, _Left) else image


def _replace_tail(transform: Any) -> tuple[Any, Tail] | None:
    """Return a transform without its tail, which may be all of it, and the tail."""
    is_sequential = type(transform) is torch.nn.Sequential and not is_changed(transform)
    is_compose = (torchvision_class(transform) or ("", ""))[1] == "Compose"
    if not is_sequential and not is_compose:
        tail = _read_tail([transform])
        return None if tail is None else (_Leave(tail), tail)
    inner = transform if is_sequential else transform.transforms
    if not is_sequential and type(inner) not in (list, tuple):
        return None
    parts = list(inner)
    tail = _read_tail(parts)
    if tail is None:
        return None
    head = [*parts[: len(parts) - len(tail.transforms)], _Leave(tail)]
    return torch.nn.Sequential(*head) if is_sequential else _copy(transform, transforms=head), tail


def _read_tail(parts: Sequence[Any]) -> Tail | None:
    """Return the tail of transforms that follow each other, if they have one that the last pass can do."""
    found = [torchvision_class(part) or ("", "") for part in parts]
    begin = len(parts)

    def is_before(*names: str) -> bool:
        nonlocal begin
        while begin and found[begin - 1][1] == "ToPureTensor":  # which changes no values
            begin -= 1
        is_one = begin > 0 and found[begin - 1][1] in names
        begin -= is_one
        return is_one

    scaling = _read_normalize(parts[begin]) if is_before("Normalize") else Scaling()
    if scaling is None:
        return None
    if is_before("ToTensor"):
        return Tail(tuple(parts[begin:]), scaling, of_tensors=False, to_default_dtype=True)
    if not is_before("ConvertImageDtype", "ToDtype"):
        return None
    conversion, is_v2 = parts[begin], found[begin][0].endswith("v2")
    if conversion.dtype is not torch.float32 or not getattr(conversion, "scale", True):
        return None
    of_tensors = not is_before("PILToTensor", "ToImage")
    scaling = replace(scaling, factor=1 / 255 if is_v2 else None)
    return Tail(tuple(parts[begin:]), scaling, of_tensors=of_tensors, to_default_dtype=False)


def _read_normalize(normalize: Any) -> Scaling | None:
    try:  # as torchvision makes tensors of them
        mean, std = (torch.as_tensor(v, dtype=torch.float32, device="cpu") for v in (normalize.mean, normalize.std))
        if mean.dim() > 1 or std.dim() > 1:
            return None
        channels = max(mean.numel(), std.numel())
        means, stds = (tuple(value.expand(channels).tolist()) for value in (mean, std))
        check_mean_std(means, stds)
    except (TypeError, ValueError, RuntimeError):  # torchvision says what is wrong when a sample is made
        return None
    return Scaling(means, stds)


def _inherits(dataset: Any, base: type, attributes: Sequence[str]) -> bool:
    """Whether samples are made by `base` alone: what it reads, `attributes`, is no method or property of a subclass.

    Code of a subclass may change what it belongs to, and may say how that is copied: only the dataset itself will do.
    """
    cls = type(dataset)
    return all(getattr(cls, name, None) is getattr(base, name, None) for name in (*_HOOKS, *_COPYING, *attributes))


def _copy(thing: Any, **changes: Any) -> Any:
    copied = copy.copy(thing)
    vars(copied).update(changes)
    return copied
