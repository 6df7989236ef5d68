"""A folder of class folders."""

import os
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastfeed.data.sources.base import IMAGE_EXTENSIONS, UNREAD_EXTENSIONS, EncodedBatch, Source

_SPLITS = {"train", "training", "val", "valid", "validation", "test"}

_Identity = tuple[int, int]  # device and inode


class FolderSource(Source):
    """A folder of class folders: root/<class>/**/<image>, classes and files in sorted order.

    The layout and order of ``torchvision.datasets.ImageFolder``; links are followed, but not to a folder that they lie
    in. JPEG (.jpg, .jpeg, .jfif, .jpe), PNG, BMP and WebP. Images of other formats are passed over with a warning that
    counts them; files and class folders whose names begin with a dot, as other programs leave them, without one. It
    warns too where all classes have names such as train, val and test: these are probably folders of class folders.

    Args:
        root: the folder; ``~`` is the home of a user.

    Attributes:
        classes: class names; a target is an index into them.
        samples: (path, class index) pairs.

    Raises:
        FileNotFoundError: if `root` does not exist, has no class folders, or one of them holds no images.
        NotADirectoryError: if `root` is a file.
        PermissionError: for a folder that may not be read.
    """

    classes: list[str]
    labels: npt.NDArray[np.int64]

    def __init__(self, root: str | os.PathLike[str]) -> None:
        if not os.fspath(root):
            raise FileNotFoundError("the path of the folder is empty")
        self.root = Path(os.path.expanduser(root))
        if not self.root.exists():
            raise FileNotFoundError(
                f"no such folder: {self.root}. Expected a folder of class folders with images in them"
            )
        if not self.root.is_dir():
            raise NotADirectoryError(
                f"not a folder: {self.root}. Expected a folder of class folders with images in them"
            )
        self.classes = _class_folders(self.root)
        if not self.classes:
            raise FileNotFoundError(_no_classes(self.root))
        self.samples: list[tuple[str, int]] = []
        unread: Counter[str] = Counter()
        empty = []
        for target, name in enumerate(self.classes):
            images = _images_under(self.root, name, unread)
            self.samples += [(path, target) for path in images]
            if not images:
                empty.append(name)
        _warn_of_unread(self.root, unread)
        _warn_of_splits(self.root, self.classes, self.samples)
        if empty:
            raise FileNotFoundError(
                f"no images in {len(empty)} of the {len(self.classes)} class folders of {self.root}: {_some(empty)}. "
                f"Expected files that end in {', '.join(IMAGE_EXTENSIONS)}; remove folders that are not classes"
            )
        self.labels = np.array([target for _, target in self.samples], dtype=np.int64)

    def __len__(self) -> int:
        """Images in the folder."""
        return len(self.samples)

    def name(self, index: int) -> str:
        """Return a sample's path."""
        return self.samples[index][0]

    def read(self, indices: npt.ArrayLike, pool: Any) -> EncodedBatch:
        """Read files: see `Source.read`. Targets are class indices, [N] int64."""
        indices = self._checked(indices)
        return self._read_files([self.samples[i][0] for i in indices], torch.from_numpy(self.labels[indices]), pool)

    def subset(self, indices: npt.ArrayLike) -> "FolderSource":
        """Return a source of the samples at `indices`, in that order, with the same classes."""
        indices = self._checked(indices)
        chosen = object.__new__(FolderSource)
        chosen.root, chosen.classes = self.root, self.classes
        chosen.samples = [self.samples[i] for i in indices]
        chosen.labels = self.labels[indices]
        return chosen


def all_images(root: str | os.PathLike[str]) -> list[str]:
    """Return the images that lie in a folder, and then those of its class folders, as `FolderSource` finds them.

    Raises:
        FileNotFoundError, PermissionError: for a folder that does not exist, or may not be read.
    """
    root, unread = Path(os.path.expanduser(root)), Counter[str]()
    images = sorted(entry.name for entry in os.scandir(root) if not _is_folder(entry) and _is_image(entry, unread))
    nested = [path for name in _class_folders(root) for path in _images_under(root, name, unread)]
    _warn_of_unread(root, unread)
    return [os.path.join(root, name) for name in images] + nested


def _class_folders(root: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(root) if _is_folder(entry) and not entry.name.startswith("."))


def _is_image(entry: "os.DirEntry[str]", unread: Counter[str]) -> bool:
    """Whether a file is an image that is read; one of another format is counted, by its extension."""
    name = entry.name.lower()
    if name.endswith(IMAGE_EXTENSIONS):
        return not name.startswith(".")
    if name.endswith(UNREAD_EXTENSIONS) and not name.startswith("."):
        unread[os.path.splitext(name)[1]] += 1
    return False


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _identity(folder: str | Path) -> _Identity:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _images_under(root: Path, name: str, unread: Counter[str]) -> list[str]:
    # Not os.walk, which passes over folders that it may not read, and follows a link into a folder above it for ever.
    listed: list[tuple[str, list[str]]] = []
    todo: list[tuple[str, frozenset[_Identity]]] = [(str(root / name), frozenset([_identity(root)]))]
    while todo:
        folder, above = todo.pop()
        identity = _identity(folder)
        if identity in above:
            continue
        files = []
        with os.scandir(folder) as entries:
            for entry in entries:
                if _is_folder(entry):
                    todo.append((os.path.join(folder, entry.name), above | {identity}))
                elif _is_image(entry, unread):
                    files.append(entry.name)
        listed.append((folder, sorted(files)))
    # The order of ImageFolder: by folder, then by file.
    return [os.path.join(folder, file) for folder, files in sorted(listed) for file in files]


def _warn_of_unread(root: Path, unread: Counter[str]) -> None:
    if unread:
        counts = ", ".join(f"{count} {extension}" for extension, count in sorted(unread.items()))
        _warn(
            f"images in {root} are passed over, for only JPEG, PNG, BMP and WebP are read: {counts}. Convert them, to "
            "PNG say, or remove them"
        )


def _warn_of_splits(root: Path, classes: Sequence[str], samples: Sequence[tuple[str, int]]) -> None:
    if not _SPLITS.issuperset(name.lower() for name in classes):
        return
    if any(os.path.dirname(path) == str(root / classes[target]) for path, target in samples):
        return  # images lie in them, and not class folders
    path = root / next((name for name in classes if name.lower().startswith("train")), classes[0])
    _warn(
        f"the classes of {root} are {', '.join(classes)}. If these are parts of a dataset, with class folders in them, "
        f"give the path of one: {path}"
    )


def _warn(message: str) -> None:
    """Warn where the source was made, or the loader that made it."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals["__name__"].startswith("fastfeed."):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


def _no_classes(root: Path) -> str:
    images = [
        entry.name for entry in os.scandir(root) if entry.name.lower().endswith(IMAGE_EXTENSIONS + UNREAD_EXTENSIONS)
    ]
    if images:
        return (
            f"no class folders in {root}: its {len(images)} images lie directly in it. Move them into one folder per "
            "class, such as cat/ and dog/; or give their paths to fastfeed.ListSource, which needs no targets"
        )
    return f"no class folders in {root}. Expected {root}/<class>/<image>.jpg"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
