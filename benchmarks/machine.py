"""What the machine can do, measured in the same run, and what kept it from doing so."""

import ctypes
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.environment import nvidia_smi
from benchmarks.gpu_timing import event_timer
from benchmarks.timing import Band, Timer, measure, wall_timer

# Large enough that neither caches nor launches count, small enough for a laptop.
COPY_BYTES = {"cuda": 2 << 30, "cpu": 256 << 20}
MATMUL = {"cuda": (8192, torch.bfloat16), "cpu": (2048, torch.float32)}
BUDGET = 1.0


class Ceilings(NamedTuple):
    """What no operation beats by much, with the names of the fields of a row.

    Attributes:
        copy_gb_per_s: a large copy on the device, bytes read plus bytes written.
        matmul_tflop_per_s: a large matrix product.
        matmul_dtype: of its factors.
        peak_gb_per_s: the memory's clock rate times its width, if the driver tells.
    """

    copy_gb_per_s: float
    matmul_tflop_per_s: float
    matmul_dtype: str
    peak_gb_per_s: float | None


def ceilings(device: torch.device, timer: Timer | None = None) -> Ceilings:
    """Measure a copy and a matrix product in turn: random numbers, for some matrix units are faster on zeros."""
    size, dtype = MATMUL[device.type]
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(a)
    source = torch.randint(256, (COPY_BYTES[device.type] // 2,), dtype=torch.uint8, device=device)
    copy = torch.empty_like(source)
    runs = {"copy": lambda: copy.copy_(source), "matmul": lambda: torch.matmul(a, b, out=product)}
    if timer is None:
        timer = event_timer(device, host_seconds=1e-4) if device.type == "cuda" else wall_timer(device)
    samples = measure(runs, timer, BUDGET)
    times = {name: Band.of([sample.seconds for sample in samples[name]]).p50 for name in runs}
    return Ceilings(
        copy_gb_per_s=COPY_BYTES[device.type] / times["copy"] / 1e9,
        matmul_tflop_per_s=2 * size**3 / times["matmul"] / 1e12,
        matmul_dtype=str(dtype).removeprefix("torch."),
        peak_gb_per_s=_peak(device),
    )


def _peak(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    properties = torch.cuda.get_device_properties(device)
    try:
        # kHz and bits; two transfers in a clock cycle.
        return 2 * properties.memory_clock_rate * 1e3 * properties.memory_bus_width / 8 / 1e9
    except AttributeError:  # PyTorch tells since 2.8 or so
        return None


def keep_freed_memory() -> None:
    """Have the C library keep the memory that tensors on the CPU give back, as PyTorch does on a GPU.

    By default glibc takes large blocks from the system, or reuses what it has, depending on everything allocated
    before. Fresh pages cost more than most operations here (a 38 MB result: 12 of 18 ms, two cores of an EPYC), so
    that a row would depend on the rows before it.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return  # not glibc
    m_trim_threshold, m_mmap_max = -1, -4  # malloc.h
    mallopt(m_mmap_max, 0)
    mallopt(m_trim_threshold, 2**31 - 1)


class Watch:
    """Notices what slows the machine down between its making and a call of `state`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._times = _processor_times()
        self._throttled = _throttled_seconds()

    def state(self) -> tuple[float | None, list[str]]:
        """Return `clock_mhz`, as in a row, and what slowed it down."""
        reasons = []
        then, now = self._times, _processor_times()
        if then and now and (total := sum(now) - sum(then)) > 0:
            stolen = (now[7] - then[7]) / total  # proc_stat(5): the eighth time is "steal"
            if stolen > 0.01:
                reasons.append(f"{stolen:.0%} of the processors' time taken by the host")
        throttled = _throttled_seconds() - self._throttled
        if throttled > 0:
            reasons.append(f"{throttled:.1f} s held back by the control group's limit")
        clock = _cpu_mhz()
        if self._device.type == "cuda":
            clock, gpu_reasons = _gpu_state(self._device)
            reasons += gpu_reasons
        return clock, reasons


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


# nvidia-smi's bits of clocks_event_reasons.active that mean less than full speed (NVML's nvmlClocksEventReasons).
_REASONS = {
    0x0004: "power cap",
    0x0008: "hardware slowdown",
    0x0020: "software thermal slowdown",
    0x0040: "hardware thermal slowdown",
    0x0080: "hardware power brake",
}


def _gpu_state(device: torch.device) -> tuple[float | None, list[str]]:
    told = nvidia_smi(device, "clocks.sm", "clocks_event_reasons.active")
    if told is None:
        return None, []
    clock, bits = told
    active = int(bits, 16) if bits.startswith("0x") else 0
    return float(clock) if clock.isdigit() else None, [reason for bit, reason in _REASONS.items() if active & bit]
