"""Which samples make an epoch, and in which order: what the user asks for.

A sampler of fastfeed's gives the whole epoch at once, the same on every rank, as a function of the dataset, the seed
and the epoch; `order.Batches` deals it to the ranks. Those of PyTorch's are in torch_samplers.py.
"""

import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastfeed._extension import extension
from fastfeed.data.arguments import check_whole
from fastfeed.data.order import Picks, permutation
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
        return f"WeightedSampler(num_samples={self.length(size)}, weights={digest(np.asarray(self.weights))})"


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
        of_labels = digest(self._checked(labels, size))
        return f"ClassBalancedSampler(num_samples={self.length(size)}, labels={of_labels})"

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


def digest(values: npt.NDArray[Any]) -> str:
    """Return a short text that tells arrays apart."""
    return f"{zlib.crc32(np.ascontiguousarray(values).data):08x}"


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
