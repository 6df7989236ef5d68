"""The focal loss of classes that exclude each other (Lin et al., ICCV 2017), over the kernels of cross-entropy."""

import math

from torch import Tensor

from fastfeed.data.mix import MixedTarget
from fastfeed.ops.cross_entropy import label_loss


def focal_cross_entropy(
    input: Tensor,
    target: Tensor | MixedTarget,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    gamma: float = 2.0,
) -> Tensor:
    """The cross-entropy of each row times (1 - p) ** gamma, p the softmax probability of its class.

    With gamma = 0 it is `cross_entropy`. (``torchvision.ops.sigmoid_focal_loss`` is another loss: of classes that do
    not exclude each other, each with a sigmoid of its own.)

    Args:
        input: [N, C] or [N, C, d1, ...] logits.
        target: class indices, [N] or [N, d1, ...]; or a `fastfeed.MixedTarget` of them: lam times the focal loss of the
            one label, plus 1 - lam times that of the other.
        weight: [C] class weights, the paper's alpha.
        ignore_index: target of rows that count neither in the loss nor in the mean.
        reduction: "mean", as that of `cross_entropy`, "sum" or "none".
        gamma: 0 or more.

    Returns:
        A scalar, or, for "none", [N] or [N, d1, ...]; of the dtype that `cross_entropy` gives.

    Raises:
        ValueError: for a gamma that is negative or not finite; and as `cross_entropy`.
        RuntimeError, IndexError: as `cross_entropy`.
    """
    if not 0 <= gamma < math.inf:
        raise ValueError(f"gamma is {gamma}; expected a finite number, 0 or more")
    return label_loss(input, target, weight, ignore_index, reduction, gamma=float(gamma))
