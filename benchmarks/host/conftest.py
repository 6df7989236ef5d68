"""Ratios instead of times: ours and what it replaces run in turn, and saved runs are compared by their ratios.

pytest-benchmark's own tables and saved files are there too; a saved time says little on another day, a ratio more. What
a call of ours takes longer, or less, than a call of theirs is printed beside it, in µs.
"""

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.machine import keep_freed_memory
from benchmarks.timing import Band

# Kernels that are interpreted are not worth timing; this is read when they are imported.
os.environ.pop("TRITON_INTERPRET", None)

Work = Callable[[], Any]
_MEASURED = pytest.StashKey[dict[str, Band]]()
_LONGER = pytest.StashKey[dict[str, float]]()
_SAVED = pytest.StashKey[dict[str, Band]]()


def pytest_configure(config: pytest.Config) -> None:
    """Make room for what is measured, and for what was saved before."""
    keep_freed_memory()
    config.stash[_MEASURED] = {}
    config.stash[_LONGER] = {}
    config.stash[_SAVED] = {}


@pytest.fixture
def versus(benchmark: Any, request: pytest.FixtureRequest) -> Callable[..., None]:
    """Return a function (ours, theirs, repeat=1, rounds=30) that times ours in turn with theirs.

    A round is `repeat` calls of either; for calls of some µs take enough of them to make a millisecond or more.
    """

    def run(ours: Work, theirs: Work, repeat: int = 1, rounds: int = 30) -> None:
        seconds: list[float] = []

        def calls(work: Work) -> None:
            for _ in range(repeat):
                work()

        def their_turn() -> None:
            start = time.perf_counter()
            calls(theirs)
            seconds.append(time.perf_counter() - start)

        benchmark.pedantic(calls, args=(ours,), setup=their_turn, rounds=rounds, warmup_rounds=2)
        if benchmark.stats is None:
            return  # --benchmark-disable: both ran once, and nothing was timed
        timed = benchmark.stats.stats.data
        pairs = list(zip(seconds[-len(timed) :], timed, strict=True))
        speedups = [theirs / ours for theirs, ours in pairs]
        request.config.stash[_LONGER][request.node.nodeid] = (
            statistics.median(ours - theirs for theirs, ours in pairs) / repeat
        )
        request.config.stash[_MEASURED][request.node.nodeid] = band = Band.of(speedups)
        benchmark.extra_info["speedup"] = band._asdict()

    return run


def pytest_benchmark_compare_machine_info(config: pytest.Config, compared_benchmark: dict[str, Any]) -> None:
    """Take the ratios from the saved file that --benchmark-compare has found."""
    for saved in compared_benchmark["benchmarks"]:
        if speedup := saved["extra_info"].get("speedup"):
            config.stash[_SAVED][saved["fullname"]] = Band(**speedup)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the ratios, beside those that were saved before.

    Without a verdict: what changes from one process to the next is not in the percentiles of one of them.
    """
    measured, saved, longer = (config.stash[key] for key in (_MEASURED, _SAVED, _LONGER))
    if not measured:
        return
    terminalreporter.section("how many times faster than what it replaces: median (p20-p80); and how much longer")
    width = max(map(len, measured))
    for name, band in measured.items():
        line = f"{name:{width}}  {_ratio(band)}"
        if name in saved:
            line += f"  was {_ratio(saved[name])}"
        terminalreporter.write_line(f"{line}  {1e6 * longer[name]:+.1f} µs")


def _ratio(band: Band) -> str:
    return f"{band.p50:6.2f}x  ({band.p20:.2f}-{band.p80:.2f})"
