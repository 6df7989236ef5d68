"""torchvision for tests that need it, whether or not its compiled part loads here."""

from types import ModuleType

import pytest

from benchmarks.torchvision_ops import import_torchvision


def torchvision_or_skip(module: str) -> ModuleType:
    """Import one of torchvision's modules; where it is not installed, skip the test file that asks for it."""
    try:
        return import_torchvision(module)
    except ModuleNotFoundError:
        pytest.skip("needs torchvision, which is not installed", allow_module_level=True)
