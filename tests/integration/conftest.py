"""The libraries that these tests run with the loader are optional: what is not installed is named, and left out."""

import contextlib

from benchmarks.torchvision_ops import import_torchvision

# Other libraries take parts of it, though its compiled code may not go with this PyTorch.
with contextlib.suppress(ModuleNotFoundError):
    import_torchvision()
