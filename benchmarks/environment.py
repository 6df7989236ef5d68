"""What a number depends on besides the code: the machine, and the versions of what runs on it."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import fastfeed


def environment(device: torch.device) -> dict[str, Any]:
    """Return the machine and the versions, ready for JSON; None for what is not there."""
    on_gpu = device.type == "cuda"
    return {
        "device": device.type,
        "cpu": _cpu_name(),
        "gpu": torch.cuda.get_device_name(device) if on_gpu else None,
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if on_gpu else None,
        "triton": _version("triton"),
        "dali": _version("nvidia-dali-cuda130") or _version("nvidia-dali-cuda120"),
        "fastfeed": fastfeed.__version__,
        "commit": _commit(),
    }


def _cpu_name() -> str:
    """The processor's model, which Linux gives for x86 only."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of this checkout, with "-dirty" behind it if tracked files have changed since."""
    command = ["git", "--no-optional-locks", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
