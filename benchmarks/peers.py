"""Other people's packages: used where they are installed, reported as absent where not."""

import importlib
import sys
from importlib import metadata
from types import ModuleType


class Absent(Exception):
    """Raised by a provider's builder: it cannot run here, for the reason given, and that is no mistake of ours."""


def need(module: str, install: str = 'pip install ".[peers]"') -> ModuleType:
    """Import a module of a package that need not be there.

    Args:
        module: its full name, such as "timm.data".
        install: the command that installs it.

    Raises:
        Absent: it is not installed, or what is installed cannot be imported here.
    """
    try:
        found = importlib.import_module(module)
        compiled = sys.modules.get("torchvision.extension")
        in_workers = module.split(".")[0] in ("timm", "torchvision") and module != "timm.models"
        if compiled is not None and not compiled._has_ops() and in_workers:
            # Its Python part may have been imported here all the same, but not in a worker.
            raise RuntimeError("torchvision's compiled part does not load with this PyTorch")
        return found
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(error.name + ".")):
            raise Absent(f"not installed: {install}") from None
        raise Absent(f"cannot be imported: {error}") from error
    except Exception as error:  # a library missing, or built for another PyTorch
        raise Absent(f"cannot be imported: {' '.join(str(error).split())}") from error


def version(*distributions: str) -> str | None:
    """Return the version of the first of these that is installed."""
    for distribution in distributions:
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return None
