"""How runs are timed: in turn, round by round, and summed up in percentiles."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

Run = Callable[[], Any]  # does the work once and returns what it computed
Timer = Callable[[Run], float]  # does a run and returns how long it took, in seconds

MIN_ROUNDS = 5  # fewer make no percentiles
MAX_ROUNDS = 500  # more tell nothing new about a run of some µs

# A write of this much leaves nothing of a run's inputs in the L2 of any GPU so far, the largest being 126 MB.
FLUSH_BYTES = 256 << 20


class Band(NamedTuple):
    """The 20th, 50th and 80th percentile."""

    p20: float
    p50: float
    p80: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Band":
        """Return the percentiles of `values`, interpolated between neighbours."""
        return cls(*np.percentile(values, (20, 50, 80)).tolist())


def measure(runs: dict[str, Run], timer: Timer, budget: float) -> dict[str, list[float]]:
    """Time the runs in turn, A B A B ..., and return the seconds of each, round by round.

    In turn, so that a change of clock rate or a busy neighbour meets all of them alike: times of one round can be
    compared with each other when times of different rounds cannot.

    Args:
        runs: what to time.
        timer: how.
        budget: seconds that the timed rounds take together, within MIN_ROUNDS and MAX_ROUNDS.
    """

    def rounds(budget: float, at_least: int) -> Iterator[dict[str, float]]:
        count, spent = 0, 0.0
        while count < at_least or (count < MAX_ROUNDS and spent < budget):
            times = {name: timer(run) for name, run in runs.items()}
            count, spent = count + 1, spent + sum(times.values())
            yield times

    for _ in rounds(budget / 10, at_least=1):
        pass  # warm-up: what is compiled, allocated or started on first use, and the clock rates
    timed = list(rounds(budget, MIN_ROUNDS))
    return {name: [times[name] for times in timed] for name in runs}


def wall_timer(device: torch.device, clock: Callable[[], float] = time.perf_counter) -> Timer:
    """Time on the host, until the work that a run has queued on `device` is done."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def seconds(run: Run) -> float:
        wait()
        start = clock()
        run()
        wait()
        return clock() - start

    return seconds


def gpu_timer(device: torch.device) -> Timer:
    """Time on the GPU, between two events, with an L2 that holds nothing of use.

    While the flush runs, the host queues the run behind it: launching counts only as far as it cannot keep up.
    """
    cache = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device)

    def seconds(run: Run) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        cache.zero_()
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    return seconds
