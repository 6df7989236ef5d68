"""Modules over the fused ops, with the constructors of ``torch.nn``."""

import torch
from torch import Tensor

from fastfeed.ops.cross_entropy import cross_entropy


class CrossEntropyLoss(torch.nn.CrossEntropyLoss):
    """``torch.nn.CrossEntropyLoss`` over `fastfeed.functional.cross_entropy`."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits `input` [N, C] and class indices `target` [N]."""
        return cross_entropy(input, target, self.weight, self.ignore_index, self.reduction, self.label_smoothing)
