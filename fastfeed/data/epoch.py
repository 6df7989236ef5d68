"""Epochs: where they begin, what their steps take, and what iterating over one gives."""

import operator
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from fastfeed.data.order import Batches, BatchPicks, BatchSize, step_bounds
from fastfeed.data.samplers import Labels, Sampler
from fastfeed.data.schedule import BatchSizeSchedule
from fastfeed.data.torch_samplers import TorchSampler


@dataclass(eq=False)  # and not frozen: trainers move a batch's dataclasses field by field
class SampleInfo:
    """Which samples a batch holds.

    Attributes:
        index: [N] int64, in the dataset: where another sample stands in for a bad one, the bad one's.
        valid: [N] bool: False where a sample only fills the batch, because another rank has one more, or because it
            stands in for a bad one. Do not count it in an evaluation.
        path: N names of files, or of shards and members.
    """

    index: torch.Tensor
    valid: torch.Tensor
    path: list[str]


class Given(NamedTuple):
    """A batch for the consumer, and where its epoch goes on after it; or an error, after which batches may follow."""

    batch: Any
    progress: dict[str, Any]
    error: Exception | None = None


class EpochIterator(Iterator[Any]):
    """The batches of an epoch, or of what is left of one after a resume.

    Its length is how many it gives in all, and does not change, as that of ``torch.utils.data.DataLoader``'s iterators.
    With on_error="drop" batches of which nothing is left are missing from that.
    """

    def __init__(self, batches: Generator[Given, None, None], length: Callable[[], int]) -> None:
        self._batches = batches
        self._length = length

    def __next__(self) -> Any:
        given = next(self._batches)
        if given.error is None:
            return given.batch
        try:
            raise given.error  # here, and not in a generator, which an error would end
        finally:
            del given  # it holds this frame by its traceback: do not close the circle

    def __len__(self) -> int:
        return self._length()

    def close(self) -> None:
        """End the epoch here, and give back what it holds; dropping the iterator does the same."""
        self._batches.close()


def beginning(epoch: int) -> dict[str, Any]:
    """Return where an epoch begins: positions consumed, over all ranks, and those of this rank with bad samples."""
    return {"epoch": epoch, "consumed": 0, "step": 0, "sampler": None, "bad": 0}


class Epochs:
    """A loader's epochs, cut into the steps of one rank.

    Places in an epoch are as `beginning` has them.

    Args:
        size: samples in the dataset; None where a PyTorch sampler's indices are the dataset's own affair.
        labels: [size] class index of every sample, or None where there are none.
        sampler: which of them come, and when.
        batch_size: samples per rank and step, or a function of the epoch and the step.
        seed: returns 64 bits; called when they are needed.
        rank: this rank.
        world_size: number of ranks.
        drop_last: leave out a last step that is not whole.
    """

    def __init__(
        self,
        size: int | None,
        labels: Labels | None,
        sampler: Sampler | TorchSampler,
        batch_size: int | BatchSizeSchedule,
        seed: Callable[[], int],
        rank: int,
        world_size: int,
        *,
        drop_last: bool,
    ) -> None:
        self._size = size
        self._labels = labels
        self._sampler = sampler
        self._batch_size = batch_size
        self._seed = seed
        self._rank = rank
        self._world_size = world_size
        self._drop_last = drop_last

    @property
    def seed(self) -> int:
        """64 bits."""
        return self._seed()

    def size(self) -> int:
        """Return how many samples this rank takes in an epoch, or has in all where a PyTorch sampler does not say."""
        size = self._size or 0
        if isinstance(self._sampler, TorchSampler):
            return size if self._sampler.batched else operator.length_hint(self._sampler.sampler, size)
        return -(-self._sampler.length(size) // self._world_size)

    def batches_left(self, start: dict[str, Any]) -> int:
        """Return how many batches an epoch gives from a place on, on every rank the same.

        Raises:
            TypeError: if a PyTorch sampler decides, and has no length.
        """
        done, step = start["consumed"], start["step"]
        if isinstance(self._sampler, TorchSampler):
            size, done = self._size_of_steps(start), done // self._world_size
            return self._sampler.num_batches(size, drop_last=self._drop_last, start=done, step=step)
        if callable(self._batch_size):
            return len(self._positions_of_steps(self._sampler, start))
        left = max(self._sampler.length(self._size or 0) - done, 0)
        per_step = self._batch_size * self._world_size
        return left // per_step if self._drop_last else -(-left // per_step)

    def largest_batch(self, start: dict[str, Any]) -> int:
        """Return the most samples that a batch has from a place on, at least 1; 1 where a PyTorch sampler decides."""
        if not callable(self._batch_size):
            return max(1, min(self._batch_size, self._size or 1))
        if isinstance(self._sampler, TorchSampler):
            return 1
        return -(-int(self._positions_of_steps(self._sampler, start).max(initial=1)) // self._world_size)

    def steps(self, start: dict[str, Any]) -> Iterator[BatchPicks]:
        """Yield what this rank takes in each step from a place on."""
        batch_size = self._size_of_steps(start)
        how: dict[str, Any] = {
            "drop_last": self._drop_last,
            "rank": self._rank,
            "world_size": self._world_size,
            "start": start["consumed"],
            "step": start["step"],
        }
        if isinstance(self._sampler, TorchSampler):
            yield from self._sampler.batches(self._size, batch_size, state=start["sampler"], **how)
            return
        picks = self._sampler.picks(self._size or 0, self._labels, seed=self.seed, epoch=start["epoch"])
        yield from Batches(picks, batch_size, **how)

    def _size_of_steps(self, start: dict[str, Any]) -> BatchSize:
        return partial(self._batch_size, start["epoch"]) if callable(self._batch_size) else self._batch_size

    def _positions_of_steps(self, sampler: Sampler, start: dict[str, Any]) -> Any:
        length = sampler.length(self._size or 0)
        bounds = step_bounds(
            length,
            self._size_of_steps(start),
            drop_last=self._drop_last,
            world_size=self._world_size,
            start=min(start["consumed"], length),
            step=start["step"],
        )
        return np.diff(bounds)


class EpochSampler(torch.utils.data.Sampler[int]):
    """What a loader that decides the order itself has for a `sampler`: this rank's indices in the next epoch."""

    def __init__(self, epochs: Callable[[], Epochs], epoch: int, set_epoch: Callable[[int], None]) -> None:
        self.epochs = epochs
        self.epoch = epoch
        self.set_epoch = set_epoch  # of the loader

    def __len__(self) -> int:
        return self.epochs().size()

    def __iter__(self) -> Iterator[int]:
        for picks in self.epochs().steps(beginning(self.epoch)):
            yield from picks.index.tolist()


class EpochBatchSampler(torch.utils.data.Sampler[list[int]]):
    """Likewise for a `batch_sampler`, with the attributes of ``torch.utils.data.BatchSampler``."""

    def __init__(self, sampler: EpochSampler, batch_size: int, drop_last: bool, epochs: Callable[[], Epochs]) -> None:
        self.sampler = sampler
        self.epochs = epochs
        self.batch_size = batch_size
        self.drop_last = drop_last

    def __len__(self) -> int:
        return self.epochs().batches_left(beginning(self.sampler.epoch))

    def __iter__(self) -> Iterator[list[int]]:
        for picks in self.epochs().steps(beginning(self.sampler.epoch)):
            yield picks.index.tolist()
