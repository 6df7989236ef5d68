"""What a number depends on besides the code: the machine, and the versions of what runs on it."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import fastfeed
from benchmarks.peers import version


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def environment(device: torch.device) -> dict[str, Any]:
    """Return the machine and the versions, with the names of a row's fields; None for what is not there."""
    on_gpu = device.type == "cuda"
    return {
        "device": device.type,
        "cpu": _cpu_name(),
        "gpu": torch.cuda.get_device_name(device) if on_gpu else None,
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "memory_bytes": torch.cuda.get_device_properties(device).total_memory if on_gpu else None,
        "driver": _driver(device) if on_gpu else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if on_gpu else None,
        "triton": version("triton"),
        "dali": version("nvidia-dali-cuda130", "nvidia-dali-cuda120"),
        "fastfeed": fastfeed.__version__,
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _cpu_name() -> str:
    """The processor's model, which Linux gives for x86 only."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def nvidia_smi_command(device: torch.device, *fields: str) -> list[str]:
    """Return the command that prints a line of fields of a GPU, with commas between them."""
    # By its identity: under CUDA_VISIBLE_DEVICES its number here is another one.
    uuid = str(torch.cuda.get_device_properties(device).uuid)
    return ["nvidia-smi", f"--id=GPU-{uuid}", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]


def _driver(device: torch.device) -> str | None:
    command = nvidia_smi_command(device, "driver_version")
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _commit() -> str | None:
    """The commit of this checkout, with "-dirty" behind it if tracked files but the results have changed since."""
    root = Path(__file__).parents[1]
    commit = _git(root, "rev-parse", "--short=12", "HEAD")
    changes = _git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)benchmarks/results")
    return commit and commit + ("-dirty" if changes else "")


def _git(root: Path, *arguments: str) -> str | None:
    command = ["git", "--no-optional-locks", *arguments]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
