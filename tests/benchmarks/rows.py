"""The rows of a run on a GPU that there never was, for tests of what is made of rows. No number in it was measured."""

import shlex

from tests.benchmarks.example import a_row

COPY, PEAK, MATMUL = 4000.0, 4800.0, 700.0  # GB/s, GB/s, TFLOP/s

MACHINE = {
    "device": "cuda",
    "cpu": "Made-up CPU <x86> & co",
    "gpu": "Made-up GPU <80GB> & co",
    "cores": 16,
    "threads": 16,
    "memory_bytes": 80 << 30,
    "driver": "580.00.01",
    "torch": "2.13.0+cu130",
    "cuda": "13.0",
    "copy_gb_per_s": COPY,
    "matmul_tflop_per_s": MATMUL,
    "matmul_dtype": "bfloat16",
    "peak_gb_per_s": PEAK,
    "clock_mhz": 1980.0,
}

# Slower and faster passes, which meet all providers, and differences between the providers.
_DRIFT = (1.00, 1.02, 0.99, 1.01, 1.00, 0.98, 1.00, 1.03, 0.99, 1.00)
_JITTER = (0.99, 1.01, 1.00, 0.99, 1.02, 1.00, 0.99, 1.00, 1.01, 1.00)


def a_group(op, shape, dtype, times, baseline="eager", spread=0.03, **fields):
    """Return the rows of one set of inputs.

    Args:
        op, shape, dtype: their names.
        times: provider -> median in µs, or (status, reason) of one that was not timed.
        baseline: one of the providers.
        spread: of the speedups' percentiles.
        fields: of all rows, or, if it is a dict, provider -> value for those that have one.
    """
    run = ["python", "-m", "benchmarks", "run"]
    command = shlex.join([*run, "--filter", f"{op}/{shape}/{dtype}", "--device", "cuda", "--threads", "16"])
    return [
        a_row(
            **{"op": op, "shape": shape, "dtype": dtype, "baseline": baseline, "peer": provider != "fastfeed"}
            | MACHINE
            | {"command": command, "provider": provider}
            | {"version": "0.1.0" if provider == "fastfeed" else "2.13.0+cu130"}
            | _work(fields, provider)
            | _measured(times, provider, baseline, spread, _work(fields, provider))
        )
        for provider in times
    ]


def _work(fields, provider):
    found = {name: value.get(provider) if isinstance(value, dict) else value for name, value in fields.items()}
    found = {name: value for name, value in found.items() if value is not None or name != "peer"}
    return {"bytes": None, "flops": None, "images": None, "timing": "graph", "host_us": 12.5, "launches": 1} | found


def _measured(times, provider, baseline, spread, work):
    us = times[provider]
    names = ("p20_us", "p50_us", "p80_us", "samples_us", "host_us", "launches", "cores_used", "peak_bytes", "max_error")
    names += ("speedup_p20", "speedup_p50", "speedup_p80", "speedup_samples", "speedup_compiled", "timeline", "timing")
    names += ("data_wait", "device_wait")
    names += ("gb_per_s", "percent_of_copy", "percent_of_peak", "tflop_per_s", "img_per_s")
    if not isinstance(us, float):
        return dict.fromkeys(names) | {"status": us[0], "reason": us[1], "rounds": 0}
    speedup = times[baseline] / us
    spread = 0.0 if provider == baseline else spread
    compiled = times.get("torch.compile")
    jitter = _JITTER if provider == "fastfeed" else _JITTER[::-1]
    rate = work["bytes"] / us / 1e3 if work["bytes"] else None
    return {
        "status": "ok",
        "reason": None,
        "rounds": 500,
        "p20_us": us * 0.98,
        "p50_us": us,
        "p80_us": us * 1.05,
        "samples_us": [us * drift * own for drift, own in zip(_DRIFT, jitter, strict=True)],
        "cores_used": work.get("cores_used"),
        "peak_bytes": work.get("peak_bytes"),
        "max_error": work.get("max_error", 0.0),
        "timeline": work.get("timeline"),
        "data_wait": work.get("data_wait"),
        "device_wait": work.get("device_wait"),
        "speedup_p20": speedup * (1 - spread),
        "speedup_p50": speedup,
        "speedup_p80": speedup * (1 + spread),
        "speedup_samples": [speedup] * 10,
        "speedup_compiled": compiled / us if isinstance(compiled, float) else None,
        "gb_per_s": rate,
        "percent_of_copy": 100 * rate / COPY if rate else None,
        "percent_of_peak": 100 * rate / PEAK if rate else None,
        "tflop_per_s": work["flops"] / us / 1e6 if work["flops"] else None,
        "img_per_s": work["images"] / us * 1e6 if work["images"] else None,
    }


def a_step(wait, forward, backward, optimizer, behind):
    """Return the spans of a training step, in µs: the host queues it in 2 ms, and the device is `behind` it."""
    phases = ("data wait", "forward", "backward", "optimizer")
    spans = []
    for lane, start, lengths in (
        ("host", 0.0, (wait + forward + backward + optimizer - 2000.0, 700.0, 800.0, 500.0)),
        ("device", behind, (wait, forward, backward, optimizer)),
    ):
        for name, length in zip(phases, lengths, strict=True):
            spans.append({"lane": lane, "name": name, "start_us": start, "end_us": start + length})
            start += length
    return spans


def _softmax():
    """Many sizes: a win that grows with the size, and compute-bound where it is small."""
    for dtype, itemsize in (("bfloat16", 2), ("float32", 4)):
        for rows in (256, 1024, 4096, 16384, 65536):
            count = rows * 1000 * itemsize * 3
            floor = count / 4000e3
            times = {
                "eager": 9.0 + 3.1 * floor,
                "torch.compile": 5.0 + 1.35 * floor,
                "fastfeed": 3.4 + 1.06 * floor,
                "liger": 4.5 + 1.2 * floor,
            }
            slow = "power cap" if rows == 65536 else None
            yield from a_group("cross_entropy", f"{rows}x1000", dtype, times, bytes=count, slowed_by=slow)


LONG_REASON = "the kernel was not built: " + "error: expected ';' before '<' token && " * 40

ROWS = [
    *a_group(
        "adamw",
        "resnet50",
        "float32",
        {"torch": 268.0, "torch.compile": 231.0, "fused": 181.0, "fastfeed": 192.0, "apex": ("absent", LONG_REASON)},
        baseline="torch",
        timing="events",
        bytes=715_000_000,
        version={"apex": None},
        launches={"torch": 14, "torch.compile": 3, "fused": 5, "fastfeed": 1},
    ),
    *_softmax(),
    # We lose.
    *a_group("finish", "64x224x224x3", "float32", {"eager": 80.0, "fastfeed": 25.0}, bytes=48_168_960),
    *a_group("finish", "1x32x32x3", "float32", {"eager": 6.0, "torch.compile": 2.4, "fastfeed": 7.5}, bytes=15_360),
    *a_group("finish", "8x32x32x3", "float32", {"eager": 6.1, "torch.compile": 6.3, "fastfeed": 6.05}, bytes=122_880),
    # Bound by operations more than by memory.
    *a_group("attention", "512", "bfloat16", {"eager": 55.0, "fastfeed": 8.0}, bytes=10**6, flops=2 * 10**9),
    *a_group("attention", "4096", "bfloat16", {"eager": 2100.0, "fastfeed": 160.0}, bytes=8 * 10**6, flops=10**11),
    *a_group(
        "loader",
        "256x3x224x224",
        "bfloat16",
        {
            "pillow": 2_400_000.0,
            "fastfeed": 93_000.0,
            "dali": 101_000.0,
            "ffcv": ("absent", "not installed: python -m pip install ffcv # needs <OpenCV> & friends"),
            "spdl": ("failed", "RuntimeError: a <b>stream</b> ended"),
            "cached": 55_000.0,
        },
        baseline="pillow",
        timing="wall",
        images=8192,
        peer={"pillow": True, "dali": True, "ffcv": True, "spdl": True, "cached": False, "fastfeed": False},
        cores_used={"pillow": 15.8, "fastfeed": 6.1, "dali": 6.3, "cached": 0.4},
        host_us=None,
        launches=None,
        max_error=None,
        clock_mhz=1755.0,
    ),
    *a_group(
        "train",
        "small-resnet-w64-64x3x224x224",
        "bfloat16",
        {"torch": 1_600_000.0, "fastfeed": 610_000.0, "fastfeed ops": 1_550_000.0, "synthetic": 590_000.0},
        baseline="torch",
        timing="wall",
        images=4096,
        peer={"torch": True, "fastfeed": False, "fastfeed ops": False, "synthetic": False},
        timeline={
            "torch": a_step(15_500.0, 3000.0, 5600.0, 900.0, behind=900.0),
            "fastfeed": a_step(250.0, 3000.0, 5600.0, 500.0, behind=2600.0),
            "fastfeed ops": a_step(15_400.0, 2900.0, 5500.0, 500.0, behind=900.0),
        },
        data_wait={"torch": 0.6, "fastfeed": 0.004, "fastfeed ops": 0.61},
        device_wait={"torch": 0.62, "fastfeed": 0.027, "fastfeed ops": 0.63},
    ),
    *a_group("odd <op>", "a|b", "float8_e4m3fn", {"eager": 10.0, "fastfeed": ("wrong", "off by 3.0 at (0, 1)")}),
]
