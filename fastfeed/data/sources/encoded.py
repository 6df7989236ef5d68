"""Datasets that say where their encoded images are."""

import os
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fastfeed._extension import extension
from fastfeed.data.sources.base import EncodedBatch, OneAtATime, Source
from fastfeed.data.sources.targets import collate

_EXPECTED = "a pair: the path of an image file, or its bytes; and the target"


class EncodedDataset(Protocol):
    """A map-style dataset whose samples lie in image files, or in memory as the bytes of such files."""

    def __len__(self) -> int:
        """Samples in the dataset."""

    def get_encoded(self, index: int) -> tuple[Any, Any]:
        """Return a sample: a path (str or PathLike) or the bytes of a file (anything bytes-like); and its target."""


class EncodedSource(Source):
    """Samples that datasets give as paths or as bytes, by a method ``get_encoded``.

    The method is called in one thread, for one sample at a time; what it raises is raised by `read`. Files are read on
    the pool's threads. A batch's targets are collated by ``torch.utils.data.default_collate``.

    Args:
        datasets: see `EncodedDataset`.
        rows: [N, 2] int, of each sample: which dataset, and the index in it; by default all, one dataset after the
            other.
    """

    def __init__(self, datasets: Sequence[EncodedDataset], rows: npt.ArrayLike | None = None) -> None:
        self._datasets = list(datasets)
        if rows is None:
            rows = [(number, i) for number, dataset in enumerate(datasets) for i in range(len(dataset))]
        self._rows = np.asarray(rows, np.int64).reshape(-1, 2)
        self._calling = OneAtATime()

    def __len__(self) -> int:
        """Samples that were chosen."""
        return len(self._rows)

    def name(self, index: int) -> str:
        """Return the dataset's class and the index in it, as "Photos[3]"; in a batch, paths where there are some."""
        number, i = self._rows[index]
        return f"{type(self._datasets[number]).__name__}[{i}]"

    def read(self, indices: npt.ArrayLike, pool: Any) -> EncodedBatch:
        """Read samples: see `Source.read`.

        Raises:
            TypeError: for a dataset that gives something else than it should.
        """
        indices = self._checked(indices)
        with self._calling:
            samples = [self._get(i) for i in indices]
        targets = collate([target for _, target in samples])
        files = [i for i, (image, _) in enumerate(samples) if isinstance(image, str)]
        others = [i for i, (image, _) in enumerate(samples) if not isinstance(image, str)]
        names = [
            image if isinstance(image, str) else self.name(i) for i, (image, _) in zip(indices, samples, strict=True)
        ]
        read_files = self._read_files([names[i] for i in files], None, pool)
        data, sizes, orientation, errors = extension().read_memory(
            pool, self._memory(), [samples[i][0] for i in others]
        )
        back = np.argsort(files + others)  # from one after the other to the order of `indices`
        images, why = read_files.data + data, read_files.errors + errors
        return EncodedBatch(
            [images[i] for i in back],
            np.concatenate([read_files.sizes, sizes])[back],
            np.concatenate([read_files.orientation, orientation])[back],
            targets,
            names,
            [why[i] for i in back],
        )

    def subset(self, indices: npt.ArrayLike) -> "EncodedSource":
        """Return a source of the samples at `indices`, in that order, of the same datasets."""
        chosen = EncodedSource(self._datasets, self._rows[self._checked(indices)])
        chosen._calling = self._calling
        return chosen

    def _get(self, index: int) -> tuple[str | memoryview, Any]:
        number, i = self._rows[index].tolist()
        sample = self._datasets[number].get_encoded(i)
        if not isinstance(sample, tuple | list) or len(sample) != 2:
            raise TypeError(f"get_encoded() of {self.name(index)} returned {_kind(sample)}; expected {_EXPECTED}")
        image, target = sample
        if isinstance(image, str | os.PathLike):
            return os.fsdecode(image), target
        try:
            view = memoryview(image)
            if view.itemsize == 1:
                return view.cast("B"), target
        except TypeError:  # not bytes-like, or not contiguous
            pass
        raise TypeError(
            f"get_encoded() of {self.name(index)} returned {_kind(image)} for the image; expected {_EXPECTED}"
        )


def _kind(value: Any) -> str:
    return f"{len(value)} values" if isinstance(value, tuple | list) else type(value).__name__
