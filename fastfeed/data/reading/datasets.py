"""Reading datasets: those of torchvision that lie in files, and others that say where their encoded images are."""

import operator
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.ImageFile
import torch
from torch.utils.data import ConcatDataset, IterableDataset, Subset

from fastfeed.data.reading.reasons import Unreadable
from fastfeed.data.reading.transforms import read_transform
from fastfeed.data.sources import IMAGE_EXTENSIONS, EncodedSource, ListSource, SampleSource, Source
from fastfeed.data.transforms import Transform

_READ = "ImageFolder, DatasetFolder and ImageNet, Subset and ConcatDataset of them, and classes with get_encoded()"
_METHODS = ("__getitem__", "__getitems__", "__len__")

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Reading:
    """What was read of a dataset.

    Attributes:
        source: its samples.
        transform: what it does to its images; None where the dataset has no transform.
        dtype: of its images; None likewise.
    """

    source: Source
    transform: Transform | None
    dtype: torch.dtype | None


def read_dataset(dataset: Any) -> Reading:
    """Return where the samples of a dataset lie, and what it does to their images.

    Args:
        dataset: one of these.

            - ``torchvision.datasets.ImageFolder``, ``DatasetFolder`` or ``ImageNet``, or a subclass that overrides none
              of ``__getitem__``, ``__getitems__`` and ``__len__``, whose ``loader`` is torchvision's default one. Its
              `target_transform` is called when a sample is read.
            - A map-style dataset with a method ``get_encoded(index)``, which returns a pair: the path of an image file,
              or the file's bytes; and the target. The method is called in one thread, and for one sample at a time; an
              exception that it raises is raised where the batch of that sample would come. If the dataset has a
              `transform`, it must be one that can be read.
            - ``torch.utils.data.Subset`` or ``ConcatDataset`` of these, nested as you like. All must do the same to
              their images.

    Raises:
        Unreadable: for any other dataset, with all reasons.
    """
    reasons: list[str] = []
    datasets, rows = _flatten(dataset, reasons)
    transform, dtype = _common_transform(datasets, reasons)
    folders = [inner for inner in datasets if _is_folder(inner)]
    for number, inner in enumerate(datasets):
        if _is_folder(inner):
            _check_folder(inner, rows[rows[:, 0] == number, 1], reasons)
    if folders and len(folders) < len(datasets):
        reasons.append("ConcatDataset: some of its parts are folders, others have get_encoded(): expected one kind")
    if datasets and not len(rows):
        reasons.append(f"{_name(dataset)} has no samples")
    if reasons:
        raise Unreadable(list(dict.fromkeys(reasons)), has_images=bool(datasets))  # once each: parts may have the same
    try:
        source = _folder_source(datasets, rows) if folders else EncodedSource(datasets, rows)
    except (TypeError, ValueError) as error:  # targets of different kinds, say
        raise Unreadable([f"{_name(dataset)}: {error}"]) from error
    return Reading(source, transform, dtype)


@dataclass(frozen=True)
class Snapshot:
    """What `read_dataset` reads of a dataset, to see later whether that has changed.

    Attributes:
        transforms: as they are read, one of each part, or why not; None of a part that has none.
        lengths: of the parts.
        objects: what is compared by identity, and not looked into: lists of samples and of indices, functions.
    """

    transforms: list[Any]
    lengths: list[int]
    objects: list[Any]

    def same(self, other: "Snapshot") -> bool:
        """Whether another one is of the same transforms, samples and targets."""
        return (
            self.transforms == other.transforms
            and self.lengths == other.lengths
            and len(self.objects) == len(other.objects)
            and all(map(operator.is_, self.objects, other.objects))
        )


def snapshot(dataset: Any) -> Snapshot:
    """Return what `read_dataset` reads of a dataset that it can read."""
    parts: list[Any] = [dataset]
    transforms: list[Any] = []
    lengths: list[int] = []
    objects: list[Any] = []
    while parts:
        part = parts.pop()
        if isinstance(part, Subset):
            objects.append(part.indices)
            parts.append(part.dataset)
        elif isinstance(part, ConcatDataset):
            parts += part.datasets
        else:
            lengths.append(len(part))
            transform = getattr(part, "transform", None)
            try:
                transforms.append(None if transform is None else read_transform(transform))
            except Unreadable as error:
                transforms.append(error.reasons)
            if _is_folder(part):  # of the others `get_encoded` is called anew, and these names may be of anything
                objects += [part.samples, part.target_transform, part.loader]
    return Snapshot(transforms, lengths, objects)


def _flatten(dataset: Any, reasons: list[str]) -> tuple[list[Any], Int64]:
    """Return the datasets that hold no others, and [N, 2] for each sample: which of them, and the index in it."""
    if isinstance(dataset, Subset) and _inherits(dataset, Subset):
        datasets, rows = _flatten(dataset.dataset, reasons)
        if not datasets:
            return datasets, rows
        try:
            return datasets, rows[_checked_indices(dataset.indices, len(rows))]
        except (TypeError, IndexError) as error:
            reasons.append(f"Subset: {error}")
            return datasets, rows
    if isinstance(dataset, ConcatDataset) and _inherits(dataset, ConcatDataset):
        flat: list[Any] = []
        pieces = [np.zeros((0, 2), np.int64)]
        for part in dataset.datasets:
            datasets, rows = _flatten(part, reasons)
            numbers = np.array([_number(inner, flat) for inner in datasets], np.int64)
            pieces.append(np.stack([numbers[rows[:, 0]], rows[:, 1]], axis=1))
        return flat, np.concatenate(pieces)
    if callable(getattr(dataset, "get_encoded", None)):
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
            reasons.append(f"{_name(dataset)} has get_encoded(), but no length: expected a map-style dataset")
            return [], np.zeros((0, 2), np.int64)
    elif not _is_folder(dataset):
        reasons.append(f"{_name(dataset)} is none of the datasets that can be read: {_READ}")
        return [], np.zeros((0, 2), np.int64)
    return [dataset], np.stack([np.zeros(len(dataset), np.int64), np.arange(len(dataset))], axis=1)


def _number(dataset: Any, datasets: list[Any]) -> int:
    """Return the place of a dataset in a list, to which it is added if it is not there."""
    for i, other in enumerate(datasets):
        if other is dataset:
            return i
    datasets.append(dataset)
    return len(datasets) - 1


def _checked_indices(indices: Sequence[Any], count: int) -> Int64:
    """Return the indices of a Subset; negative ones count from the end.

    Raises:
        TypeError: for indices that are no integers.
        IndexError: for one that is not there.
    """
    array = np.asarray(indices) if len(indices) else np.zeros(0, np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise TypeError(f"its indices are {array.dtype} {list(array.shape)}; expected integers [N]")
    array = array.astype(np.int64)
    bad = (array < -count) | (array >= count)
    if bad.any():
        raise IndexError(f"its index {array[bad][0]} is out of range for {count} samples")
    return array


def _is_folder(dataset: Any) -> bool:
    """Whether this is torchvision's DatasetFolder, or a subclass that finds its samples as that does."""
    base = _torchvision("DatasetFolder")
    return base is not None and isinstance(dataset, base) and _inherits(dataset, base)


def _torchvision(name: str) -> Any:
    return getattr(sys.modules.get("torchvision.datasets.folder"), name, None)


def _inherits(dataset: Any, base: type) -> bool:
    """Whether samples are found by the methods of `base`."""
    cls = type(dataset)
    return all(getattr(cls, method, None) is getattr(base, method, None) for method in _METHODS)


def _check_folder(dataset: Any, indices: Int64, reasons: list[str]) -> None:
    name = _name(dataset)
    loader = dataset.loader
    if loader is not _torchvision("default_loader") and loader is not _torchvision("pil_loader"):
        said = getattr(loader, "__qualname__", type(loader).__name__)
        reasons.append(f"{name}: loader is {said}, and only torchvision's default_loader can be done")
    elif sys.modules["torchvision"].get_image_backend() != "PIL":
        backend = sys.modules["torchvision"].get_image_backend()
        reasons.append(f"{name}: torchvision's image backend is {backend!r}, and only 'PIL' can be done")
    if PIL.ImageFile.LOAD_TRUNCATED_IMAGES:
        reasons.append(f"{name}: PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set, and DALI loads no truncated images")
    paths = [str(dataset.samples[i][0]) for i in indices]
    others = [path for path in paths if not path.lower().endswith(IMAGE_EXTENSIONS)]
    if others:
        reasons.append(
            f"{name}: {len(others)} of its {len(paths)} files end in none of {', '.join(IMAGE_EXTENSIONS)}, "
            f"{others[0]!r} for one"
        )


def _common_transform(datasets: Sequence[Any], reasons: list[str]) -> tuple[Transform, torch.dtype] | tuple[None, None]:
    """Return the transform and the dtype that all datasets have."""
    found: list[tuple[Transform, torch.dtype] | tuple[None, None]] = []
    transforms = {id(dataset): getattr(dataset, "transform", None) for dataset in datasets}
    for transform in {id(transform): transform for transform in transforms.values()}.values():
        try:
            found.append((None, None) if transform is None else read_transform(transform))
        except Unreadable as error:
            reasons += error.reasons
    if any(reading != found[0] for reading in found):
        reasons.append("ConcatDataset: its parts have different transforms, and only one for all can be done")
    return found[0] if found else (None, None)


def _folder_source(datasets: Sequence[Any], rows: Int64) -> Source:
    paths, targets = [], []
    transforms: list[Callable[[Any], Any] | None] = []
    for number, i in rows.tolist():
        path, target = datasets[number].samples[i]
        paths.append(path)
        targets.append(target)
        transforms.append(datasets[number].target_transform)
    if any(transform is not None for transform in transforms):
        return SampleSource(paths, targets, transforms)
    are_indices = all(type(target) is int for target in targets)
    source = ListSource(paths, np.array(targets) if are_indices else targets)  # of an array it looks at no elements
    classes, labels = _common_classes(datasets), source.labels
    if classes is not None and labels is not None and 0 <= labels.min() <= labels.max() < len(classes):
        source.classes = classes
    return source


def _common_classes(datasets: Sequence[Any]) -> list[str] | None:
    """Return the names that all datasets have for their classes."""
    names = [list(getattr(dataset, "classes", ())) for dataset in datasets]
    if any(other != names[0] for other in names):
        return None
    # ImageNet's are tuples of synonyms.
    return [", ".join(name) if isinstance(name, tuple) else str(name) for name in names[0]]


def _name(dataset: Any) -> str:
    cls = type(dataset)
    return dataset.__qualname__ if isinstance(dataset, types.FunctionType) else cls.__qualname__
