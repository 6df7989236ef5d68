"""Optimizers that step all tensors of a parameter group in one kernel launch."""

from fastfeed.optim.adamw import AdamW

__all__ = ["AdamW"]
