"""fastfeed keeps an accelerator fed and finishes the training step fast.

Three front doors, each usable without the other two: ``DataLoader`` (NVIDIA DALI decodes, the extension
finishes), ``functional`` / ``nn`` / ``optim`` (fused Triton ops and optimizers), and the benchmark suite
(``python -m benchmarks`` in a checkout).
"""

import importlib
from typing import TYPE_CHECKING, Any

from fastfeed._version import __version__

if TYPE_CHECKING:
    from fastfeed import data, functional, nn, optim, transforms
    from fastfeed.data.errors import SampleError
    from fastfeed.data.loader import DataLoader
    from fastfeed.data.mix import Mix, MixedTarget
    from fastfeed.data.prefetch import Prefetcher
    from fastfeed.data.sources import FolderSource, ListSource, TarSource
    from fastfeed.data.views import average_logits

# Loaded on first use, so that `import fastfeed` costs nothing and an op can be used without DALI installed.
_CLASSES = {
    "DataLoader": "fastfeed.data.loader",
    "FolderSource": "fastfeed.data.sources",
    "ListSource": "fastfeed.data.sources",
    "Mix": "fastfeed.data.mix",
    "MixedTarget": "fastfeed.data.mix",
    "Prefetcher": "fastfeed.data.prefetch",
    "SampleError": "fastfeed.data.errors",
    "TarSource": "fastfeed.data.sources",
    "average_logits": "fastfeed.data.views",
}
_MODULES = ("data", "functional", "nn", "optim", "transforms")

__all__ = [
    "DataLoader",
    "FolderSource",
    "ListSource",
    "Mix",
    "MixedTarget",
    "Prefetcher",
    "SampleError",
    "TarSource",
    "__version__",
    "average_logits",
    "data",
    "functional",
    "nn",
    "optim",
    "transforms",
]


def __getattr__(name: str) -> Any:
    if name in _CLASSES:
        value = getattr(importlib.import_module(_CLASSES[name]), name)
    elif name in _MODULES:
        value = importlib.import_module(f"fastfeed.{name}")
    else:
        raise AttributeError(f"module 'fastfeed' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
