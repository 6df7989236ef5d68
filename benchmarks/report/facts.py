"""What all rows depend on: the machine, the versions, the way they were run."""

import shlex
from collections.abc import Sequence

from benchmarks.report.text import DASH, number
from benchmarks.results import Row

_PACKAGES = {
    "torch": "PyTorch",
    "cuda": "CUDA",
    "triton": "Triton",
    "dali": "DALI",
    "fastfeed": "fastfeed",
    "python": "Python",
}


def distinct(rows: Sequence[Row], field: str) -> list:
    """Return the values of a field but None, each once. Rows of one run agree on what describes the machine."""
    return [value for value in dict.fromkeys(row[field] for row in rows) if value is not None]


def joined(rows: Sequence[Row], field: str, unit: str = "") -> str:
    """Return the values as text, or "unknown"."""
    values = [number(value, unit) if isinstance(value, float) else str(value) for value in distinct(rows, field)]
    return ", ".join(values) or "unknown"


def device_name(rows: Sequence[Row]) -> str:
    """Return the name of what was measured: the GPU, or the processor and its cores."""
    if distinct(rows, "gpu"):
        return joined(rows, "gpu")
    return f"{joined(rows, 'cpu')}, {joined(rows, 'cores')} cores"


def gpu(rows: Sequence[Row]) -> str | None:
    """Return the GPU, its memory and its driver; None without one."""
    if not distinct(rows, "gpu"):
        return None
    memory = [f"{count / 2**30:.1f} GiB" for count in distinct(rows, "memory_bytes")]
    driver = [f"driver {version}" for version in distinct(rows, "driver")]
    return ", ".join([joined(rows, "gpu"), *memory, *driver])


def processor(rows: Sequence[Row]) -> str:
    """Return the processor, and how much of it was used."""
    return f"{joined(rows, 'cpu')}, {joined(rows, 'cores')} cores, {joined(rows, 'threads')} threads"


def versions(rows: Sequence[Row]) -> str:
    """Return the packages and their versions."""
    return ", ".join(f"{name} {joined(rows, field)}" for field, name in _PACKAGES.items() if distinct(rows, field))


def matmul(rows: Sequence[Row]) -> str:
    """Return the measured rate of matrix products, and of which dtype."""
    return f"{joined(rows, 'matmul_tflop_per_s', 'TFLOP/s')} in {joined(rows, 'matmul_dtype')}"


def clocks(rows: Sequence[Row]) -> str:
    """Return the range of the clock rates after the rows."""
    found = distinct(rows, "clock_mhz")
    if not found:
        return "unknown"
    ends = sorted({f"{clock:,.0f}" for clock in (min(found), max(found))}, key=lambda text: (len(text), text))
    return f"{DASH.join(ends)} MHz"


def slowed_by(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Return what slowed the machine down -> during which inputs, as op/shape/dtype."""
    found: dict[str, dict[str, None]] = {}
    for row in rows:
        if row["slowed_by"] is not None:
            found.setdefault(row["slowed_by"], {})[f"{row['op']}/{row['shape']}/{row['dtype']}"] = None
    return {reason: list(labels) for reason, labels in found.items()}


def quick(rows: Sequence[Row]) -> bool:
    """Return whether it was a run with --quick."""
    return any("--quick" in shlex.split(row["command"]) for row in rows)


def commands(rows: Sequence[Row]) -> list[str]:
    """Return what to run to repeat all rows: the rows' commands without their filters, each once."""
    found = {}
    for row in rows:
        words = shlex.split(row["command"])
        if "--filter" in words:
            at = words.index("--filter")
            del words[at : at + 2]
        found[shlex.join(words)] = None
    return list(found)
