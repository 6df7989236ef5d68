"""Fused ops as functions, named and behaving as in ``torch.nn.functional``."""

from fastfeed.ops.cross_entropy import cross_entropy

__all__ = ["cross_entropy"]
