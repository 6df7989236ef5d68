"""torchvision where its compiled part does not load, as with a PyTorch that was built for another device.

Its Python transforms need none of it, but the import does: it looks for two operators. They are declared here, which is
enough, and nothing is where torchvision can be imported as it is.
"""

import importlib
from types import ModuleType

import torch

_declared: list[torch.library.Library] = []  # a library's operators are gone when it is


def import_torchvision(module: str = "torchvision") -> ModuleType:
    """Import torchvision, or one of its modules.

    Raises:
        ModuleNotFoundError: where it is not installed.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error) or _declared:
            raise
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.append(library)
    return importlib.import_module(module)
