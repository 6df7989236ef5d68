"""The input pipeline, one room per step: sources, samplers and order, transforms and steps, plan, augment, graph,
mix, finish, ring, loader. Declarations of samplers and size schedules are imported from here too.

For loaders of PyTorch's own: prefetch, and `collate_uint8`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastfeed.data.collate import collate_uint8
    from fastfeed.data.epoch import SampleInfo
    from fastfeed.data.errors import BadSample
    from fastfeed.data.samplers import ClassBalancedSampler, RepeatedAugmentation, WeightedSampler
    from fastfeed.data.schedule import MultiScale, ProgressiveSize

# Loaded on first use, as in fastfeed/__init__.py.
_NAMES = {
    "BadSample": "fastfeed.data.errors",
    "ClassBalancedSampler": "fastfeed.data.samplers",
    "MultiScale": "fastfeed.data.schedule",
    "ProgressiveSize": "fastfeed.data.schedule",
    "RepeatedAugmentation": "fastfeed.data.samplers",
    "SampleInfo": "fastfeed.data.epoch",
    "WeightedSampler": "fastfeed.data.samplers",
    "collate_uint8": "fastfeed.data.collate",
}

__all__ = [
    "BadSample",
    "ClassBalancedSampler",
    "MultiScale",
    "ProgressiveSize",
    "RepeatedAugmentation",
    "SampleInfo",
    "WeightedSampler",
    "collate_uint8",
]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'fastfeed.data' has no attribute {name!r}")
    value = getattr(importlib.import_module(_NAMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
