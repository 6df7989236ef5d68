"""Fused ops as functions, named and behaving as in ``torch.nn.functional``."""

from fastfeed.ops.avg_max_pool import avg_max_pool2d
from fastfeed.ops.cross_entropy import cross_entropy
from fastfeed.ops.focal_cross_entropy import focal_cross_entropy
from fastfeed.ops.gem_pool import gem_pool2d
from fastfeed.ops.kl_divergence import kl_divergence
from fastfeed.ops.ohem_cross_entropy import ohem_cross_entropy

__all__ = [
    "avg_max_pool2d",
    "cross_entropy",
    "focal_cross_entropy",
    "gem_pool2d",
    "kl_divergence",
    "ohem_cross_entropy",
]
