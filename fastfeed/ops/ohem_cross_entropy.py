"""Online hard example mining: cross-entropy of the hardest rows alone (Shrivastava et al., CVPR 2016).

The rows' losses are those of ``cross_entropy.py``. Which of them count is decided on the device, without waiting for
it: by the kernel in ``kernels/ohem.py`` up to its MAX_ROWS, else in PyTorch's ops. The gradients of the others are
zeros, for which the backward of long rows does not read their logits.
"""

import math
from typing import Any

import torch
from torch import Tensor

from fastfeed.data.mix import MixedTarget
from fastfeed.ops.cross_entropy import REDUCTIONS, dtype_of_loss, label_loss
from fastfeed.ops.registration import below_autograd, kernel_takes, register


def ohem_cross_entropy(
    input: Tensor,
    target: Tensor | MixedTarget,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    k: float | int = 0.7,
    thresh: float | None = None,
    min_kept: int | None = None,
) -> Tensor:
    """Cross-entropy of the rows (samples, or pixels) that are hardest in the batch.

    By default the `k` rows with the largest losses count. With `thresh` it is those whose class has a probability below
    it, and at least the `min_kept` whose class is least probable, as in segmentation (OHEM of pixels in HRNet's and
    mmsegmentation's code). Of rows that are equally hard those that come first count. A row whose loss is NaN is the
    hardest, so that it shows.

    Args:
        input: [N, C] or [N, C, d1, ...] logits.
        target: class indices, [N] or [N, d1, ...], or a `fastfeed.MixedTarget` of them, as for `cross_entropy`.
        weight: [C] class weights.
        ignore_index: label of rows that never count.
        reduction: "mean" over the rows that count, each as one, whatever its weight; "sum"; or "none", zeros for the
            others.
        label_smoothing: 0 to 1.
        k: how many rows: a number (int, at least 1); or a share (float, above 0, to 1) of all of them, the ignored ones
            included, rounded down, but at least one. There are fewer if fewer are not ignored.
        thresh: a probability, 0 to 1; instead of `k`.
        min_kept: at least 0; goes with `thresh`. By default 0.

    Returns:
        A scalar, or, for "none", [N] or [N, d1, ...]; of the dtype that `cross_entropy` gives. The mean of no row is
        NaN.

    Raises:
        TypeError: for a `k` or a `min_kept` that is no number.
        ValueError: for one out of range, or a `min_kept` without `thresh`; and as `cross_entropy`.
        RuntimeError, IndexError: as `cross_entropy`.
    """
    if not isinstance(target, MixedTarget) and target.is_floating_point():
        raise ValueError(
            f"target is {target.dtype}; expected class indices, or a fastfeed.MixedTarget. For probabilities rank the "
            "losses of fastfeed.functional.cross_entropy(..., reduction='none')"
        )
    if reduction not in REDUCTIONS:
        raise ValueError(f"{reduction!r} is not a valid value for reduction; expected 'mean', 'sum' or 'none'")
    threshold = _check(k, thresh, min_kept)
    compute = torch.promote_types(input.dtype, torch.float32)
    loss = label_loss(input, target, weight, ignore_index, "none", label_smoothing, dtype=compute)
    hardness = loss.detach()
    if thresh is not None and (
        weight is not None or label_smoothing > 0
    ):  # than which the probability is another thing
        hardness = label_loss(input.detach(), target, None, ignore_index, "none", dtype=compute)
    labels = (target.a, target.b) if isinstance(target, MixedTarget) else (target,)
    # As int64: PyTorch compares uint8 with a number's lowest byte, and 156 would equal -100.
    counts = [label.long() != ignore_index for label in labels]
    valid = counts[0] if len(counts) == 1 else counts[0] | counts[1]
    if thresh is not None:
        count = min_kept or 0
    else:
        count = k if isinstance(k, int) else max(1, math.floor(k * loss.numel()))
    flat = loss.reshape(-1), hardness.reshape(-1), valid.reshape(-1)
    arguments = (*flat, count, threshold, reduction, dtype_of_loss(input))
    if kernel_takes(loss):
        result, _ = _OHEM(*arguments)
    else:
        result, _ = reference(*arguments)
    return result.reshape(loss.shape) if reduction == "none" else result


def _check(k: float | int, thresh: float | None, min_kept: int | None) -> float | None:
    """Return the hardness that goes with `thresh`, or raise."""
    if isinstance(k, bool) or not isinstance(k, int | float):
        raise TypeError(f"k is {k!r}; expected a number of rows (int), or a share of them (float)")
    if isinstance(k, int) and k < 1:
        raise ValueError(f"k is {k}; expected at least 1 row, or a share of them, as 0.7")
    if isinstance(k, float) and not 0 < k <= 1:
        raise ValueError(f"k is {k}; expected a share above 0, to 1, or a number of rows (int)")
    if min_kept is not None:
        if isinstance(min_kept, bool) or not isinstance(min_kept, int):
            raise TypeError(f"min_kept is {min_kept!r}; expected a number of rows (int)")
        if min_kept < 0:
            raise ValueError(f"min_kept is {min_kept}; expected at least 0")
        if thresh is None:
            raise ValueError(f"min_kept is {min_kept}, and thresh None: without thresh k says how many rows count")
    if thresh is None:
        return None
    if not 0 <= thresh <= 1:
        raise ValueError(f"thresh is {thresh}; expected a probability, 0 to 1")
    return -math.log(thresh) if thresh > 0 else math.inf


# --- The eager reference ------------------------------------------------------------------------------------


def reference(
    loss: Tensor,
    hardness: Tensor,
    valid: Tensor,
    count: int,
    threshold: float | None,
    reduction: str,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Return the loss of the rows that count, and the factor of each row's loss in it; all are [R]."""
    kept = hardest(hardness, valid, count)
    if threshold is not None:
        kept = kept | ((hardness > threshold) & valid)
    value = torch.where(kept, loss, 0)
    factor = kept.to(loss.dtype)
    if reduction == "mean":
        number = factor.sum()
        value, factor = value.sum() / number, torch.where(kept, 1 / number, 0)
    elif reduction == "sum":
        value = value.sum()
    return value.to(dtype), factor


def hardest(hardness: Tensor, valid: Tensor, count: int) -> Tensor:
    """Return [R] bool: the `count` hardest valid rows; of those that are equally hard the first ones."""
    count = min(count, hardness.numel())
    if count == 0:
        return torch.zeros_like(valid)
    key = torch.where(valid, hardness.nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf), -math.inf)
    # The value of the k-th hardest is the same whatever topk does with ties.
    lowest = key.topk(count, sorted=False).values.amin()
    above, ties = (key > lowest) & valid, (key == lowest) & valid
    return above | (ties & (ties.cumsum(0) <= count - above.sum()))


# --- Registration -------------------------------------------------------------------------------------------


def _ohem(
    loss: Tensor,
    hardness: Tensor,
    valid: Tensor,
    count: int,
    threshold: float | None,
    reduction: str,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    from fastfeed.kernels.ohem import MAX_ROWS, ohem

    arguments = (loss, hardness, valid, count, threshold, reduction, dtype)
    return ohem(*arguments) if loss.numel() <= MAX_ROWS else reference(*arguments)


def _ohem_fake(
    loss: Tensor,
    hardness: Tensor,
    valid: Tensor,
    count: int,
    threshold: float | None,
    reduction: str,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    return loss.new_empty(loss.shape if reduction == "none" else (), dtype=dtype), torch.empty_like(loss)


class _Ohem(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        with below_autograd():
            result, factor = _OHEM(*arguments)
        ctx.save_for_backward(factor)
        ctx.mark_non_differentiable(factor)
        ctx.set_materialize_grads(False)
        return result, factor

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        (factor,) = ctx.saved_tensors
        # In PyTorch's ops, which can be differentiated again.
        return (None if grad is None else grad.to(factor.dtype) * factor, *(None,) * 6)


_OHEM = register(
    "ohem(Tensor loss, Tensor hardness, Tensor valid, SymInt count, float? threshold, str reduction, ScalarType dtype) "
    "-> (Tensor, Tensor)",
    _ohem,
    _ohem_fake,
    _Ohem,
)
