"""Why something cannot be read, and the names of things in such reasons."""

import sys
import types
from collections.abc import Sequence
from typing import Any

import torch

# The last one has the transforms that go with torchvision's weights.
TRANSFORMS = ("torchvision.transforms.v2", "torchvision.transforms", "torchvision.transforms._presets")
TIMM = ("timm.data.transforms",)


class Unreadable(Exception):
    """What was given cannot be done by DALI with the same results.

    Attributes:
        reasons: all of them, each a phrase that names the thing and says why.
        has_images: whether it is a dataset of image files, of which another transform could be read.
    """

    def __init__(self, reasons: Sequence[str], *, has_images: bool = False) -> None:
        super().__init__(list(reasons))
        self.reasons = list(reasons)
        self.has_images = has_images

    def __str__(self) -> str:
        return "; ".join(self.reasons)


def torchvision_class(thing: Any, modules: Sequence[str] = TRANSFORMS) -> tuple[str, str] | None:
    """Return the module and the name of torchvision's class that this is an instance of, not of a subclass.

    An instance with methods or hooks of its own is none. A class that nobody has imported has no instances, so that
    nothing is imported here.
    """
    cls = type(thing)
    if is_changed(thing):
        return None
    for module in modules:
        if getattr(sys.modules.get(module), cls.__name__, None) is cls:
            return module, cls.__name__
    return None


def why_unknown(thing: Any, role: str) -> str:
    """Return why a transform is not among those that can be read.

    Args:
        thing: the transform.
        role: what a function without a name of its own is called, as "transform".
    """
    if isinstance(thing, types.FunctionType | types.BuiltinFunctionType | types.MethodType):
        name = role if "<lambda>" in thing.__qualname__ else thing.__qualname__
        return f"{name} is a function, whose workings cannot be read"
    cls = type(thing)
    if torchvision_class(thing) is not None:
        if cls.__name__ == "Lambda":
            return "Lambda(...) is a function, whose workings cannot be read"
        return f"{cls.__name__}(...) has no equivalent"
    for base in cls.__mro__:
        if any(getattr(sys.modules.get(module), base.__name__, None) is base for module in TRANSFORMS):
            if base is cls:
                return f"{cls.__name__}(...) has methods or hooks of its own"
            if base.__name__ != "Transform":
                return f"{cls.__qualname__} is a subclass of {base.__name__}, whose workings cannot be read"
    if cls.__module__.startswith("timm."):
        return (
            f"timm's {cls.__qualname__} has no equivalent; fastfeed.transforms.timm_train and timm_eval are its recipes"
        )
    return f"{cls.__qualname__} is no transform of torchvision's"


def is_changed(thing: Any) -> bool:
    """Whether an instance has methods or hooks of its own."""
    own = getattr(thing, "__dict__", {})
    if any(callable(getattr(type(thing), name, None)) for name in own):
        return True
    return isinstance(thing, torch.nn.Module) and bool(thing._forward_hooks or thing._forward_pre_hooks)
