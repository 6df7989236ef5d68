"""Triton kernels and their launch heuristics, installed as ``fastfeed.kernels``.

A kernel file knows nothing of autograd; the op that uses it stands in ``fastfeed/ops`` or ``fastfeed/optim``.
Import a kernel file only after ``can_run`` said yes: Triton may be absent.
"""

import importlib.util
import os

import torch

_HAS_TRITON = importlib.util.find_spec("triton") is not None


def interpreted() -> bool:
    """Whether TRITON_INTERPRET=1 is set, so that kernels run, slowly, on CPU tensors (for tests)."""
    return _HAS_TRITON and os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on")


def can_run(device: torch.device) -> bool:
    """Whether the kernels can take tensors on `device`: a CUDA device, or the CPU under the interpreter."""
    return _HAS_TRITON and (device.type == "cuda" or (device.type == "cpu" and interpreted()))
