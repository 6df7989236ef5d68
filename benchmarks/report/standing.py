"""Where fastfeed stands: against the baseline, against torch.compile, and against the best of the others."""

from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from benchmarks.compare import MARGIN
from benchmarks.results import COMPILED, Row, groups
from benchmarks.timing import Band

OURS = "fastfeed"
SYMBOLS = {"faster": "▲", "slower": "▼", "even": "≈"}  # because not everyone tells the colours apart


class Standing(NamedTuple):
    """How many times faster than `provider` fastfeed is."""

    provider: str
    speedup: Band

    @property
    def verdict(self) -> str:
        """Faster or slower only if the interval from the 20th to the 80th percentile says so, by more than MARGIN."""
        if self.speedup.p20 > 1 and self.speedup.p50 > MARGIN:
            return "faster"
        return "slower" if self.speedup.p80 < 1 and self.speedup.p50 < 1 / MARGIN else "even"


class Inputs(NamedTuple):
    """The rows measured side by side on one set of inputs, and where fastfeed stands among them.

    Attributes:
        ours: fastfeed's row, if it has one. All that follows is None unless its status is "ok".
        baseline: against the baseline, from the speedups of the rounds.
        compiled: against torch.compile: the median over the rounds, in an interval as that of `other`.
        other: against the best of the other peers. Speedups over it were not kept round by round, so the interval is
            that of the passes, `samples_us`.
    """

    op: str
    shape: str
    dtype: str
    rows: Sequence[Row]
    ours: Row | None
    baseline: Standing | None
    compiled: Standing | None
    other: Standing | None

    @property
    def label(self) -> str:
        """What `--filter` looks into."""
        return f"{self.op}/{self.shape}/{self.dtype}"


def inputs(rows: Sequence[Row]) -> list[Inputs]:
    """Return the sets of inputs, in the order of the rows."""
    return [_inputs(*name, group) for name, group in groups(rows).items()]


def _inputs(op: str, shape: str, dtype: str, rows: list[Row]) -> Inputs:
    ours = next((row for row in rows if row["provider"] == OURS), None)
    if ours is None or ours["p50_us"] is None:
        return Inputs(op, shape, dtype, rows, ours, None, None, None)
    baseline = compiled = other = None
    if ours["baseline"] != OURS:
        baseline = Standing(ours["baseline"], Band(ours["speedup_p20"], ours["speedup_p50"], ours["speedup_p80"]))
    peers = [row for row in rows if row["p50_us"] is not None and row["peer"] and row["provider"] != row["baseline"]]
    by_name = {row["provider"]: row for row in peers}
    if COMPILED in by_name and ours["speedup_compiled"] is not None:
        compiled = Standing(COMPILED, _around(ours["speedup_compiled"], by_name[COMPILED], ours))
    over = {name: ours["speedup_p50"] / row["speedup_p50"] for name, row in by_name.items() if name != COMPILED}
    if over:
        best = min(over, key=over.__getitem__)
        other = Standing(best, _around(over[best], by_name[best], ours))
    return Inputs(op, shape, dtype, rows, ours, baseline, compiled, other)


def _around(middle: float, row: Row, ours: Row) -> Band:
    """Percentiles of our speedup over `row` in the passes, widened where they leave the middle out."""
    pairs = zip(row["samples_us"] or (), ours["samples_us"] or (), strict=False)
    passes = [theirs / own for theirs, own in pairs] or [middle]
    band = Band.of(passes)
    return Band(min(band.p20, middle), middle, max(band.p80, middle))


class Tally(NamedTuple):
    """How often fastfeed is faster, even and slower, and the range of its speedups."""

    counts: dict[str, int]
    lowest: float
    median: float
    highest: float

    @classmethod
    def of(cls, standings: Sequence[Standing | None]) -> "Tally | None":
        """Return it, or None if there is nothing to compare with."""
        found = [standing for standing in standings if standing is not None]
        if not found:
            return None
        counts = {verdict: sum(standing.verdict == verdict for standing in found) for verdict in SYMBOLS}
        speedups = [standing.speedup.p50 for standing in found]
        return cls(counts, min(speedups), median(speedups), max(speedups))
