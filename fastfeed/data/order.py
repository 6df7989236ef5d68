"""Which sample comes when: a function of the seed, the epoch and the position, and of nothing else.

An epoch is a list of picks, the same on every rank (`samplers.py` says which). Position p of it goes to rank
p % world_size, as ``torch.utils.data.DistributedSampler`` deals, and a step takes the next world_size * batch_size
positions. So the state of an epoch is how many positions are consumed, and any number of ranks, at any batch size, can
go on from there.
"""

import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch.distributed

from fastfeed._extension import extension
from fastfeed.data.arguments import check_whole

# The batch size of every step, or a function from the index of the step in its epoch to it.
BatchSize = int | Callable[[int], int]

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Picks:
    """The order of an epoch of M positions.

    Attributes:
        index: [M] int64, which sample stands at each position.
        copy: [M] int64, how often that sample stood at earlier positions: 0 everywhere unless samples are repeated.
            With it in the key of the random draws, repeated samples are augmented differently.
    """

    index: Indices
    copy: Indices

    def __len__(self) -> int:
        return len(self.index)


@dataclass(frozen=True, eq=False)
class BatchPicks:
    """What one rank takes in one step: N samples.

    Attributes:
        index: [N] int64, the samples; of objects, where a PyTorch sampler gives what is not checked.
        copy: [N] int64, as in `Picks`.
        valid: [N] bool, False for padding: repeats of the step's first sample, in a last step that does not go up in
            the number of ranks.
        position: [N] int64, where in the epoch the samples stand, counted over all ranks.
        step: index of the step in its epoch.
        consumed: positions of the epoch, counted over all ranks, that are done after this step: where to resume.
        sampler_state: state dict of a PyTorch sampler after this step, if it has one.
    """

    index: npt.NDArray[Any]
    copy: Indices
    valid: npt.NDArray[np.bool_]
    position: Indices
    step: int
    consumed: int
    sampler_state: Any = None

    def progress(self, epoch: int) -> dict[str, Any]:
        """Return where an epoch goes on after this step, for the state of a loader."""
        return {"epoch": epoch, "consumed": self.consumed, "step": self.step + 1, "sampler": self.sampler_state}


class Batches:
    """One rank's share of an epoch, step by step, with random access.

    All ranks have equally many steps, of equal sizes. A last step of R positions, not enough for a whole one, gives
    every rank ceil(R / world_size) samples; those beyond R are padding, marked in `BatchPicks.valid` so that nothing
    need be counted twice. On one rank there is no padding.

    Args:
        picks: the epoch.
        batch_size: samples per rank and step; a function is called with the index of each step.
        drop_last: leave out a last step that is not whole, on all ranks.
        rank: this rank.
        world_size: number of ranks.
        start: positions consumed already: 0, or `BatchPicks.consumed` of the last step that was done. The number of
            ranks and the batch size may have been others then.
        step: index of the first step, which goes on counting when an epoch is resumed.

    Raises:
        ValueError: for a batch size below 1, a rank outside 0 to world_size - 1, or a start outside of the epoch.
    """

    def __init__(
        self,
        picks: Picks,
        batch_size: BatchSize,
        *,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
        step: int = 0,
    ) -> None:
        self.picks = picks
        self.rank, self.world_size = rank_and_world_size(rank, world_size)
        self.step = step
        self.bounds = step_bounds(
            len(picks), batch_size, drop_last=drop_last, world_size=world_size, start=start, step=step
        )

    def __len__(self) -> int:
        """Steps from `start` to the end of the epoch, the same on every rank."""
        return len(self.bounds) - 1

    def __iter__(self) -> Iterator[BatchPicks]:
        return map(self.batch, range(len(self)))

    def batch(self, i: int) -> BatchPicks:
        """Return what this rank takes in the i-th step from `start`.

        Raises:
            IndexError: unless 0 <= i < len(self).
        """
        if not 0 <= i < len(self):
            raise IndexError(f"batch {i} of {len(self)}; expected 0 or more, and less than the length")
        begin, end = int(self.bounds[i]), int(self.bounds[i + 1])
        n = -(-(end - begin) // self.world_size)
        first = begin + (self.rank - begin) % self.world_size
        position = first + self.world_size * np.arange(n, dtype=np.int64)
        valid = position < end
        position[~valid] = begin
        return BatchPicks(
            self.picks.index[position], self.picks.copy[position], valid, position, self.step + i, consumed=end
        )


def step_bounds(
    length: int, batch_size: BatchSize, *, drop_last: bool = False, world_size: int = 1, start: int = 0, step: int = 0
) -> Indices:
    """Return where the steps of an epoch begin, and where the last one ends: [steps + 1] int64.

    Args:
        length: positions in the epoch, over all ranks.
        batch_size: samples per rank and step; a function is called with the index of each step.
        drop_last: leave out a last step that is not whole.
        world_size: number of ranks.
        start: positions consumed already, over all ranks.
        step: index of the first step.

    Raises:
        ValueError: for an argument out of range.
    """
    check_whole("length", length, 0)
    check_whole("world_size", world_size, 1)
    check_whole("start", start, 0)
    check_whole("step", step, 0)
    if start > length:
        raise ValueError(f"start is {start}, but the epoch has {length} positions. Is the dataset another one?")
    if callable(batch_size):
        ends = [start]
        while ends[-1] < length:
            size = batch_size(step)
            check_whole(f"batch_size of step {step}", size, 1)
            ends.append(ends[-1] + size * world_size)
            step += 1
        bounds = np.array(ends[:-1] if ends[-1] > length else ends, np.int64)
    else:
        check_whole("batch_size", batch_size, 1)
        bounds = np.arange(start, length + 1, min(batch_size * world_size, length + 1), dtype=np.int64)
    return bounds if drop_last or bounds[-1] == length else np.append(bounds, length)


def rank_and_world_size(rank: int | None = None, world_size: int | None = None) -> tuple[int, int]:
    """Return the rank and the number of ranks: those given, else torch.distributed's, else (0, 1).

    Warns if it is (0, 1), but the process was started as one of several, by torchrun say.

    Raises:
        ValueError: if one of them is given alone, or unless 0 <= rank < world_size.
    """
    if (rank is None) != (world_size is None):
        raise ValueError(f"rank is {rank} and world_size is {world_size}; expected both or neither")
    if rank is None or world_size is None:
        if not torch.distributed.is_available() or not torch.distributed.is_initialized():
            started = os.environ.get("WORLD_SIZE", "")
            if started.isdigit() and int(started) > 1:
                warnings.warn(
                    f"WORLD_SIZE is {started} in the environment, but torch.distributed is not initialised: this "
                    "loader takes every sample, as those of the other ranks do. Call "
                    "torch.distributed.init_process_group() before you use the loader, or give it rank and "
                    "world_size (0 and 1, if every rank is to take all)",
                    stacklevel=4,  # of who begins an epoch
                )
            return 0, 1
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    world_size, rank = check_whole("world_size", world_size, 1), check_whole("rank", rank, 0)
    if rank >= world_size:
        raise ValueError(f"rank is {rank}; expected 0 to {world_size - 1} for a world_size of {world_size}")
    return rank, world_size


def permutation(size: int, *, seed: int, epoch: int) -> Indices:
    """Return a uniformly random permutation of range(size): [size] int64.

    ``torch.randperm``, but as a function of its arguments: Fisher and Yates' shuffle, with 64 random bits a draw.

    Args:
        size: 0 or more.
        seed: taken modulo 2**64.
        epoch: taken modulo 2**32.

    Raises:
        ValueError: for a negative size.
    """
    check_whole("size", size, 0)
    return extension().permutation(size, seed & 0xFFFFFFFFFFFFFFFF, epoch & 0xFFFFFFFF)
