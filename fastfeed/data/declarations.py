"""What a declaration may hold: its values are checked, and made Python's own, where they are declared."""

from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch


def whole(name: str, value: Any, low: int, high: int | None = None) -> int:
    """Return a whole number, Python's or NumPy's, as an int.

    Raises:
        TypeError: for what is no whole number; True and False are none.
        ValueError: for a number out of range.
    """
    expected = f"at least {low}" if high is None else f"{low} to {high}"
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}; expected a whole number, {expected}")
    if value < low or (high is not None and value > high):
        raise ValueError(f"{name} is {value!r}; expected {expected}")
    return int(value)


def number(name: str, value: Any, low: float, high: float, expected: str) -> float:
    """Return a real number, Python's or NumPy's, as a float.

    Raises:
        TypeError: for what is no number; True and False are none.
        ValueError: for nan, or a number out of range.
    """
    if not is_number(value):
        raise TypeError(f"{name} is {value!r}; expected {expected}")
    if not low <= _python(value) <= high:
        raise ValueError(f"{name} is {value!r}; expected {expected}")
    return float(value)


def probability(name: str, value: Any) -> float:
    """Return a probability as a float; see `number`."""
    return number(name, value, 0, 1, "a probability, 0 to 1")


def numbers(name: str, values: Any, count: int, low: float, high: float, expected: str) -> tuple[float, ...]:
    """Return a sequence, an array or a tensor of `count` real numbers as a tuple of floats.

    Raises:
        TypeError: for what is no sequence of numbers.
        ValueError: for another count, for nan, or a number out of range.
    """
    items = listed(values)
    if not isinstance(items, Sequence) or not all(is_number(item) for item in items):
        raise TypeError(f"{name} is {values!r}; expected {expected}")
    if len(items) != count or not all(low <= _python(item) <= high for item in items):
        raise ValueError(f"{name} is {values!r}; expected {expected}")
    return tuple(float(item) for item in items)


def rgb_fill(owner: str, fill: Any) -> tuple[int, int, int]:
    """Return three levels for one or three, in a sequence, an array or a tensor.

    Raises:
        TypeError: for what is neither a whole number nor a sequence of them.
        ValueError: for levels outside 0 to 255, or another number of them.
    """
    items = listed(fill)
    levels = tuple(items) if isinstance(items, Sequence) and not isinstance(items, str) else (fill,)
    if len(levels) not in (1, 3):
        raise ValueError(f"{owner}: fill is {fill!r}; expected one level, or one each for R, G and B")
    red, green, blue = (whole(f"{owner}: fill", level, 0, 255) for level in levels * (3 // len(levels)))
    return red, green, blue


def check_interpolation(owner: str, value: Any, allowed: Sequence[str]) -> None:
    """Raise a ValueError for an interpolation that is none of those allowed."""
    if value not in allowed:
        raise ValueError(f"{owner}: interpolation is {value!r}; expected one of {', '.join(allowed)}")


def listed(values: Any) -> Any:
    """Return an array or a tensor as a list, and anything else as it is."""
    return values.tolist() if isinstance(values, np.ndarray | torch.Tensor) else values


def flag(name: str, value: Any) -> bool:
    """Return True or False, Python's or NumPy's, as a bool.

    Raises:
        TypeError: for anything else.
    """
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} is {value!r}; expected True or False")
    return bool(value)


def is_number(value: Any) -> bool:
    """Whether this is a real number, Python's or NumPy's; True and False are none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def _python(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value  # which compares without overflow


def replace_values(declaration: Any, **values: Any) -> None:
    """Set fields of a frozen dataclass, in its __post_init__."""
    for name, value in values.items():
        object.__setattr__(declaration, name, value)
