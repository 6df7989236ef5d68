"""Where encoded samples lie."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fastfeed._extension import extension

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


@dataclass(frozen=True)
class EncodedBatch:
    """N samples as they lie on disk.

    Attributes:
        data: N arrays of uint8, each a whole encoded image.
        sizes: [N, 2] int64, height and width from the image headers, before any EXIF rotation.
        targets: [N] int64, class indices.
        names: N names to put into error messages.
    """

    data: list[npt.NDArray[np.uint8]]
    sizes: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]
    names: list[str]

    def at(self, samples: slice) -> "EncodedBatch":
        """Return some of the samples."""
        return EncodedBatch(self.data[samples], self.sizes[samples], self.targets[samples], self.names[samples])


class FolderSource:
    """A folder of class folders: root/<class>/**/<image>, classes and files in sorted order.

    The layout and order of ``torchvision.datasets.ImageFolder``; links are followed. JPEG, PNG, BMP and WebP. Files and
    class folders whose names begin with a dot, as other programs leave them, are passed over.

    Args:
        root: the folder.

    Attributes:
        classes: class names; a target is an index into them.
        samples: (path, class index) pairs.

    Raises:
        FileNotFoundError: if `root` does not exist, has no class folders, or one of them holds no images.
        NotADirectoryError: if `root` is a file.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        if not os.fspath(root):
            raise FileNotFoundError("the path of the folder is empty")
        self.root = Path(root)
        if not self.root.exists():
            raise FileNotFoundError(
                f"no such folder: {self.root}. Expected a folder of class folders with images in them"
            )
        if not self.root.is_dir():
            raise NotADirectoryError(
                f"not a folder: {self.root}. Expected a folder of class folders with images in them"
            )
        self.classes = sorted(entry.name for entry in os.scandir(self.root) if _is_class(entry))
        if not self.classes:
            raise FileNotFoundError(_no_classes(self.root))
        self.samples: list[tuple[str, int]] = []
        empty = []
        for target, name in enumerate(self.classes):
            images = _images_under(self.root / name)
            self.samples += [(path, target) for path in images]
            if not images:
                empty.append(name)
        if empty:
            raise FileNotFoundError(
                f"no images in {len(empty)} of the {len(self.classes)} class folders of {self.root}: {_some(empty)}. "
                f"Expected files that end in {', '.join(IMAGE_EXTENSIONS)}; remove folders that are not classes"
            )
        self._targets = np.array([target for _, target in self.samples], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.samples)

    def subset(self, indices: Sequence[int]) -> "FolderSource":
        """Return a source of the samples at `indices`, with the same classes."""
        chosen = object.__new__(FolderSource)
        chosen.root, chosen.classes = self.root, self.classes
        chosen.samples = [self.samples[i] for i in indices]
        chosen._targets = self._targets[np.asarray(indices, dtype=np.int64)]
        return chosen

    def read(self, indices: npt.NDArray[np.int64], threads: int = 0) -> EncodedBatch:
        """Read the samples at `indices`, on `threads` threads (0: one per core) that do not hold the GIL.

        Raises:
            OSError: FileNotFoundError, PermissionError, … for the first file that cannot be read.
            ValueError: for the first file that is not an image of a supported format.
        """
        names = [self.samples[i][0] for i in indices]
        data, sizes = extension().read_files([os.fsencode(name) for name in names], threads)
        bad = np.flatnonzero((sizes <= 0).any(axis=1))
        if len(bad):
            name, length = names[bad[0]], len(data[bad[0]])
            raise ValueError(
                f"not a readable image: {name} ({length} bytes) has no complete JPEG, PNG, BMP or WebP header. "
                "Replace or remove the file"
            )
        return EncodedBatch(data, sizes, self._targets[indices], names)


def _is_class(entry: "os.DirEntry[str]") -> bool:
    return entry.is_dir() and not entry.name.startswith(".")


def _images_under(folder: Path) -> list[str]:
    # The order of ImageFolder: by folder, then by file.
    return [
        os.path.join(directory, name)
        for directory, _, files in sorted(os.walk(folder, followlinks=True))
        for name in sorted(files)
        if name.lower().endswith(IMAGE_EXTENSIONS) and not name.startswith(".")
    ]


def _no_classes(root: Path) -> str:
    images = [entry.name for entry in os.scandir(root) if entry.name.lower().endswith(IMAGE_EXTENSIONS)]
    if images:
        return (
            f"no class folders in {root}: its {len(images)} images lie directly in it. Move them into one folder per "
            "class, such as cat/ and dog/"
        )
    return f"no class folders in {root}. Expected {root}/<class>/<image>.jpg"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
