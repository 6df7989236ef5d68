"""Image sizes that change while training: functions of the epoch and the step, so that resuming finds the same ones."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fastfeed.data.philox import philox
from fastfeed.data.transforms import Size, output_size

SizeSchedule = Callable[[int, int], Size]  # (epoch, step) -> pixels

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
        ValueError: for numbers that are not whole or not positive.
    """

    first: int
    last: int
    epochs: int
    multiple: int = 32

    def __post_init__(self) -> None:
        for name in ("first", "last", "epochs", "multiple"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"ProgressiveSize: {name} is {value!r}; expected a positive whole number")

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
        ValueError: for no sizes, or one or an `every` that is not positive.
    """

    sizes: Sequence[Size]
    every: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.sizes) == 0:
            raise ValueError("MultiScale: sizes is empty; expected some, as (192, 224, 256)")
        for size in self.sizes:
            output_size(size)
        if not isinstance(self.every, int) or self.every < 1:
            raise ValueError(f"MultiScale: every is {self.every!r}; expected a positive whole number of steps")

    def __call__(self, epoch: int, step: int) -> Size:
        """Return the size of a step."""
        counter = np.array([step // self.every & 0xFFFFFFFF, 0, epoch & 0xFFFFFFFF, _DOMAIN], np.uint32)
        return self.sizes[int(philox(self.seed, counter)[0]) * len(self.sizes) >> 32]
