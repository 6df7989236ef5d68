"""Modules over the fused ops, with the constructors of ``torch.nn``."""

import torch
from torch import Tensor

from fastfeed.data.mix import MixedTarget
from fastfeed.ops.cross_entropy import cross_entropy
from fastfeed.ops.focal_cross_entropy import focal_cross_entropy
from fastfeed.ops.ohem_cross_entropy import ohem_cross_entropy


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
