"""Samplers of PyTorch's: one rank's share of an epoch, index by index, as ``torch.utils.data.DataLoader`` has them."""

import itertools
import operator
from collections.abc import Iterable, Iterator, Mapping, Sized
from copy import deepcopy
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastfeed.data.arguments import check_whole
from fastfeed.data.order import BatchPicks, BatchSize, Indices, step_bounds
from fastfeed.data.samplers import digest


class GeneratedOrder(torch.utils.data.RandomSampler):
    """``torch.utils.data.RandomSampler`` with a generator: the same indices, and epochs that can be resumed.

    The state has that of the generator at the beginning of the epoch, a text of ten thousand characters.
    """

    def __init__(self, dataset: Sized, generator: torch.Generator) -> None:
        super().__init__(dataset, generator=generator)
        self.draws_seed = False  # before the indices, as PyTorch's loader does for its workers
        self._state: dict[str, Any] = {"generator": "", "given": 0}
        self._resumes = False

    def __iter__(self) -> Iterator[int]:
        if self._resumes:
            state, self._resumes = self._state, False
            self.begin_with(state)
        else:
            state = self.next_epoch()
        self._state = state
        indices = super().__iter__()
        if self.draws_seed:
            torch.empty((), dtype=torch.int64).random_(generator=self.generator)
            # All at once: how far a thread has drawn ahead when an epoch is left must not decide what comes next.
            indices = iter(list(indices))
        for index in itertools.islice(indices, state["given"], None):
            state["given"] += 1
            yield index

    def state_dict(self) -> dict[str, Any]:
        """Return where the epoch is."""
        return dict(self._state)

    def next_epoch(self) -> dict[str, Any]:
        """Return where the next epoch begins."""
        return {"generator": bytes(self.generator.get_state().tolist()).hex(), "given": 0}

    def begin_with(self, state: dict[str, Any]) -> None:
        """Put the generator where it was when the epoch of a state began."""
        self.generator.set_state(torch.tensor(list(bytes.fromhex(state["generator"])), dtype=torch.uint8))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue, with the next `iter()`, from a state."""
        self._state, self._resumes = dict(state), True


class TorchSampler:
    """A sampler or batch sampler of PyTorch's: any iterable of indices, or of lists of indices.

    As in ``torch.utils.data.DataLoader``, every rank iterates over its own, a ``DistributedSampler`` say, and what it
    gives is not dealt again. It may have no length and no end. Its epoch is the script's to set.

    An epoch is resumed from the sampler's own state if it has `state_dict`, which is then called after each batch is
    drawn, and `load_state_dict`. Otherwise the sampler is iterated over from its beginning: that takes as long as the
    indices that are skipped, and is right if it gives the same ones again.

    Args:
        sampler: what to iterate over, once in every epoch.
        batched: whether it is a batch sampler.

    Raises:
        TypeError: for a sampler that cannot be iterated over.
    """

    def __init__(self, sampler: Iterable[Any], *, batched: bool = False) -> None:
        self.sampler = sampler
        self.batched = batched
        self._digest: str | None = None
        self._epoch: int | None = 0  # that it had when it was looked at last; samplers begin with 0
        self._name = "batch_sampler" if batched else "sampler"
        iterable = hasattr(sampler, "__iter__") or hasattr(sampler, "__getitem__")
        if isinstance(sampler, type) or not iterable:
            raise TypeError(f"{self._name} is {type(sampler).__name__}; expected an iterable of indices")
        self._stateful = all(callable(getattr(sampler, name, None)) for name in ("state_dict", "load_state_dict"))

    def identity(self, world_size: int) -> str:
        """Return a digest of indices that are listed; else the class of the sampler, whose settings nobody knows.

        With several ranks it is the class in any case: their lists differ, and any rank's state is for all of them.
        """
        if world_size == 1 and self._digest is None:  # once: a state may be asked for after every batch
            self._digest = _digest_of_indices(self.sampler, self.batched) or ""
        digest = self._digest if world_size == 1 else None
        return f"{self._name} of indices {digest}" if digest else f"{self._name} {type(self.sampler).__name__}"

    def num_batches(self, batch_size: BatchSize, *, drop_last: bool = False, start: int = 0, step: int = 0) -> int:
        """Return the number of steps to the end of an epoch on this rank.

        Args:
            batch_size: as for `Batches`; a batch sampler decides for itself.
            drop_last: leave out a last batch that is not full; likewise.
            start: positions consumed already, of this rank.
            step: index of the first step.

        Raises:
            TypeError: if the sampler has no length.
        """
        try:
            length = len(self.sampler)  # type: ignore[arg-type]
        except NotImplementedError as error:  # `list` and others take a TypeError for "has none"
            raise TypeError(f"{type(self.sampler).__name__} has no length") from error
        if self.batched:
            return max(length - step, 0)
        bounds = step_bounds(length, batch_size, drop_last=drop_last, start=min(start, length), step=step)
        return len(bounds) - 1

    def batches(
        self,
        size: int | None,
        batch_size: BatchSize,
        *,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
        step: int = 0,
        state: Any = None,
    ) -> Iterator[BatchPicks]:
        """Iterate over an epoch on this rank. Nothing is padding.

        The copy of a sample is its position in the epoch, p * world_size + rank for the p-th index on a rank, whatever
        came before: so it is right after a resume, and where several ranks draw the same sample.

        Args:
            size: number of samples in the source; None lets any index through, whatever it is.
            batch_size: as for `Batches`; a batch sampler decides for itself.
            drop_last: leave out a last batch that is not full; a batch sampler decides for itself.
            rank: this rank.
            world_size: number of ranks.
            start: as for `Batches`: positions consumed, over all ranks.
            step: likewise.
            state: `BatchPicks.sampler_state` of the last step that was done, or what `between_epochs` returned.

        Raises:
            TypeError: for an index that is not a whole number, or a batch that is not a list of them.
            IndexError: for an index outside of the source; negative ones count from its end.
            ValueError: for an empty batch, or a start where this sampler cannot go on.
        """
        if start % world_size:
            raise ValueError(
                f"start is {start}, but {world_size} ranks with samplers of their own go on from multiples of "
                f"{world_size} only. Resume on the number of ranks that the state was saved on"
            )
        done = start // world_size
        skip = done
        if state is not None:
            self.set_epoch(state["epoch"])
            if state["own"] is not None:
                self.sampler.load_state_dict(state["own"])  # type: ignore[attr-defined]
                skip = 0
        self._epoch = self._epoch_now()
        groups = self._groups(batch_size, drop_last, skip, step)
        for number, group in enumerate(groups, step):
            index = _as_objects(group) if size is None else self._checked(group, size)
            position = (done + np.arange(len(index), dtype=np.int64)) * world_size + rank
            done += len(index)
            yield BatchPicks(
                index,
                position,
                np.ones(len(index), np.bool_),
                position,
                number,
                consumed=done * world_size,
                sampler_state=self._state(),
            )

    def draw_seeds_of_workers(self) -> None:
        """Have an order by a generator draw what PyTorch's loader draws for its workers, where that has no part."""
        if isinstance(self.sampler, GeneratedOrder):
            self.sampler.draws_seed = True

    def set_epoch(self, epoch: int | None) -> None:
        """Set the epoch of the sampler or, if a batch sampler has no `set_epoch`, of its attribute `sampler`."""
        if epoch is not None and (sampler := self._with_epoch()) is not None:
            sampler.set_epoch(epoch)
            self._epoch = self._epoch_now()

    def epoch_set_elsewhere(self) -> int | None:
        """Return the sampler's epoch, if it is another one than when the last epoch began or `set_epoch` was called."""
        epoch = self._epoch_now()
        return epoch if epoch != self._epoch else None

    def between_epochs(self) -> dict[str, Any] | None:
        """Return what the next epoch is resumed from, or None where that is nothing."""
        epoch = self._epoch_now()
        own = self.sampler.next_epoch() if isinstance(self.sampler, GeneratedOrder) else None
        return None if epoch is None and own is None else {"epoch": epoch, "own": own}

    def resume(self, state: Any, *, midway: bool) -> Any:
        """Take over a state, and return what is left of it for `batches`, which goes on from there.

        That is nothing at the beginning of an epoch. There an epoch that the script has set since the last one began
        stays: it is the one to come, where that in the state may be the one before, if it had not been set yet.

        Args:
            state: `BatchPicks.sampler_state` of the last step that was done, or what `between_epochs` returned.
            midway: which of the two.

        Raises:
            TypeError, ValueError: for a state of something else.
        """
        if state is None:
            return None
        if not isinstance(state, Mapping) or not {"epoch", "own"} <= state.keys():
            raise TypeError(f"the state's sampler is {state!r}; expected what DataLoader.state_dict() has there")
        if state["epoch"] is not None:
            check_whole("the epoch of the state's sampler", state["epoch"], 0)
        if midway:
            self.set_epoch(state["epoch"])
            return state
        if isinstance(self.sampler, GeneratedOrder):
            self.sampler.begin_with(state["own"])
        elif self.epoch_set_elsewhere() is None:
            self.set_epoch(state["epoch"])
        return None

    def _state(self) -> dict[str, Any] | None:
        epoch = self._epoch_now()
        # A copy: the sampler may give its own, and change it.
        own = deepcopy(self.sampler.state_dict()) if self._stateful else None  # type: ignore[attr-defined]
        return None if epoch is None and own is None else {"epoch": epoch, "own": own}

    def _epoch_now(self) -> int | None:
        epoch = getattr(self._with_epoch(), "epoch", None)
        return epoch if isinstance(epoch, int) else None

    def _with_epoch(self) -> Any:
        """Return the sampler that has `set_epoch`, or None."""
        inner = getattr(self.sampler, "sampler", None) if self.batched else None
        return next((sampler for sampler in (self.sampler, inner) if hasattr(sampler, "set_epoch")), None)

    def _groups(self, batch_size: BatchSize, drop_last: bool, skip: int, step: int) -> Iterator[list[Any]]:
        """Give the sampler's indices batch by batch, without the first `skip`."""
        iterator = iter(self.sampler)
        skipped = 0
        if self.batched:
            while skipped < skip and (group := next(iterator, None)) is not None:
                skipped += len(self._listed(group))
        else:
            skipped = sum(1 for _ in itertools.islice(iterator, skip))
        if skipped != skip:
            raise ValueError(
                f"{self._name} cannot go on after {skip} indices: it gave {skipped}. Resume with the sampler that the "
                "state was saved with"
            )
        if self.batched:
            yield from map(self._listed, iterator)
            return
        for number in itertools.count(step):
            n = batch_size(number) if callable(batch_size) else batch_size
            check_whole(f"batch_size of step {number}", n, 1)
            group = list(itertools.islice(iterator, n))
            if not group or (drop_last and len(group) < n):
                return
            yield group

    def _listed(self, group: Any) -> list[Any]:
        try:
            iterator = iter(group)
        except TypeError:
            raise TypeError(f"batch_sampler gave {group!r}; expected a list of indices") from None
        indices = list(iterator)
        if not indices:
            raise ValueError("batch_sampler gave an empty batch; expected at least one index")
        return indices

    def _checked(self, group: list[Any], size: int) -> Indices:
        index = np.empty(len(group), np.int64)
        for i, value in enumerate(group):
            try:
                number = operator.index(value)
            except TypeError:
                raise TypeError(
                    f"{self._name} gave {value!r}; expected a whole number, the index of a sample"
                ) from None
            if not -size <= number < size:
                raise IndexError(
                    f"{self._name} gave index {number}; expected one of {size} samples, {-size} to {size - 1}"
                )
            index[i] = number % size
        return index


def _as_objects(group: list[Any]) -> npt.NDArray[Any]:
    index = np.empty(len(group), object)
    for i, value in enumerate(group):  # one by one: NumPy would take a list of tuples for two dimensions
        index[i] = value
    return index


def _digest_of_indices(sampler: Any, batched: bool) -> str | None:
    """Return a digest of a list of indices, or of lists of them; None for what is something else."""
    # A class derived from list may give anything.
    if type(sampler) not in (list, tuple, range) and not isinstance(sampler, np.ndarray | torch.Tensor):
        return None
    try:
        groups = [
            np.asarray(group.cpu() if isinstance(group, torch.Tensor) else group, np.int64)
            for group in (sampler if batched else [sampler])
        ]
        # With the lengths, or [[1, 2], [3]] would be [[1], [2, 3]].
        return digest(np.concatenate([part for group in groups for part in ([len(group)], group)], dtype=np.int64))
    except (TypeError, ValueError, OverflowError):  # what is no index shows when its turn comes
        return None
