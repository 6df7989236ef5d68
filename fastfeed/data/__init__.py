"""The input pipeline, one room per step: sources, order, transforms, plan, mix, graph, finish, ring, loader.

For loaders of PyTorch's own: prefetch, and `collate_uint8`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastfeed.data.collate import collate_uint8

# Loaded on first use, as in fastfeed/__init__.py.
_NAMES = {"collate_uint8": "fastfeed.data.collate"}

__all__ = ["collate_uint8"]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'fastfeed.data' has no attribute {name!r}")
    value = getattr(importlib.import_module(_NAMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
