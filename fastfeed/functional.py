"""Fused ops as functions, named and behaving as in ``torch.nn.functional``."""

from fastfeed.ops.cross_entropy import cross_entropy
from fastfeed.ops.focal_cross_entropy import focal_cross_entropy
from fastfeed.ops.ohem_cross_entropy import ohem_cross_entropy

__all__ = ["cross_entropy", "focal_cross_entropy", "ohem_cross_entropy"]
