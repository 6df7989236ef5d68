"""Batches before their pixels: read and planned, ahead of the consumer, in a thread of their own."""

import zlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastfeed._extension import extension
from fastfeed.data.order import BatchPicks
from fastfeed.data.pipeline import BLANK, Entry
from fastfeed.data.plan import blank, draw_augmentations, make_plan, too_small
from fastfeed.data.schedule import SizeSchedule
from fastfeed.data.sources import Source
from fastfeed.data.transforms import Transform, output_size
from fastfeed.data.views import TTA, view_plan


@dataclass
class Prepared:
    """A batch of N samples that is read and planned.

    Attributes:
        entry: for the graph.
        picks: which samples these are.
        targets: a pytree of tensors, [N, ...].
        names: N names to put into messages.
        bad: position in the batch -> why the sample cannot be used; `entry` has BLANK in its place. What cannot be
            decoded is in `entry.failed`.
    """

    entry: Entry
    picks: BatchPicks
    targets: Any
    names: list[str]
    bad: dict[int, str]

    @property
    def all_bad(self) -> dict[int, str]:
        """Position in the batch -> why the sample cannot be used, once the batch is decoded."""
        # Sorted: those that were known before are noted first.
        return {**self.bad, **dict(sorted(self.entry.failed.items()))}


class Preparer:
    """Reads and plans batches, of several epochs at once, if need be.

    Args:
        source: of the samples.
        transform: what to plan.
        size: height and width by epoch and step; None: the transform's.
        max_pixels: more than these make an image bad.
        exif: whether images are rotated by their EXIF orientation.
        threads: that read.
        tta: views to be planned of each sample.
    """

    def __init__(
        self,
        source: Source,
        transform: Transform,
        *,
        size: SizeSchedule | None,
        max_pixels: int,
        exif: bool,
        threads: int,
        tta: TTA | None = None,
    ) -> None:
        self._source = source
        self._transform = transform
        self._size = size
        self._max_pixels = max_pixels
        self._exif = exif
        self._tta = tta
        self._pool = extension().Pool(threads)
        # Index of an image that cannot be decoded -> CRC-32 of its bytes, and why.
        self._unreadable: dict[int, tuple[int, str]] = {}

    def __getstate__(self) -> dict[str, Any]:
        # Threads, which no copy can share, and what another thread may be adding to.
        return {**self.__dict__, "_pool": self._pool.threads, "_unreadable": dict(self._unreadable)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _pool=extension().Pool(state["_pool"]))

    def close(self) -> None:
        """Give back the threads; the next batch starts new ones."""
        self._pool = extension().Pool(self._pool.threads)

    def _scheduled(self, epoch: int, step: int) -> tuple[int, int]:
        assert self._size is not None
        size = self._size(epoch, step)
        try:
            return output_size(size)
        except (TypeError, ValueError) as error:
            raise type(error)(f"size(epoch={epoch}, step={step}) gave {size!r}: {error}") from error

    def prepare(self, epoch: int, picks: BatchPicks, seed: int) -> Prepared:
        """Read and plan one batch, by a seed of 64 bits."""
        read = self._source.read(picks.index, self._pool)
        bad = {i: error for i, error in enumerate(read.errors) if error is not None}
        sizes = read.sizes
        if self._exif:  # an orientation above 4 lies on its side
            sizes = np.where((read.orientation > 4)[:, None], sizes[:, ::-1], sizes)
        for i in np.flatnonzero(sizes.prod(axis=1) > self._max_pixels).tolist():
            h, w = sizes[i]
            bad.setdefault(i, f"its header says {h} x {w} pixels, and max_pixels is {self._max_pixels}")
        size = self._transform.size if self._size is None else self._scheduled(epoch, picks.step)
        for i in np.flatnonzero(too_small(self._transform, sizes, size)).tolist():
            h, w = sizes[i]
            bad.setdefault(
                i,
                f"its {h} x {w} pixels are too few for RandomCrop's {size[0]} x {size[1]}: pad_if_needed=True pads it",
            )
        positions = list(bad)
        sizes = sizes.copy()
        sizes[positions] = size  # of which any transform can make a plan
        plan = make_plan(self._transform, sizes, picks.index, picks.copy, seed=seed, epoch=epoch, size=size)
        if self._tta is not None:
            plan = view_plan(self._tta, self._transform, plan, sizes, size)
        data = list(read.data)
        failed = self._known_to_fail(picks.index, data, bad)
        # All views of a sample are augmented alike.
        indices, copies = (np.repeat(values, len(plan.start) // len(data)) for values in (picks.index, picks.copy))
        operations = draw_augmentations(self._transform, plan, indices, copies, seed=seed, epoch=epoch, size=size)
        entry = Entry(data, plan, size, operations)
        positions += failed
        blank(plan, entry.rows(positions))
        for i in positions:
            data[i] = BLANK
        entry.failed.update(failed)
        return Prepared(entry, picks, read.targets, read.names, bad)

    def remember(self, batch: Prepared) -> None:
        """Note which images of a decoded batch cannot be decoded: from now on they are bad before they are tried.

        To try one costs several builds of a pipeline. A file with other bytes is tried again.
        """
        for i, checksum in batch.entry.unreadable.items():
            self._unreadable[int(batch.picks.index[i])] = checksum, batch.entry.failed[i]

    def _known_to_fail(
        self, indices: npt.NDArray[np.int64], data: list[npt.NDArray[np.uint8]], skipped: Collection[int]
    ) -> dict[int, str]:
        """Return the positions of images that cannot be decoded, and why."""
        failed = {}
        for i, index in enumerate(indices.tolist()):
            checksum, reason = self._unreadable.get(index, (None, ""))
            if checksum is not None and i not in skipped and zlib.crc32(data[i].data) == checksum:
                failed[i] = reason
        return failed
