"""What a row of results holds, and where rows lie: ``<folder>/results.jsonl``, one JSON object per line."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

FILE = "results.jsonl"
COMPILED = "torch.compile"  # the name of every provider that is the baseline, compiled
COMMITTED = Path(__file__).parent / "results"  # one folder per device


class Span(TypedDict):
    """A part of one training step, in µs since the step began.

    Attributes:
        lane: "host" or "device".
        name: "data wait", "forward", "backward", "optimizer".
    """

    lane: str
    name: str
    start_us: float
    end_us: float


class Row(TypedDict):
    """One provider of one operation on one set of inputs. What was not measured is None.

    Attributes:
        op: the operation's name.
        direction: what a run does: "forward", "forward+backward", "step", "epoch", "first batch" or "call".
        shape: of the input, such as "64x224x224x3", or the name of a set of inputs.
        dtype: such as "bfloat16".
        provider: who does it.
        version: of the package that does it.
        peer: it is what people could use instead of fastfeed: not a part of ours, and not a bound on what is possible.
        baseline: the provider that the others are checked against and compared with.
        status: "ok"; "wrong", if it differs from the baseline; "failed", if it raised; "absent", if it is not here.
            Only "ok" rows are timed.
        reason: why it is not "ok".
        timing: "wall", on the host's clock; "graph", replays of a CUDA graph over inputs larger than the L2 cache
            together, per run; "events", on the GPU between two events, behind a queue that is never empty.
        rounds: how often each provider was timed, in turn with the others.
        p20_us, p50_us, p80_us: percentiles of a run's time, in µs: the device's time, on a GPU, unless `timing`
            is "wall".
        samples_us: medians of the passes over all rows, for confidence intervals.
        host_us: median time until the call returns, on a GPU, with nothing in its queue.
        launches: kernels, copies and memory sets that the profiler saw on the GPU in one run.
        cores_used: processor time of this process and its workers over the time of the wall clock.
        peak_bytes: device memory that a run needs at its peak, beyond its inputs.
        max_error: the largest absolute difference from the expected result.
        bytes: the fewest bytes that a run can move.
        flops: the fewest floating-point operations that a run can do.
        gb_per_s: bytes over the median time, in 1e9 bytes per second.
        percent_of_copy: gb_per_s in percent of `copy_gb_per_s`.
        percent_of_peak: gb_per_s in percent of `peak_gb_per_s`.
        tflop_per_s: flops over the median time, in 1e12 operations per second.
        images: how many images a run yields, and img_per_s: over the median time.
        speedup_p20, speedup_p50, speedup_p80: the baseline's time over this one's, percentiles of the rounds.
        speedup_samples: as `samples_us`.
        speedup_compiled: median of torch.compile's time over this one's, likewise by rounds.
        timeline: the spans of one typical training step.
        data_wait: share of a training run's time, 0 to 1, in which the host waits for the next batch. On a CPU loaders
            and steps share the cores, and what feeding takes makes steps slower too.
        device_wait: the same of the GPU.
        command: what to run, in a checkout, to repeat the row.
        device: "cpu" or "cuda".
        cpu, gpu: their names.
        cores, threads: cores this process may use, and threads that PyTorch uses for an operation.
        memory_bytes: of the GPU.
        driver: version of NVIDIA's driver.
        python, torch, cuda, triton, dali, fastfeed: versions.
        commit: of this checkout, with "-dirty" behind it if files have changed since.
        date: when the run began, ISO 8601, UTC.
        copy_gb_per_s: of a large copy on the device, measured at the start of the run: bytes read plus written.
        matmul_tflop_per_s: of a large matrix product, likewise, in `matmul_dtype`.
        peak_gb_per_s: of the device's memory, by its clock rate and its width.
        clock_mhz: of the processor after the row was timed, or of the GPU meanwhile, in the last pass.
        slowed_by: what kept the clock down or the process waiting while the row was timed, and for which share of the
            time in the worst pass, such as "power cap (40%)".
    """

    op: str
    direction: str
    shape: str
    dtype: str
    provider: str
    version: str | None
    peer: bool
    baseline: str
    status: str
    reason: str | None
    timing: str | None
    rounds: int
    p20_us: float | None
    p50_us: float | None
    p80_us: float | None
    samples_us: list[float] | None
    host_us: float | None
    launches: int | None
    cores_used: float | None
    peak_bytes: int | None
    max_error: float | None
    bytes: int | None
    flops: int | None
    gb_per_s: float | None
    percent_of_copy: float | None
    percent_of_peak: float | None
    tflop_per_s: float | None
    images: int | None
    img_per_s: float | None
    speedup_p20: float | None
    speedup_p50: float | None
    speedup_p80: float | None
    speedup_samples: list[float] | None
    speedup_compiled: float | None
    timeline: list[Span] | None
    data_wait: float | None
    device_wait: float | None
    command: str
    device: str
    cpu: str
    gpu: str | None
    cores: int
    threads: int
    memory_bytes: int | None
    driver: str | None
    python: str
    torch: str
    cuda: str | None
    triton: str | None
    dali: str | None
    fastfeed: str
    commit: str | None
    date: str
    copy_gb_per_s: float
    matmul_tflop_per_s: float
    matmul_dtype: str
    peak_gb_per_s: float | None
    clock_mhz: float | None
    slowed_by: str | None


def write_rows(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write the rows of a run, in place of those of another. What reads the file meanwhile finds either."""
    partial = folder / f".{FILE}"
    partial.write_text("".join(json.dumps(row) + "\n" for row in rows))
    partial.replace(folder / FILE)


def read_rows(folder: Path) -> list[Row]:
    """Return the rows of a run.

    Raises:
        ValueError: there are none, they are damaged, or they are from a version that wrote other fields.
    """
    file = folder / FILE
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{file}: not text in UTF-8") from None
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror}. `python -m benchmarks run -o {folder}` writes it") from None
    rows: list[Row] = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            wrong = Row.__required_keys__ ^ row.keys()
        except (json.JSONDecodeError, AttributeError):
            raise ValueError(f"{file}, line {number}: not a JSON object") from None
        if wrong:
            fields = ", ".join(sorted(wrong)[:5]) + (", ..." if len(wrong) > 5 else "")
            raise ValueError(f"{file}, line {number}: missing or unknown fields, {fields}. Run the benchmarks again")
        rows.append(row)
    if not rows:
        raise ValueError(f"{file} holds no rows")
    return rows


def key(row: Row) -> tuple[str, str, str, str]:
    """Return what tells a row from the others of its run: (op, shape, dtype, provider)."""
    return row["op"], row["shape"], row["dtype"], row["provider"]


def groups(rows: Sequence[Row]) -> dict[tuple[str, str, str], list[Row]]:
    """Return the rows measured side by side: (op, shape, dtype) -> a row per provider, in their order."""
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row["op"], row["shape"], row["dtype"]), []).append(row)
    return found


def device_folder(environment: dict[str, Any]) -> Path:
    """Return the folder of a device's results in the checkout, such as benchmarks/results/nvidia-h200."""
    name = environment["gpu"] or f"{environment['cpu']} {environment['cores']} cores"
    return COMMITTED / re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
