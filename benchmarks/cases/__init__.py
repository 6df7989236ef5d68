"""One file per case; a file put here is found, and nothing else has to know of it."""

import importlib
import pkgutil

from benchmarks.case import Case


def all_cases() -> list[type[Case]]:
    """Return every case of this folder's files, in the order of the files' names."""
    modules = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    return [
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Case) and value.__module__ == module.__name__
    ]
