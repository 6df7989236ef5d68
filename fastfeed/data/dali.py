"""How DALI is found."""

import importlib.util
from typing import Any

import torch


def import_dali() -> Any:
    """Return nvidia.dali with fn and types.

    Raises:
        ImportError: with the pip line to install it.
    """
    try:
        import nvidia.dali
        import nvidia.dali.fn
        import nvidia.dali.types
    except ModuleNotFoundError as error:
        if error.name not in ("nvidia", "nvidia.dali"):
            raise
        raise ImportError(f"fastfeed.DataLoader needs NVIDIA DALI. Install it with: {dali_install_line()}") from error
    return nvidia.dali


def has_dali() -> bool:
    """Whether NVIDIA DALI is installed; it is not imported."""
    try:
        return importlib.util.find_spec("nvidia.dali") is not None
    except (ModuleNotFoundError, ValueError):  # no package of NVIDIA's; or it is made out to be missing
        return False


def dali_install_line() -> str:
    """Return the pip command that installs the DALI that goes with this PyTorch."""
    major = "120" if (torch.version.cuda or "").startswith("12.") else "130"
    return f'pip install "nvidia-dali-cuda{major}>=2.4,<3"'
