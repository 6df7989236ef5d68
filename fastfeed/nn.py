"""Modules over the fused ops, with the constructors of ``torch.nn``."""

import math

import torch
import torch.fx
from torch import Tensor

from fastfeed.data.mix import MixedTarget
from fastfeed.ops.avg_max_pool import avg_max_pool2d
from fastfeed.ops.cross_entropy import cross_entropy
from fastfeed.ops.focal_cross_entropy import focal_cross_entropy
from fastfeed.ops.gem_pool import gem_pool2d
from fastfeed.ops.kl_divergence import kl_divergence
from fastfeed.ops.ohem_cross_entropy import ohem_cross_entropy

# torch.fx takes these as they are where the modules call them: what they check is not to be known while it traces.
torch.fx.wrap("avg_max_pool2d")
torch.fx.wrap("gem_pool2d")


class CrossEntropyLoss(torch.nn.CrossEntropyLoss):
    """``torch.nn.CrossEntropyLoss`` over `fastfeed.functional.cross_entropy`."""

    def forward(self, input: Tensor, target: Tensor | MixedTarget) -> Tensor:
        """Return the loss of logits, [N, C] or [N, C, d1, ...], and a target as `cross_entropy` takes it."""
        return cross_entropy(input, target, self.weight, self.ignore_index, self.reduction, self.label_smoothing)


class FocalCrossEntropyLoss(torch.nn.Module):
    """`fastfeed.functional.focal_cross_entropy` as a module; its weight is a buffer, as that of CrossEntropyLoss."""

    def __init__(
        self, weight: Tensor | None = None, ignore_index: int = -100, reduction: str = "mean", gamma: float = 2.0
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.weight: Tensor | None
        self.ignore_index, self.reduction, self.gamma = ignore_index, reduction, gamma

    def forward(self, input: Tensor, target: Tensor | MixedTarget) -> Tensor:
        """Return the loss of logits, [N, C] or [N, C, d1, ...], and a target as `focal_cross_entropy` takes it."""
        return focal_cross_entropy(input, target, self.weight, self.ignore_index, self.reduction, self.gamma)

    def extra_repr(self) -> str:
        """Return what the loss is called with."""
        return f"gamma={self.gamma}"


class OHEMCrossEntropyLoss(torch.nn.CrossEntropyLoss):
    """`fastfeed.functional.ohem_cross_entropy` as a module, with the arguments of ``torch.nn.CrossEntropyLoss``."""

    def __init__(
        self,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        k: float | int = 0.7,
        thresh: float | None = None,
        min_kept: int | None = None,
    ) -> None:
        super().__init__(weight=weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing)
        self.k, self.thresh, self.min_kept = k, thresh, min_kept

    def forward(self, input: Tensor, target: Tensor | MixedTarget) -> Tensor:
        """Return the loss of logits, [N, C] or [N, C, d1, ...], and a target as `ohem_cross_entropy` takes it."""
        return ohem_cross_entropy(
            input, target, self.weight, self.ignore_index, self.reduction, self.label_smoothing, self.k, self.thresh,
            self.min_kept,
        )  # fmt: skip

    def extra_repr(self) -> str:
        """Return which rows count."""
        return f"k={self.k}" if self.thresh is None else f"thresh={self.thresh}, min_kept={self.min_kept}"


class GeMPool2d(torch.nn.Module):
    """Generalized-mean pooling over all positions: `fastfeed.functional.gem_pool2d`.

    Its state is the parameter `p`, [1] or [channels], so that it loads that of the usual GeM modules.

    Args:
        p: the exponent, above 0; what `p` begins with.
        eps: what smaller elements are raised to, above 0.
        learnable: whether `p` requires a gradient.
        channels: gives each of so many channels an exponent of its own.

    Raises:
        ValueError: for a `p` or an `eps` that is not above 0, or not finite, or `channels` below 1.
    """

    p: Tensor

    def __init__(self, p: float = 3.0, eps: float = 1e-6, learnable: bool = True, channels: int | None = None) -> None:
        super().__init__()
        if not 0 < p < math.inf:
            raise ValueError(f"p is {p}; expected a finite number above 0")
        if not 0 < eps < math.inf:
            raise ValueError(f"eps is {eps}; expected a finite number above 0")
        if channels is not None and channels < 1:
            raise ValueError(f"channels is {channels}; expected 1 or more, or None for one p for all channels")
        self.eps = eps
        self.p = torch.nn.Parameter(torch.full((channels or 1,), float(p)), requires_grad=learnable)

    def forward(self, input: Tensor) -> Tensor:
        """Pool [N, C, H, W] to [N, C, 1, 1], or [C, H, W] to [C, 1, 1]."""
        return gem_pool2d(input, self.p, self.eps)

    def extra_repr(self) -> str:
        """Return the options, and the exponent as it is now, for which the host waits for a GPU."""
        options = f"eps={self.eps}, learnable={self.p.requires_grad}"
        if self.p.numel() > 1:
            return f"{options}, channels={self.p.numel()}"
        return options if self.p.is_meta else f"p={self.p.item():.4g}, {options}"


class AvgMaxPool2d(torch.nn.Module):
    """The average and the maximum over all positions, concatenated: `fastfeed.functional.avg_max_pool2d`."""

    def forward(self, input: Tensor) -> Tensor:
        """Pool [N, C, H, W] to [N, 2 C, 1, 1], or [C, H, W] to [2 C, 1, 1]: averages, then maxima."""
        return avg_max_pool2d(input)


class KLDivergence(torch.nn.Module):
    """`fastfeed.functional.kl_divergence` as a module, for distillation.

    Args:
        temperature: above 0.
        reduction: "batchmean", "sum" or "none".
    """

    def __init__(self, temperature: float = 1.0, reduction: str = "batchmean") -> None:
        super().__init__()
        self.temperature = temperature
        self.reduction = reduction

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss of the student's logits [N, C], given the teacher's."""
        return kl_divergence(student, teacher, self.temperature, self.reduction)

    def extra_repr(self) -> str:
        """Return what stands in the parentheses of the module's repr."""
        return f"temperature={self.temperature}, reduction={self.reduction!r}"
