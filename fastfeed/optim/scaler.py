"""Dynamic loss scaling that looks for infinities in the pass over the gradients that clipping takes anyway."""

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from fastfeed.optim.optimizer import MultiTensorOptimizer


class GradScaler(torch.amp.GradScaler):
    """:class:`torch.amp.GradScaler` for the optimizers here.

    Before such an optimizer steps, torch's scaler reads and writes every gradient to find infinities, 8 bytes per fp32
    element, and the optimizer, if it clips, reads them once more for their norm. Here one pass that reads them does
    both. Arguments, methods, state dict and what is skipped are torch's; so is everything for other optimizers, and
    after :meth:`unscale_`.
    """

    def _check_inf_per_device(self, optimizer: Optimizer) -> dict[str, Any]:
        found_inf = None
        scale = self._get_scale_async()
        if isinstance(optimizer, MultiTensorOptimizer) and scale is not None:
            found_inf = optimizer.find_inf(scale * getattr(optimizer, "grad_scale", 1))
        if found_inf is None:
            return super()._check_inf_per_device(optimizer)
        found: dict[Any, Tensor] = {found_inf.device: found_inf}
        self._per_optimizer_states[id(optimizer)]["found_inf_per_device"] = found
        return found
