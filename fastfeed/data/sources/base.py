"""What a source is: samples by index, read in batches."""

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastfeed._extension import extension
from fastfeed.data.sources.targets import select

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".bmp", ".webp")
UNREAD_EXTENSIONS = (
    ".tif", ".tiff", ".gif", ".heic", ".heif", ".avif", ".jp2", ".j2k", ".jxl", ".ppm", ".pgm", ".pbm", ".pnm", ".tga",
)  # fmt: skip
"""Of images in other formats, which people may think are read."""

_SPARE_BLOCKS = 4  # as many batches as are commonly under way at once


@dataclass(frozen=True)
class EncodedBatch:
    """N samples as they lie on disk.

    Attributes:
        data: N uint8 arrays, each a whole encoded image; empty where it could not be read. They are views into one
            block of memory, at multiples of 64 bytes, which serves a later batch when the last of them is gone.
        sizes: [N, 2] int64, height and width from the image headers, before any EXIF rotation; 0 where unknown.
        orientation: [N] uint8, EXIF's, 1 to 8; 1 (upright) where there is none.
        targets: a pytree of CPU tensors, or tuples of strings, with leading dimension N; [N] int64 for class indices.
            What stands there for a sample with an error has no meaning.
        names: N names to put into error messages.
        errors: for each sample None, or why it cannot be used, as "No such file or directory".
    """

    data: list[npt.NDArray[np.uint8]]
    sizes: npt.NDArray[np.int64]
    orientation: npt.NDArray[np.uint8]
    targets: Any
    names: list[str]
    errors: list[str | None]

    def at(self, samples: slice) -> "EncodedBatch":
        """Return some of the samples."""
        return EncodedBatch(
            self.data[samples],
            self.sizes[samples],
            self.orientation[samples],
            select(self.targets, samples),
            self.names[samples],
            self.errors[samples],
        )


class OneAtATime:
    """A lock around calls of the user's code, which need not be made for several threads.

    A copy, and a child after a fork, has a lock of its own: that of another process may be held for ever.
    """

    def __init__(self) -> None:
        self._pid, self._lock = os.getpid(), threading.Lock()

    def __enter__(self) -> None:
        if self._pid != os.getpid():
            self._pid, self._lock = os.getpid(), threading.Lock()
        self._lock.acquire()

    def __exit__(self, *exception: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type["OneAtATime"], tuple[()]]:
        return OneAtATime, ()


class Source(ABC):
    """Encoded samples, by index.

    A source can be pickled and deep-copied, holds no open files, and may be read in several threads at once.

    Attributes:
        classes: class names, where targets are indices into them.
        labels: [len(source)] int64, each sample's class index, where targets are such; for samplers.
    """

    classes: list[str] | None = None
    labels: npt.NDArray[np.int64] | None = None
    _recycler: Any = None

    @abstractmethod
    def __len__(self) -> int:
        """Samples in the source."""

    @abstractmethod
    def name(self, index: int) -> str:
        """Return what a sample is called in messages: its path, or "shard.tar: member"."""

    @abstractmethod
    def read(self, indices: npt.ArrayLike, pool: Any) -> EncodedBatch:
        """Read samples on the threads of a `fastfeed._C.Pool`, without the GIL.

        Args:
            indices: [N] int, from 0 to len(source) - 1, in any order; repeated ones are read again.
            pool: the threads; the caller's helps.

        Returns:
            The samples, in the order of `indices`. A sample that cannot be used is no exception, but has its error.

        Raises:
            IndexError, TypeError: for an index that is not there, or is no integer.
            OSError: where the process, not a sample, is why it cannot go on: too many open files, say.
            ValueError: for targets that cannot be made into a batch, being of different shapes, say.
        """

    @abstractmethod
    def subset(self, indices: npt.ArrayLike) -> "Source":
        """Return a source of the samples at `indices`, in that order, with the same classes."""

    def close(self) -> None:
        """Give back the memory of earlier batches; the next one takes new."""
        self._recycler = None

    def _checked(self, indices: npt.ArrayLike) -> npt.NDArray[np.int64]:
        array = np.asarray(indices)
        if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
            raise TypeError(f"indices are {array.dtype} {list(array.shape)}; expected integers [N]")
        bad = (array < 0) | (array >= len(self))
        if bad.any():
            raise IndexError(f"index {array[bad][0]} is out of range for a source of {len(self)} samples")
        return array.astype(np.int64)

    def _memory(self) -> Any:
        recycler = self._recycler  # another thread may close the source meanwhile
        if recycler is None:
            recycler = self._recycler = extension().Recycler(_SPARE_BLOCKS)
        return recycler

    def _read_files(self, paths: Sequence[str], targets: Any, pool: Any) -> EncodedBatch:
        """Read whole files, whose names are their paths."""
        names = list(paths)
        data, sizes, orientation, errors = extension().read_files(
            pool, self._memory(), [os.fsencode(path) for path in names]
        )
        return EncodedBatch(data, sizes, orientation, targets, names, errors)

    def __getstate__(self) -> dict[str, Any]:
        # Memory that no copy can share.
        return {name: value for name, value in self.__dict__.items() if name != "_recycler"}
