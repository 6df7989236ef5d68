"""Lists of files and, where there are some, their targets."""

import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastfeed.data.sources.base import EncodedBatch, Source
from fastfeed.data.sources.targets import NO_LABEL, as_targets


class ListSource(Source):
    """Files by their paths, with targets of any kind.

    Args:
        paths: the image files.
        targets: one per path, in one of these forms.

            - A sequence of ints, or an array or tensor [len(paths)] of integers: class indices. A batch has int64 [N].
            - An array or tensor with leading dimension len(paths): [len(paths), classes] for several labels at once,
              or real numbers for regression. A batch has N of its rows, in its own dtype.
            - A dict or tuple of such arrays and tensors, nested as you like. A batch has N rows of each.
            - A list of anything else, with a number, a string, an array, or a dict or tuple of such for each path, of
              the same types for all; an int where the first has a float becomes a float. A batch's are collated by
              ``torch.utils.data.default_collate``: numbers become int64 and float64.
            - ``None``, for images without any. A batch's are -100, int64 [N], which PyTorch's losses ignore.
        root: the folder that paths are relative to; ``~`` is the home of a user.
        classes: class names, where targets are class indices.

    Attributes:
        paths: the paths, joined to `root`.

    Raises:
        TypeError: for paths or targets of another type, or classes for targets that are no class indices.
        ValueError: for lists that are empty or of different lengths, an empty path, or a class index outside `classes`.
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike[str]],
        targets: Any = None,
        *,
        root: str | os.PathLike[str] | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        self.paths = checked_paths(paths)
        if root is not None:
            root = os.path.expanduser(root)
            self.paths = [os.path.join(root, path) for path in self.paths]
        self._targets = as_targets(targets, len(self.paths))
        self.labels = self._targets.labels
        if classes is not None:
            self.classes = checked_classes(classes, self.labels)

    def __len__(self) -> int:
        """Paths in the list."""
        return len(self.paths)

    def name(self, index: int) -> str:
        """Return a sample's path."""
        return self.paths[index]

    def read(self, indices: npt.ArrayLike, pool: Any) -> EncodedBatch:
        """Read files: see `Source.read`."""
        indices = self._checked(indices)
        return self._read_files([self.paths[i] for i in indices], self._targets.take(indices), pool)

    def subset(self, indices: npt.ArrayLike) -> "ListSource":
        """Return a source of the samples at `indices`, in that order, with the same classes."""
        indices = self._checked(indices)
        chosen = object.__new__(ListSource)
        chosen.paths = [self.paths[i] for i in indices]
        chosen._targets = self._targets.subset(indices)
        chosen.classes, chosen.labels = self.classes, chosen._targets.labels
        return chosen


def checked_paths(paths: Any) -> list[str]:
    """Return paths as text.

    Raises:
        TypeError: for what is no list of paths.
        ValueError: for none, or an empty one.
    """
    if isinstance(paths, str | bytes | os.PathLike) or not isinstance(paths, Iterable):
        raise TypeError(f"paths is {paths!r}; expected a list of paths")
    texts = [_path(path, i) for i, path in enumerate(paths)]
    if not texts:
        raise ValueError("paths is empty; expected at least one")
    return texts


def checked_classes(classes: Sequence[str], labels: npt.NDArray[np.int64] | None) -> list[str]:
    """Return the class names, if they are some and the labels are indices into them (or `NO_LABEL`)."""
    if isinstance(classes, str) or not all(isinstance(name, str) for name in classes):
        raise TypeError(f"classes is {classes!r}; expected a list of names")
    if labels is None:
        raise TypeError("classes names class indices, but the targets are something else; leave it out")
    bad = labels[((labels < 0) | (labels >= len(classes))) & (labels != NO_LABEL)]
    if len(bad):
        raise ValueError(f"a target is {bad[0]}, but there are {len(classes)} classes, numbered from 0")
    return list(classes)


def _path(path: Any, index: int) -> str:
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"paths[{index}] is of type {type(path).__name__}; expected a path")
    text = os.fsdecode(path)
    if not text or "\0" in text:
        raise ValueError(f"paths[{index}] is {text!r}; expected the path of a file")
    return text
