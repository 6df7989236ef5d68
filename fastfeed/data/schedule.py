"""Sizes that change while training: functions of the epoch and the step, so that resuming finds the same ones."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fastfeed.data.declarations import replace_values, whole
from fastfeed.data.philox import philox
from fastfeed.data.transforms import Size, declared_size

SizeSchedule = Callable[[int, int], Size]  # (epoch, step) -> pixels
BatchSizeSchedule = Callable[[int, int], int]  # (epoch, step) -> samples per rank

_DOMAIN = 0x73697A65  # keeps the counters apart from those of other draws with the same seed


@dataclass(frozen=True)
class ProgressiveSize:
    """Sizes that grow, or shrink, evenly from epoch to epoch.

    Source: progressive resizing, as in fast.ai's DAWNBench entries and EfficientNetV2 (Tan and Le, ICML 2021).

    Args:
        first: of epoch 0, pixels.
        last: of epoch `epochs` - 1 and all later ones, pixels.
        epochs: over which to go from one to the other.
        multiple: every size is rounded to a multiple of this.

    Raises:
        TypeError: for what is no whole number.
        ValueError: for a number that is not positive.
    """

    first: int
    last: int
    epochs: int
    multiple: int = 32

    def __post_init__(self) -> None:
        for name in ("first", "last", "epochs", "multiple"):
            replace_values(self, **{name: whole(f"ProgressiveSize: {name}", getattr(self, name), 1)})

    def __call__(self, epoch: int, step: int) -> int:
        """Return the size of every step of an epoch."""
        share = min(epoch / max(self.epochs - 1, 1), 1.0)
        size = self.first + share * (self.last - self.first)
        return max(round(size / self.multiple), 1) * self.multiple


@dataclass(frozen=True)
class MultiScale:
    """Another size, drawn at random, every few steps; as YOLOv2 (Redmon and Farhadi, CVPR 2017) trains.

    Args:
        sizes: to draw from, each equally likely.
        every: steps of one size.
        seed: 64 bits.

    Raises:
        TypeError: for sizes that are no sequence, or what is no whole number.
        ValueError: for no sizes, one or an `every` that is not positive, or a seed out of range.
    """

    sizes: Sequence[Size]
    every: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        sizes = self.sizes.tolist() if isinstance(self.sizes, np.ndarray) else self.sizes
        if not isinstance(sizes, Sequence) or isinstance(sizes, str):
            raise TypeError(f"MultiScale: sizes is {sizes!r}; expected a sequence, as (192, 224, 256)")
        if len(sizes) == 0:
            raise ValueError("MultiScale: sizes is empty; expected some, as (192, 224, 256)")
        replace_values(
            self,
            sizes=tuple(declared_size(size) for size in sizes),
            every=whole("MultiScale: every", self.every, 1),
            seed=whole("MultiScale: seed", self.seed, 0, 2**64 - 1),
        )

    def __call__(self, epoch: int, step: int) -> Size:
        """Return the size of a step."""
        counter = np.array([step // self.every & 0xFFFFFFFF, 0, epoch & 0xFFFFFFFF, _DOMAIN], np.uint32)
        return self.sizes[int(philox(self.seed, counter)[0]) * len(self.sizes) >> 32]
