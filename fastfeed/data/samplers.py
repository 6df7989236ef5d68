"""Which samples make an epoch, and in which order: what the user asks for.

A sampler of fastfeed's gives the whole epoch at once, the same on every rank, as a function of the dataset, the seed
and the epoch; `order.Batches` deals it to the ranks. A sampler of PyTorch's gives one rank's share, index by index, as
in ``torch.utils.data.DataLoader``: `TorchSampler` takes it in.
"""

import itertools
import operator
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastfeed._extension import extension
from fastfeed.data.arguments import check_whole
from fastfeed.data.order import BatchPicks, BatchSize, Indices, Picks, permutation, step_bounds
from fastfeed.data.philox import Float64
from fastfeed.data.sources.targets import NO_LABEL

Labels = npt.NDArray[np.int64]


class Sampler(ABC):
    """The order of an epoch, on all ranks together."""

    @abstractmethod
    def length(self, size: int) -> int:
        """Return the number of positions in an epoch over `size` samples.

        Raises:
            ValueError: if the sampler does not go with so many samples.
        """

    @abstractmethod
    def picks(self, size: int, labels: Labels | None, *, seed: int, epoch: int) -> Picks:
        """Return the order of an epoch: a function of the arguments.

        Args:
            size: number of samples in the source, 0 or more.
            labels: [size] class index of every sample, or None where there are none.
            seed: 64 bits.
            epoch: 32 bits.

        Raises:
            ValueError: if the sampler does not go with so many samples, or with the labels.
        """

    def identity(self, size: int, labels: Labels | None) -> str:
        """Return a short text that samplers have in common which give the same orders, for the state of a loader.

        Here it is the name of the class. A sampler with settings has those in it too, and a digest of what is long.

        Args:
            size: as for `picks`.
            labels: likewise.

        Raises:
            ValueError: likewise.
        """
        return type(self).__name__


@dataclass(frozen=True)
class Sequential(Sampler):
    """Every sample once, in the order of the source; ``torch.utils.data.SequentialSampler``."""

    def length(self, size: int) -> int:
        """Return `size`."""
        return size

    def picks(self, size: int, labels: Labels | None, *, seed: int, epoch: int) -> Picks:
        """Return the order of an epoch; see `Sampler.picks`."""
        return Picks(np.arange(size, dtype=np.int64), np.zeros(size, np.int64))


@dataclass(frozen=True)
class Shuffled(Sampler):
    """Every sample once, in an order drawn for each epoch; ``torch.utils.data.RandomSampler``."""

    def length(self, size: int) -> int:
        """Return `size`."""
        return size

    def picks(self, size: int, labels: Labels | None, *, seed: int, epoch: int) -> Picks:
        """Return the order of an epoch; see `Sampler.picks`."""
        return Picks(permutation(size, seed=seed, epoch=epoch), np.zeros(size, np.int64))


@dataclass(frozen=True, eq=False)
class WeightedSampler(Sampler):
    """Samples drawn with replacement, with given weights; ``torch.utils.data.WeightedRandomSampler``.

    Args:
        weights: one for each sample of the source, 0 or more, of any sum. A sample of weight 0 is never drawn.
        num_samples: positions in an epoch, over all ranks; by default as many as there are weights.

    Raises:
        TypeError: for weights that are no real numbers.
        ValueError: for weights that are not [N], not finite, negative, all 0, or none; for a num_samples below 1.
    """

    weights: Sequence[float] | npt.NDArray[Any] | torch.Tensor
    num_samples: int | None = None

    def __post_init__(self) -> None:
        weights = _as_weights(self.weights)
        if weights.ndim != 1:
            raise ValueError(f"weights have shape {list(weights.shape)}; expected one number for each sample")
        if not len(weights):
            raise ValueError("weights is empty; expected one number for each sample")
        bad = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
        if len(bad):
            raise ValueError(f"the weight of sample {bad[0]} is {weights[bad[0]]}; expected a finite number, 0 or more")
        if not weights.any():
            raise ValueError(f"all {len(weights)} weights are 0: no sample can be drawn. Give one a positive weight")
        _check_num_samples(self.num_samples)
        weights.setflags(write=False)
        object.__setattr__(self, "weights", weights)

    def length(self, size: int) -> int:
        """Return `num_samples`, or `size`; see `Sampler.length`."""
        if len(self.weights) != size:
            raise ValueError(f"there are {len(self.weights)} weights for {size} samples; expected one for each sample")
        return self.num_samples or size

    def picks(self, size: int, labels: Labels | None, *, seed: int, epoch: int) -> Picks:
        """Return the order of an epoch; see `Sampler.picks`."""
        return _weighted_picks(np.asarray(self.weights), self.length(size), seed, epoch)

    def identity(self, size: int, labels: Labels | None) -> str:
        """Return what tells this sampler's orders from others'; see `Sampler.identity`."""
        return f"WeightedSampler(num_samples={self.length(size)}, weights={_digest(np.asarray(self.weights))})"


@dataclass(frozen=True)
class ClassBalancedSampler(Sampler):
    """Samples drawn with replacement: every class that has samples equally likely, and so is every sample in a class.

    A sample without a label, whose class index is -100, is never drawn.

    Args:
        num_samples: positions in an epoch, over all ranks; by default as many as the source has samples.

    Raises:
        ValueError: for a num_samples below 1.
    """

    num_samples: int | None = None

    def __post_init__(self) -> None:
        _check_num_samples(self.num_samples)

    def length(self, size: int) -> int:
        """Return `num_samples`, or `size`; see `Sampler.length`."""
        if size == 0 and self.num_samples:
            raise ValueError(f"num_samples is {self.num_samples}, but there are no samples to draw from")
        return self.num_samples or size

    def picks(self, size: int, labels: Labels | None, *, seed: int, epoch: int) -> Picks:
        """Return the order of an epoch; see `Sampler.picks`."""
        labels = self._checked(labels, size)
        _, class_of, counts = np.unique(labels, return_inverse=True, return_counts=True)
        weights = np.where(labels == NO_LABEL, 0.0, 1.0 / counts[class_of])
        return _weighted_picks(weights, self.length(size), seed, epoch)

    def identity(self, size: int, labels: Labels | None) -> str:
        """Return what tells this sampler's orders from others'; see `Sampler.identity`."""
        digest = _digest(self._checked(labels, size))
        return f"ClassBalancedSampler(num_samples={self.length(size)}, labels={digest})"

    def _checked(self, labels: Labels | None, size: int) -> Labels:
        if labels is None:
            raise ValueError("ClassBalancedSampler needs the samples' class indices, and the source has none")
        if labels.shape != (size,):
            raise ValueError(
                f"labels have shape {list(labels.shape)}; expected one class index for each of {size} samples"
            )
        if size and (labels == NO_LABEL).all():
            raise ValueError(
                f"all {size} labels are {NO_LABEL}, which is no label: there is no class to draw from. Give the source "
                "class indices, or take shuffle=True instead of ClassBalancedSampler"
            )
        return labels


@dataclass(frozen=True)
class RepeatedAugmentation(Sampler):
    """Samples in an order drawn for each epoch, each `repeats` times in a row, so that copies go to different ranks.

    Every copy is augmented differently. Sources: E. Hoffer et al., "Augment your batch", CVPR 2020; M. Berman et al.,
    "MultiGrain", 2019; the RASampler of DeiT and of torchvision's references, with which an epoch has about as many
    positions as the source has samples, and so visits one sample in `repeats`.

    Args:
        repeats: copies of a sample, at least 1. With fewer ranks than that, some ranks get several.
        num_samples: positions in an epoch, over all ranks; by default the size of the source rounded down to a multiple
            of 256, as in RASampler, or the size itself where it is less than 256 (RASampler would give nothing).

    Raises:
        ValueError: for repeats or a num_samples below 1.
    """

    repeats: int = 3
    num_samples: int | None = None

    def __post_init__(self) -> None:
        check_whole("repeats", self.repeats, 1)
        _check_num_samples(self.num_samples)

    def length(self, size: int) -> int:
        """Return `num_samples`, or `size` rounded down; see `Sampler.length`."""
        if self.num_samples is None:
            return size // 256 * 256 or size
        if self.num_samples > self.repeats * size:
            raise ValueError(
                f"num_samples is {self.num_samples}; expected at most {self.repeats * size}: {self.repeats} copies of "
                f"each of {size} samples"
            )
        return self.num_samples

    def picks(self, size: int, labels: Labels | None, *, seed: int, epoch: int) -> Picks:
        """Return the order of an epoch; see `Sampler.picks`."""
        position = np.arange(self.length(size), dtype=np.int64)
        order = permutation(size, seed=seed, epoch=epoch)
        return Picks(order[position // self.repeats], position % self.repeats)

    def identity(self, size: int, labels: Labels | None) -> str:
        """Return what tells this sampler's orders from others'; see `Sampler.identity`."""
        return f"RepeatedAugmentation(repeats={self.repeats}, num_samples={self.length(size)})"


class TorchSampler:
    """A sampler or batch sampler of PyTorch's: any iterable of indices, or of lists of indices.

    As in ``torch.utils.data.DataLoader``, every rank iterates over its own, a ``DistributedSampler`` say, and what it
    gives is not dealt again. It may have no length and no end. `set_epoch` is called at the beginning of an epoch, of
    the sampler or, if a batch sampler has none, of its attribute `sampler`.

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
        self._epoch = 0  # that was set here last; samplers begin with 0
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
        epoch: int,
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
            epoch: what `set_epoch` is called with.
            drop_last: leave out a last batch that is not full; a batch sampler decides for itself.
            rank: this rank.
            world_size: number of ranks.
            start: as for `Batches`: positions consumed, over all ranks.
            step: likewise.
            state: `BatchPicks.sampler_state` of the last step that was done, if it had one.

        Raises:
            TypeError: for an index that is not a whole number, or a batch that is not a list of them.
            IndexError: for an index outside of the source.
            ValueError: for an empty batch, or a start where this sampler cannot go on.
        """
        if start % world_size:
            raise ValueError(
                f"start is {start}, but {world_size} ranks with samplers of their own go on from multiples of "
                f"{world_size} only. Resume on the number of ranks that the state was saved on"
            )
        done = start // world_size
        if (sampler := self._with_epoch()) is not None:
            sampler.set_epoch(epoch)
            self._epoch = epoch
        skip = done
        if self._stateful and state is not None:
            self.sampler.load_state_dict(state)  # type: ignore[attr-defined]
            skip = 0
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
                # A copy: the sampler may give its own, and change it.
                sampler_state=deepcopy(self.sampler.state_dict()) if self._stateful else None,  # type: ignore[attr-defined]
            )

    def epoch_set_elsewhere(self) -> int | None:
        """Return the sampler's epoch, if it was set by somebody else since `batches` set it."""
        epoch = getattr(self._with_epoch(), "epoch", None)
        return epoch if isinstance(epoch, int) and epoch != self._epoch else None

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
            if not 0 <= number < size:
                raise IndexError(f"{self._name} gave index {number}; expected 0 or more and less than {size}")
            index[i] = number
        return index


def _as_objects(group: list[Any]) -> npt.NDArray[Any]:
    index = np.empty(len(group), object)
    for i, value in enumerate(group):  # one by one: NumPy would take a list of tuples for two dimensions
        index[i] = value
    return index


def _digest(values: npt.NDArray[Any]) -> str:
    return f"{zlib.crc32(np.ascontiguousarray(values).data):08x}"


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
        return _digest(np.concatenate([part for group in groups for part in ([len(group)], group)], dtype=np.int64))
    except (TypeError, ValueError, OverflowError):  # what is no index shows when its turn comes
        return None


def _as_weights(given: Any) -> Float64:
    """Return a copy of weights, of any shape; NumPy alone would parse strings and drop imaginary parts."""
    values = given
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = values.numpy() if values.is_complex() else values.double().numpy()
    try:
        weights = np.array(values)
        if weights.dtype.kind == "O":
            is_real = not any(isinstance(value, str | bytes | complex) for value in weights.flat)
        else:
            is_real = weights.dtype.kind in "biuf"
        if is_real:
            return weights.astype(np.float64)
    except (TypeError, ValueError):  # lists of different lengths, or of objects that are no numbers
        pass
    raise TypeError(
        f"weights is {type(given).__name__}, not all of it real numbers; expected one number for each sample"
    )


def _check_num_samples(num_samples: int | None) -> None:
    if num_samples is not None:
        check_whole("num_samples", num_samples, 1)


def _weighted_picks(weights: Float64, num_samples: int, seed: int, epoch: int) -> Picks:
    if num_samples == 0:
        return Picks(np.zeros(0, np.int64), np.zeros(0, np.int64))
    return _inverse_distribution(
        weights, extension().uniform_draws(num_samples, seed & 0xFFFFFFFFFFFFFFFF, epoch & 0xFFFFFFFF)
    )


def _inverse_distribution(weights: Float64, draws: Float64) -> Picks:
    """Return the index at which each draw, in [0, 1), is passed by the cumulative share of the weights."""
    cumulative = np.cumsum(weights / weights.max())  # whose sum cannot overflow
    cumulative /= cumulative[-1]
    # The first that is greater than the draw: never one of weight 0, which is not greater than the one before it. And
    # there is one, since the last is 1 and the draw is less.
    return Picks(*extension().invert_distribution(cumulative, draws))
