"""Two runs compared, row by row: the same, faster, slower, or undecided."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from benchmarks.results import Row, key

Verdict = Literal["same", "faster", "slower", "undecided"]

MARGIN = 1.03  # a ratio within this of 1 makes no difference to anyone

# Student's t, the two-sided 99 % quantile for 1, 2, ... degrees of freedom. 99 and not 95: there are dozens of rows,
# and one in twenty that changes by chance would make every comparison report a change.
_T99 = (63.657, 9.925, 5.841, 4.604, 4.032, 3.707, 3.499, 3.355, 3.250, 3.169, 3.106, 3.055, 3.012, 2.977, 2.947)
_T99 += (2.921, 2.898, 2.878)

# What a difference between two runs may come from besides the code.
_ENVIRONMENT = ("device", "gpu", "cpu", "cores", "threads", "driver", "python", "torch", "cuda", "triton", "dali")
_ENVIRONMENT += ("commit",)

# What the work is: a run of another amount of it, or against another baseline, has another speed.
_WORK = ("baseline", "bytes", "flops", "images")


class Change(NamedTuple):
    """How many times faster the second run is, with its 99 % confidence interval."""

    ratio: float
    low: float
    high: float

    @property
    def verdict(self) -> Verdict:
        """Same: the whole interval is within MARGIN of 1. Undecided: it is not, and holds 1."""
        if self.low >= 1 / MARGIN and self.high <= MARGIN:
            return "same"
        if self.low > 1:
            return "faster"
        return "slower" if self.high < 1 else "undecided"


def change(old: Sequence[float], new: Sequence[float]) -> Change:
    """Return the ratio of two samples of rates, by Welch's t-test on their logarithms.

    Args:
        old: independent measurements of a positive rate, two or more; with fewer the interval has no end.
        new: the same after the change.
    """
    (old_mean, old_variance), (new_mean, new_variance) = _log_mean(old), _log_mean(new)
    difference, variance = new_mean - old_mean, old_variance + new_variance
    if variance == 0:
        error = 0.0
    elif math.isinf(variance):
        error = math.inf
    else:
        # Welch and Satterthwaite's degrees of freedom, rounded down.
        parts = ((old_variance, len(old)), (new_variance, len(new)))
        freedom = variance**2 / sum(part**2 / (count - 1) for part, count in parts)
        error = _T99[min(int(freedom), len(_T99)) - 1] * math.sqrt(variance)
    return Change(math.exp(difference), math.exp(difference - error), math.exp(min(difference + error, 700.0)))


def _log_mean(values: Sequence[float]) -> tuple[float, float]:
    """The mean of the logarithms, and the variance of that mean."""
    logs = np.log(values)
    return float(logs.mean()), float(logs.var(ddof=1) / len(logs)) if len(logs) > 1 else math.inf


def compare(old: Sequence[Row], new: Sequence[Row]) -> tuple[str, bool]:
    """Compare two runs.

    Other providers than the baseline are compared by their speedup over it, which was measured side by side and so
    does not depend on how busy or warm the machine was. The baseline's own rows are compared by their times, which do.

    Returns:
        A table, and whether one of fastfeed's own rows is slower, or is no longer right.
    """
    before, after = ({key(row): row for row in rows} for rows in (old, new))
    lines = [
        f"{field:9}{first} -> {second}"
        for field in _ENVIRONMENT
        if (first := old[0][field]) != (second := new[0][field])  # type: ignore[literal-required]
    ]
    cells = [("op", "shape", "dtype", "provider", "before", "after", "speed", "99% interval", "")]
    counts = dict.fromkeys(("same", "faster", "slower", "undecided", "not compared"), 0)
    worse = False
    for name in before | after:
        first, second = before.get(name), after.get(name)
        ours = name[-1] == "fastfeed"
        if first is None or second is None or first["status"] != "ok" or second["status"] != "ok":
            words = ["no such row" if row is None else row["status"] for row in (first, second)]
            if words != ["absent", "absent"]:
                cells.append((*name, *words, "", "", "not compared"))
            counts["not compared"] += 1
            worse |= ours and words[0] == "ok" and words[1] in ("wrong", "failed")
            continue
        if any(first[field] != second[field] for field in _WORK):
            cells.append((*name, "other work", "", "", "", "not compared"))
            counts["not compared"] += 1
            continue
        result = change(_rates(first), _rates(second))
        counts[result.verdict] += 1
        worse |= ours and result.verdict == "slower"
        interval = f"{result.low:.3f}-{result.high:.3f}" if result.high < 100 else "too few passes"
        cells.append((*name, _measured(first), _measured(second), f"{result.ratio:.3f}x", interval, result.verdict))
    total = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    if counts["undecided"]:
        total += "\nundecided: the passes of these runs differ too much; without --quick there are more rounds in each"
    return "\n".join([*lines, *([""] if lines else []), *_columns(cells), "", total]), worse


def _rates(row: Row) -> list[float]:
    if row["provider"] == row["baseline"]:
        return [1 / us for us in row["samples_us"] or ()]
    return row["speedup_samples"] or []


def _measured(row: Row) -> str:
    mean = math.exp(_log_mean(_rates(row))[0])  # what the ratio is of
    if row["provider"] != row["baseline"]:
        return f"{mean:.2f}x"
    us = 1 / mean
    return f"{us:.1f} µs" if us < 1000 else f"{us / 1000:.2f} ms"


def _columns(cells: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return [lines[0], "-" * (sum(widths) + 2 * len(widths) - 2), *lines[1:]]
