"""How runs are timed: in turn, round by round, and summed up in percentiles."""

import multiprocessing
import os
import random
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

Run = Callable[[], Any]  # does the work once and returns what it computed, or an Unfinished

MIN_ROUNDS = 2  # in a pass, of which there are several
MAX_ROUNDS = 200  # more tell nothing new about a run of some µs
SHORT = 0.05  # seconds: runs below it are timed once they have gone on
SETTLE = 0.025  # for so many seconds


class Sample(NamedTuple):
    """One timed run: the seconds it took, and the seconds that processors worked for it meanwhile."""

    seconds: float
    processor: float = 0.0


class Unfinished(NamedTuple):
    """What a run may return that is timed on the host: its result, and what is left to do once the clock was read."""

    result: Any
    finish: Callable[[], object]


Timer = Callable[[Run], Sample]


class Band(NamedTuple):
    """The 20th, 50th and 80th percentile."""

    p20: float
    p50: float
    p80: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Band":
        """Return the percentiles of `values`, interpolated between neighbours."""
        return cls(*np.percentile(values, (20, 50, 80)).tolist())


def measure(runs: dict[str, Run], timer: Timer, budget: float) -> dict[str, list[Sample]]:
    """Time the runs in turn, each once a round, and return the samples of each, round by round.

    In turn, so that a change of clock rate or a busy neighbour meets all of them alike: times of one round can be
    compared with each other when times of different rounds cannot. Each round in another order, because a run leaves
    its traces in caches and memory: whatever always came after the same one was up to 10 % slower, or faster.

    Args:
        runs: what to time.
        timer: how.
        budget: seconds that the timed rounds take together, within MIN_ROUNDS and MAX_ROUNDS, with all that a timer
            does besides.
    """
    shuffled = random.Random(0)
    order = list(runs)

    def rounds(budget: float, at_least: int) -> Iterator[dict[str, Sample]]:
        count, spent = 0, 0.0
        while count < at_least or (count < MAX_ROUNDS and spent < budget):
            shuffled.shuffle(order)
            start = time.perf_counter()
            samples = {name: timer(runs[name]) for name in order}
            elapsed = time.perf_counter() - start
            count, spent = count + 1, spent + max(elapsed, sum(sample.seconds for sample in samples.values()))
            yield samples

    for _ in rounds(budget / 10, at_least=1):
        pass  # warm-up: what is compiled, allocated or started on first use, and the clock rates
    timed = list(rounds(budget, MIN_ROUNDS))
    return {name: [samples[name] for samples in timed] for name in runs}


def wall_timer(device: torch.device, clock: Callable[[], float] = time.perf_counter) -> Timer:
    """Time on the host, until the work that a run has queued on `device` is done.

    A short run is timed when it has been done, untimed, for SETTLE seconds, as programs do it again and again: before,
    the threads of whatever ran last still spin (OpenMP's do for up to 15 ms, on the cores that this run's threads
    want), and the caches hold its data.
    """

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def timed(run: Run) -> Sample:
        wait()
        processor, start = processor_time(), clock()
        returned = run()
        wait()
        seconds = clock() - start
        sample = Sample(seconds, processor_time() - processor)
        if isinstance(returned, Unfinished):
            returned.finish()
        return sample

    def sample(run: Run) -> Sample:
        settled = time.perf_counter() + SETTLE
        while (one := timed(run)).seconds < SHORT and time.perf_counter() < settled:
            pass
        return one

    return sample


def processor_time() -> float:
    """Return the seconds that processors have spent on this process, its threads and its worker processes."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    running = (_processor_time_of(child.pid) for child in multiprocessing.active_children())
    return time.process_time() + ended.ru_utime + ended.ru_stime + sum(running)


def _processor_time_of(pid: int | None) -> float:
    try:
        # proc_pid_stat(5): utime and stime are fields 14 and 15; field 2, in brackets, may hold spaces.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0  # it has just ended
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
