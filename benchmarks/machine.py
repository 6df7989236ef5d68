"""What the machine can do, measured in the same run."""

import ctypes
from typing import NamedTuple

import torch

from benchmarks.gpu_timing import event_timer
from benchmarks.timing import Band, Timer, measure, wall_timer

# Large enough that neither caches nor launches count, small enough for a laptop.
COPY_BYTES = {"cuda": 2 << 30, "cpu": 256 << 20}
MATMUL = {"cuda": (8192, torch.bfloat16), "cpu": (2048, torch.float32)}
BUDGET = 1.0


class Ceilings(NamedTuple):
    """What operations are compared with, under the names of the fields of a row.

    Attributes:
        copy_gb_per_s: a large copy on the device, bytes read plus bytes written. A processor also reads the lines that
            it is about to write, which is not counted, so that updates in place reach more than a copy does.
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
    # kHz and bits, which PyTorch tells since 2.8 or so, and two transfers in a clock cycle. Some GPUs say 0.
    rate, width = (getattr(properties, name, 0) for name in ("memory_clock_rate", "memory_bus_width"))
    return 2 * rate * 1e3 * width / 8 / 1e9 or None


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
