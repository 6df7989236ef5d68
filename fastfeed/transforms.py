"""What a loader does to an image: the public names of ``fastfeed.data.transforms``."""

from fastfeed.data.transforms import CenterCrop, RandomResizedCrop, Transform, eval, train

__all__ = ["CenterCrop", "RandomResizedCrop", "Transform", "eval", "train"]
