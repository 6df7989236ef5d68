"""What kept the machine from doing what it can, while something was measured."""

import statistics
import subprocess
import time
from pathlib import Path

import torch

from benchmarks.environment import nvidia_smi_command

# Bits of nvidia-smi's clocks_event_reasons.active (NVML's nvmlClocksEventReasons).
IDLE = 0x0001
SLOWED = {
    0x0004: "power cap",
    0x0008: "hardware slowdown",
    0x0020: "software thermal slowdown",
    0x0040: "hardware thermal slowdown",
    0x0080: "hardware power brake",
}
_EVERY_MS = 200


class Watch:
    """Notices what slows the machine down between its making and a call of `state`.

    A GPU is asked while it works: when it has nothing to do, nothing slows it down.
    """

    def __init__(self, device: torch.device) -> None:
        self._start = time.monotonic()
        self._times = _processor_times()
        self._throttled = _throttled_seconds()
        self._gpu = _start_asking(device) if device.type == "cuda" else None

    def state(self) -> tuple[float | None, dict[str, float]]:
        """Return `clock_mhz`, as in a row, and what slowed it down -> for which share of the time, 0 to 1."""
        slowed = {}
        then, now = self._times, _processor_times()
        if then and now and (total := sum(now) - sum(then)) > 0:
            stolen = (now[7] - then[7]) / total  # proc_stat(5): the eighth time is "steal"
            if stolen > 0.01:
                slowed["processors taken by the host"] = stolen
        throttled = _throttled_seconds() - self._throttled
        if throttled > 0:
            slowed["the control group's limit"] = throttled / (time.monotonic() - self._start)
        if self._gpu is None:
            return _cpu_mhz(), slowed
        self._gpu.terminate()
        answers, _ = self._gpu.communicate()
        clock, reasons = read_answers(answers)
        return clock, slowed | reasons


def read_answers(answers: str) -> tuple[float | None, dict[str, float]]:
    """Return the median clock rate of a GPU while it worked, in MHz, and what slowed it down -> share of that time.

    Args:
        answers: a line "clocks.sm, clocks_event_reasons.active" for each time it was asked.
    """
    working = []
    for line in answers.splitlines():
        clock, _, bits = (part.strip() for part in line.partition(","))
        if clock.isdecimal() and bits.startswith("0x") and not int(bits, 16) & IDLE:
            working.append((int(clock), int(bits, 16)))
    if not working:
        return None, {}
    counts = {reason: sum(bool(active & bit) for _, active in working) for bit, reason in SLOWED.items()}
    shares = {reason: count / len(working) for reason, count in counts.items() if count}
    return statistics.median(clock for clock, _ in working), shares


def _start_asking(device: torch.device) -> "subprocess.Popen[str] | None":
    command = [*nvidia_smi_command(device, "clocks.sm", "clocks_event_reasons.active"), f"--loop-ms={_EVERY_MS}"]
    try:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    except OSError:
        return None


def _processor_times() -> list[int]:
    file = Path("/proc/stat")
    return [int(field) for field in file.read_text().split("\n", 1)[0].split()[1:9]] if file.exists() else []


def _throttled_seconds() -> float:
    file = Path("/sys/fs/cgroup/cpu.stat")
    fields = dict(line.split() for line in file.read_text().splitlines()) if file.exists() else {}
    return int(fields.get("throttled_usec", 0)) / 1e6


def _cpu_mhz() -> float | None:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    clocks = [float(line.partition(":")[2]) for line in lines if line.startswith("cpu MHz")]
    return sum(clocks) / len(clocks) if clocks else None
