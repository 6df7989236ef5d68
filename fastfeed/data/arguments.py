"""What the loaders' arguments have in common."""

import multiprocessing
import os
import warnings
from typing import Any

import numpy as np
import torch

from fastfeed.data.finish import require_cuda

_MOST_THREADS = 4096  # more than any machine has cores; a system that has no more threads to give ends the process


def choose_device(device: str | int | torch.device | None) -> torch.device:
    """Return the device that `device` names, or the best one there is.

    That is the current GPU. Where none was chosen it is that of LOCAL_RANK, which torchrun and PyTorch Lightning set:
    a loader may be made before its process has chosen one.

    Raises:
        ValueError: for a kind of device that is neither CPU nor CUDA.
        RuntimeError: for a name that is no device's, a GPU that is not there, or an extension built without CUDA.
    """
    if device is None:
        if not torch.cuda.is_available():
            return torch.device("cpu")
        try:
            require_cuda()
        except RuntimeError as error:
            warnings.warn(f"there is a GPU, but batches are made on the CPU: {error}", stacklevel=3)
            return torch.device("cpu")
        index, local_rank = torch.cuda.current_device(), os.environ.get("LOCAL_RANK", "")
        if index == 0 and local_rank.isdigit() and int(local_rank) < torch.cuda.device_count():
            index = int(local_rank)
        return torch.device("cuda", index)
    try:
        # PyTorch reads a bare number as a GPU's, where there is one.
        chosen = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    except RuntimeError:
        raise RuntimeError(f"device is {device!r}, which is none; expected 'cpu', 'cuda' or 'cuda:<index>'") from None
    if chosen.type not in ("cpu", "cuda"):
        raise ValueError(f"device is {device!r}; expected 'cpu', 'cuda' or 'cuda:<index>'")
    if chosen.type == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise RuntimeError(
            f"device is {device!r}, but PyTorch sees no NVIDIA GPU (torch.cuda.is_available() is False). Use "
            "device='cpu', or run `fastfeed info` to see what is missing"
        )
    index = chosen.index if chosen.index is not None else torch.cuda.current_device()
    if index >= torch.cuda.device_count():
        raise RuntimeError(f"device is {device!r}, but there are {torch.cuda.device_count()} GPUs, numbered from 0")
    require_cuda()
    return torch.device("cuda", index)


def choose_threads(name: str, threads: int) -> int:
    """Return `threads`, or this process's share of the cores it may run on where it is 0; warn of more than there are.

    torchrun says how many processes there are on the machine, by LOCAL_WORLD_SIZE. Unless each is bound to cores of its
    own, all of them run on all cores: a thread for every core in every process would be too many by as many times.

    Raises:
        ValueError: for anything but a whole number, 0 to 4096.
    """
    threads, cores = check_whole(name, threads, 0), len(os.sched_getaffinity(0))
    if threads > _MOST_THREADS:
        raise ValueError(f"{name} is {threads}; expected at most {_MOST_THREADS} threads, or 0: one per core")
    if threads > cores:
        warnings.warn(
            f"{name} is {threads}, and this process may run on {cores} cores: threads beyond them cost memory, and may "
            f"be slower. {name}=0 is one per core",
            stacklevel=3,
        )
    return threads or max(1, cores // _processes_on_the_same_cores())


def _processes_on_the_same_cores() -> int:
    """How many processes torchrun has started here: 1 where this one is bound to other cores than what started it."""
    count = os.environ.get("LOCAL_WORLD_SIZE", "")
    try:
        bound = os.sched_getaffinity(0) != os.sched_getaffinity(os.getppid())
    except OSError:  # it has ended
        bound = False
    return max(1, int(count)) if count.isdecimal() and not bound else 1


def check_worker_options(num_workers: int, timeout: float, persistent_workers: bool, context: Any) -> None:
    """Raise for options of PyTorch's workers that its loader refuses, whether or not there will be such workers.

    Raises:
        TypeError: for a multiprocessing context that is none.
        ValueError: for a number out of range, or an option that needs workers without any.
    """
    check_whole("num_workers", num_workers, 0)
    if timeout < 0:
        raise ValueError(f"timeout is {timeout!r}; expected seconds, 0 or more")
    if num_workers == 0 and (persistent_workers or context is not None):
        name = "persistent_workers" if persistent_workers else "multiprocessing_context"
        raise ValueError(f"{name} is given and num_workers is 0: expected at least one worker")
    if isinstance(context, str) and context not in multiprocessing.get_all_start_methods():
        methods = ", ".join(map(repr, multiprocessing.get_all_start_methods()))
        raise ValueError(f"multiprocessing_context is {context!r}; expected one of {methods}")
    if context is not None and not isinstance(context, str | multiprocessing.context.BaseContext):
        raise TypeError(f"multiprocessing_context is {context!r}; expected a start method or a context")


def check_whole(name: str, value: int, low: int, high: int | None = None) -> int:
    """Return a whole number, Python's or NumPy's, as an int.

    Raises:
        ValueError: for anything else, or a number below `low` or above `high`.
    """
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < low:
        raise ValueError(f"{name} is {value!r}; expected a whole number, {low} or more")
    if high is not None and value > high:
        raise ValueError(f"{name} is {value}; expected at most {high}")
    return int(value)
