"""The norm of all gradients together, and whether they are finite; on the device, without waiting for it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastfeed.optim.plan import Plan
from fastfeed.optim.shards import all_reduced


def total_square(
    plan: Plan,
    grads: Sequence[Tensor | None],
    grad_scale: Tensor | None,
    buffers: dict[int, Tensor],
) -> Tensor:
    """Return [2]: the sum of squares of all gradients after unscaling, and how many elements are not finite.

    fp32, or fp64 if some gradients are. Source of the semantics: torch.nn.utils.get_total_norm.

    Args:
        plan: of the step; its tables hold the addresses of `grads`.
        grads: of all parameters.
        grad_scale: what divides the gradients.
        buffers: that the kernels write, kept between steps.

    Raises:
        RuntimeError: the gradients are on several devices.
    """
    devices = {g.device for g in grads if g is not None}
    if len(devices) > 1:
        raise RuntimeError(
            f"max_grad_norm needs all gradients on one device, but they are on {', '.join(sorted(map(str, devices)))}: "
            "clip them with torch.nn.utils.clip_grad_norm_ before the step instead"
        )
    device = next(iter(devices), plan.reductions[0].rows.device)
    if grad_scale is not None:  # it is where the loss was, which may be elsewhere
        grad_scale = grad_scale.to(device, torch.float32, non_blocking=True)
    totals = []
    # Every rank comes through here for every reduction, whether it has gradients or not: the others wait for it.
    for number, reduction in enumerate(plan.reductions):
        sums: list[Tensor] = []
        for indices, table in plan.tables:
            if any(plan.entries[i].reduction == number for i in indices):
                if number not in buffers:
                    buffers[number] = torch.empty(2, dtype=torch.float32, device=device)
                table.norm(number, buffers[number], grad_scale)
                sums.append(buffers[number])
        parts = [part for part in plan.parts if part.reduction == number]
        eager = [grad for part in parts for i in part.rows.indices if (grad := grads[i]) is not None]
        if eager:
            sums.append(_eager_square(eager, grad_scale))
        if not sums:
            sums.append(torch.zeros(2, dtype=torch.float32, device=reduction.rows.device))
        total = sums[0] if len(sums) == 1 else torch.stack(sums).sum(0)
        totals.append(all_reduced(total, reduction.groups).to(device))
    return totals[0] if len(totals) == 1 else torch.stack(totals).sum(0)


def _eager_square(grads: list[Tensor], grad_scale: Tensor | None) -> Tensor:
    dtype = torch.float64 if any(g.dtype == torch.float64 for g in grads) else torch.float32
    norms = torch.stack(torch._foreach_norm(grads, 2, dtype=dtype))
    if grads[0].device.type == "cpu":  # there one can look, and need not read everything again
        suspects = [g for g, finite in zip(grads, norms.isfinite().tolist(), strict=True) if not finite]
    else:
        suspects = grads
    infinite = sum((g.isfinite().logical_not().sum() for g in suspects), norms.new_zeros(()))
    if grad_scale is not None:
        norms = norms / grad_scale
    return torch.stack([norms.square().sum(), infinite.to(dtype)])
