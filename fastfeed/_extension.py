"""The way to fastfeed._C, with an error that says what to do where it was not built."""

import functools
import importlib
from types import ModuleType


@functools.cache
def extension() -> ModuleType:
    """Return fastfeed._C.

    Raises:
        ImportError: if it was not built.
    """
    try:
        return importlib.import_module("fastfeed._C")
    except ModuleNotFoundError as error:
        if error.name != "fastfeed._C":
            raise
        raise ImportError(
            "fastfeed's C++ extension, fastfeed._C, is not built. In a checkout run: pip install -e ."
        ) from error
