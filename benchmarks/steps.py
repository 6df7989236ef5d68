"""What training steps spend their time on: when the host begins each phase of one, and when the device does."""

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

from benchmarks.results import Span

Begin = Callable[[str], object]  # told the name of the phase of a training step that begins
FIRST = "data wait"  # the phase with which a step begins
END = "end"  # told when the last wait is over


class Steps(NamedTuple):
    """What was recorded of training steps, with the names of a row's fields; None for what needs a GPU.

    Attributes:
        timeline: the spans of the step whose length is nearest to the mean: on the GPU if there is one, else on the
            host.
        data_wait: share of the whole time, 0 to 1, in which the host waits for the next batch.
        device_wait: the same of the GPU: from the end of a step to the beginning of the next. Gaps within a step, where
            the host is too slow to keep the GPU busy, are not in it, and what copies the batch in its stream is.
        peak_bytes: the most device memory that PyTorch held meanwhile, beyond what it held before.
    """

    timeline: list[Span]
    data_wait: float
    device_wait: float | None = None
    peak_bytes: int | None = None


def record_steps(
    train: Callable[[Begin], object], gpu: Any = None, clock: Callable[[], float] = time.perf_counter
) -> Steps:
    """Record training steps.

    Nothing waits for the GPU between steps. It is behind the host by what is in its queue, and a step is recorded as
    the two see it: at 0 µs the host begins it, and the GPU may still be busy with steps before. The GPU's "data wait"
    begins where it ends the optimizer of the step before, so it is idle then, but for the finishing of the batch. The
    two clocks agree to some tens of µs.

    Args:
        train: takes steps. It tells its argument when a phase begins, "data wait" first in every step and once more
            after the last, and at last "end".
        gpu: `torch.cuda`, or what stands for it: `synchronize()`, events as `Event(enable_timing=True)`, and the
            statistics of memory.
        clock: seconds on the host.
    """
    names: list[str] = []
    host: list[float] = []
    events: list[Any] = []

    def begin(phase: str) -> None:
        names.append(phase)
        host.append(clock())
        if gpu is not None:
            events.append(gpu.Event(enable_timing=True))
            events[-1].record()

    held = 0
    if gpu is not None:
        gpu.reset_peak_memory_stats()
        held = gpu.memory_allocated()
        gpu.synchronize()  # with an empty queue the first event passes as it is recorded: the common zero
    train(begin)
    if gpu is not None:
        gpu.synchronize()
    lanes = {"host": [1e6 * (seconds - host[0]) for seconds in host]}
    if gpu is not None:
        lanes["device"] = [1e3 * events[0].elapsed_time(event) for event in events]  # from ms

    steps = list(pairwise(i for i, name in enumerate(names) if name == FIRST))
    times = lanes["host" if gpu is None else "device"]
    mean = (times[-1] - times[0]) / len(steps)
    first, end = min(steps, key=lambda step: abs(times[step[1]] - times[step[0]] - mean))
    zero = lanes["host"][first]
    timeline = [
        Span(lane=lane, name=names[i], start_us=times[i] - zero, end_us=times[i + 1] - zero)
        for lane, times in lanes.items()
        for i in range(first, end)
    ]
    waits = {
        lane: sum(b - a for name, (a, b) in zip(names, pairwise(times), strict=False) if name == FIRST)
        / (times[-1] - times[0])
        for lane, times in lanes.items()
    }
    peak = None if gpu is None else gpu.max_memory_allocated() - held
    return Steps(timeline, waits["host"], waits.get("device"), peak)
