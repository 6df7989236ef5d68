"""Axes: from a value to a place, and the values that get a label."""

import math
from typing import NamedTuple


class Axis(NamedTuple):
    """A range of values, along which places are in percent: 0 at `low`, 100 at `high`.

    In percent, and not in pixels, so that a chart is as wide as the page lets it be while its text stays legible.
    """

    low: float
    high: float
    log: bool = False

    def place(self, value: float) -> float:
        """Return where `value` is, in percent."""
        if self.log:
            return 100 * math.log(value / self.low) / math.log(self.high / self.low)
        return 100 * (value - self.low) / (self.high - self.low)

    def ticks(self, count: int) -> list[float]:
        """Return round values within the range: about `count`, or up to twice as many on a logarithmic axis."""
        if not self.log:
            return _even_ticks(self.low, self.high, count)
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
            found = [step * 10.0**decade for decade in decades for step in steps]
            found = [value for value in found if self.low <= value <= self.high]
            if len(found) >= count:
                return found[:: math.ceil(len(found) / (2 * count))]
        return _even_ticks(self.low, self.high, count)


def _even_ticks(low: float, high: float, count: int) -> list[float]:
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [count * step for count in range(first, last + 1)]


def speedup_axis(values: list[float]) -> Axis:
    """Return an axis for speedups: from 0, or, if they are too far apart for that, logarithmic around 1."""
    low, high = min(1.0, *values), max(1.0, *values)
    if high / low > 8:
        return Axis(low / 1.1, high * 1.1, log=True)
    return Axis(0, high * 1.02)


def rate_axis(values: list[float]) -> Axis:
    """Return an axis for rates: from 0, or, if they are too far apart for that, logarithmic."""
    low, high = min(values), max(values)
    if high / low > 50:
        return Axis(low / 1.5, high * 1.5, log=True)
    return Axis(0, high * 1.08)


def size_axis(values: list[float]) -> Axis:
    """Return a logarithmic axis for numbers of bytes, with some room on either side."""
    low, high = min(values), max(values)
    room = (high / low) ** 0.06
    return Axis(low / room, high * room, log=True)
