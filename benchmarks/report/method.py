"""How it was measured, in words; the numbers in them are those of the code."""

from collections.abc import Sequence

from benchmarks.gpu_timing import HOST_ROUNDS, MAX_COPIES
from benchmarks.machine import COPY_BYTES, MATMUL
from benchmarks.report import facts
from benchmarks.report.markup import Element, element
from benchmarks.report.text import number
from benchmarks.results import COMPILED, Row
from benchmarks.timing import MAX_ROUNDS, MIN_ROUNDS

_TIMINGS = {
    "graph": "replays of a CUDA graph, timed between two events. The graph holds the run once for each of several "
    "sets of inputs, which together move three times what the L2 cache holds, so that each has left it when its "
    f"turn comes (at most {MAX_COPIES} sets: smaller inputs stay in it). The time is that of the graph "
    "over its runs, and holds no time of the host: the GPU is kept busy until the graph is launched.",
    "events": "the time on the GPU between two events, where a run takes part that no CUDA graph can hold. The L2 "
    "cache is overwritten before, and the GPU kept busy until the host has queued the run, so no launch is waited for.",
    "wall": "the host's clock, from the call until the device is done with it, with all that the host does. "
    "Cores used is the processor time of the process and its workers over that time.",
}


def method(rows: Sequence[Row]) -> Element:
    """Return the section on how rows like these are measured."""
    rounds = [row["rounds"] for row in rows if row["rounds"]]
    count = "here " + (" to ".join(f"{n:,}" for n in sorted({min(rounds), max(rounds)})) if rounds else "none")
    device = rows[0]["device"]
    matrix, dtype = MATMUL[device]
    points = [
        (
            "Checked first",
            "Each provider's result is compared with what the case expects, within its tolerance, before anything is "
            "timed. What is wrong or fails is not timed. Largest error is the largest absolute difference.",
        ),
        (
            "In turn",
            "After a warm-up the providers run one after the other, in another order each round, "
            f"{MIN_ROUNDS} to {MAX_ROUNDS} rounds in each of several passes over everything: {count} rounds together. "
            "A speedup is the ratio of two times of the same round, so that a busy neighbour or a change of the clock "
            "rate meets both. Numbers are medians; intervals go from the 20th to the 80th "
            f"percentile. Only the medians of speedups over the baseline and {COMPILED} come from single rounds; over "
            "other providers it is the ratio of two such medians.",
        ),
        *(
            (f"Timing: {timing}", text[0].upper() + text[1:])
            for timing, text in _TIMINGS.items()
            if timing in facts.distinct(rows, "timing")
        ),
        (
            "Bytes and operations",
            "Each case declares the fewest bytes and floating-point operations that a run can do with; GB/s and "
            "TFLOP/s are these over the median time, whatever a provider really moved.",
        ),
        (
            "What the machine can do",
            f"At the start of the run: a copy that reads and writes {number(COPY_BYTES[device] / 2**20)} MiB together, "
            f"and a matrix product of {matrix:,} x {matrix:,} in {str(dtype).removeprefix('torch.')}.",
        ),
    ]
    if facts.distinct(rows, "data_wait"):
        shared = " On a CPU loaders and steps share the cores: what feeding takes makes the steps slower, beside the "
        points.append(
            (
                "Waiting for data",
                "The share of a run, once more recorded, in which the host, or the GPU, is between a step and the "
                "batch of the next. A loader has as many batches ready at the end of the run as at its beginning."
                + (f"{shared}waits; the run against that of synthetic data holds both." if device == "cpu" else ""),
            )
        )
    if device == "cpu":
        points.append(
            (
                "Memory",
                "What tensors give back is kept for the next ones, as PyTorch does on a GPU, and not returned to the "
                "system: fresh pages cost more than most operations, and rows would depend on those before them.",
            )
        )
    else:
        points.append(
            (
                "Apart from the device's time",
                f"Host time is the median of {HOST_ROUNDS} calls until they return, with nothing in the GPU's queue. "
                "Launches are the kernels, copies and memory sets that the profiler sees in one run. Peak memory is "
                "what PyTorch holds at most during a run beyond what it held before.",
            )
        )
    repeat = [element("li", element("code", command)) for command in facts.commands(rows)]
    return element(
        "section",
        element("h2", "How it was measured"),
        *(element("p", element("strong", f"{name}. "), text) for name, text in points),
        element(
            "p",
            element("strong", "To repeat it"),
            ", in a checkout with the versions above; each table names the command of its rows.",
        ),
        element("ul", *repeat),
    )
