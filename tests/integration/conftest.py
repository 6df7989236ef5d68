"""The libraries that these tests run with the loader are optional: what is not installed is named, and left out."""

import importlib.util
import sys

import torch


def load_torchvision():
    """Import torchvision, of which other libraries take parts, though its compiled code may not go with this PyTorch.

    Then two operators must be known by name, which its Python code refers to when it is imported; nobody calls them.
    """
    if importlib.util.find_spec("torchvision") is None:
        return None
    try:
        import torchvision
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision
    else:
        library = torchvision
    return library


_TORCHVISION = load_torchvision()  # kept: the operators go with it
