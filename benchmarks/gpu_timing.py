"""Timing on a GPU: the device's time apart from the host's, without help from the L2 cache."""

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.timing import Run, Sample, Timer

MAX_COPIES = 64  # inputs too small for these to fill the L2 cache are timed from it, as far as they fit
HOST_ROUNDS = 20
GRAPH_LAUNCH_CYCLES = 400_000  # over 100 µs; a launch takes the host some 10


def copies_to_fill_l2(bytes_per_run: int | None, device: torch.device) -> int:
    """Return how many sets of inputs to rotate among, so that each has left the L2 cache when its turn comes."""
    # They move three times the cache: memory that a run moves twice counts twice.
    l2 = torch.cuda.get_device_properties(device).L2_cache_size
    return min(MAX_COPIES, -(-3 * l2 // max(bytes_per_run or 1, 1)))


def capture(runs: Sequence[Run], device: torch.device) -> Run:
    """Return a run that replays all of `runs`, one after the other, as one CUDA graph.

    Raises:
        RuntimeError: one of them cannot be captured.
    """
    # What compiles, allocates or chooses an algorithm on first use must do so before, and not on the stream in use.
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for run in runs:
            run()
    torch.cuda.current_stream(device).wait_stream(stream)

    graph = torch.cuda.CUDAGraph()
    kept: list[Any] = []  # an output that is given back lends its memory, still in the cache, to the next run
    current, broken = torch.cuda.current_stream(device), None
    try:
        with torch.cuda.graph(graph, stream=stream):
            try:
                for run in runs:
                    kept.append(run())
            except Exception as error:
                broken = error
                raise
    except Exception:
        # To end a broken capture is an error of its own, which hides whose fault it is, and leaves its stream current.
        torch.cuda.set_stream(current)
        if broken is not None:
            raise broken from broken.__cause__
        raise

    def replay() -> list[Any]:
        graph.replay()
        return kept

    return replay


def graph_timer(device: torch.device, runs_per_graph: int) -> Timer:
    """Time a replay between two events, per run."""

    def sample(replay: Run) -> Sample:
        torch.cuda._sleep(GRAPH_LAUNCH_CYCLES)  # so that the launch is over when the first event passes
        return Sample(_between_events(replay) / runs_per_graph)

    return sample


def event_timer(device: torch.device, host_seconds: float) -> Timer:
    """Time a run between two events, with an L2 cache that holds nothing of use, and launches that are not waited for.

    Args:
        device: the GPU.
        host_seconds: how long the host takes to queue a run.
    """
    cache = torch.empty(2 * torch.cuda.get_device_properties(device).L2_cache_size, dtype=torch.uint8, device=device)
    # The GPU spins while the host queues the run behind it. No GPU's clock is above 3 GHz so far.
    cycles = int(3e9 * 2 * host_seconds)

    def sample(run: Run) -> Sample:
        cache.zero_()
        torch.cuda._sleep(cycles)
        return Sample(_between_events(run))

    return sample


def _between_events(run: Run) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def host_seconds(run: Run, device: torch.device) -> float:
    """Return the median time until a run has queued its work and returns, with nothing else in the queue."""
    times = []
    for _ in range(HOST_ROUNDS):
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    torch.cuda.synchronize(device)
    return statistics.median(times)


def launches(run: Run, device: torch.device) -> int:
    """Return how many kernels, copies and memory sets the profiler sees on the GPU in one run."""
    torch.cuda.synchronize(device)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        torch.cuda.synchronize(device)
    on_device = (event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA)
    return sum(not event.is_user_annotation for event in on_device)


def peak_bytes(run: Run, device: torch.device) -> int:
    """Return the most device memory that PyTorch holds for a run, beyond what it held before."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before
