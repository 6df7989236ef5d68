"""Learning-rate schedules: warm-up, then half a cosine."""

import math
from typing import Any

from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import Optimizer

from fastfeed.data.arguments import check_whole


def warmup_cosine(
    optimizer: Optimizer, warmup_steps: int, total_steps: int, *, min_lr_ratio: float = 0.0, last_epoch: int = -1
) -> LRScheduler:
    """Return a scheduler that raises the learning rate linearly and then lowers it along half a cosine.

    Every parameter group's learning rate is its own base, the `lr` that the optimizer has when this is called, times a
    factor that depends on the number of the step alone. With W = `warmup_steps` and T = `total_steps`, step s, from 0,
    has the factor ::

        (s + 1) / W                                                    s < W
        r + (1 - r) / 2 * (1 + cos(pi * (s - W) / (T - W)))       W <= s < T,  r = min_lr_ratio
        r                                                         T <= s

    The first step has 1 / W of the base, so that none is lost to a learning rate of 0; the last step of the warm-up
    has the base, and so has the one after it, where the cosine begins. The last step, T - 1, is just above the lowest
    learning rate, which all steps after it have.

    Call ``step()`` after each ``optimizer.step()``, not once per epoch. State dicts, tensor learning rates and
    `last_epoch` are as in PyTorch's schedulers; what is more, a parameter group that is added later takes part from
    the next ``step()``, with the `lr` that it was added with as its base.

    Args:
        optimizer: whose learning rates are set.
        warmup_steps: 0 to `total_steps`; 0 starts with the cosine.
        total_steps: optimizer steps of the whole training, warm-up included; 1 or more.
        min_lr_ratio: the lowest learning rate, as a share of the base; 0 to 1.
        last_epoch: the number of the last step that was done, -1 for none. Anything else needs the `initial_lr` that
            the groups of a resumed optimizer have; loading a state dict is the simpler way.

    Raises:
        TypeError: for an optimizer that is none.
        ValueError: for an argument out of range, or steps that are no whole numbers.
        KeyError: for a `last_epoch` other than -1 without `initial_lr`.

    Source: the warm-up of Goyal et al., Accurate, Large Minibatch SGD (https://arxiv.org/abs/1706.02677), section 2.2,
    and the cosine, without restarts, of Loshchilov and Hutter, SGDR (https://arxiv.org/abs/1608.03983), equation 5.
    """
    return _WarmupCosine(optimizer, warmup_steps, total_steps, min_lr_ratio, last_epoch)


class _WarmupCosine(LRScheduler):
    """What `warmup_cosine` returns. Its state dict is the arguments and PyTorch's own entries, numbers all."""

    def __init__(
        self, optimizer: Optimizer, warmup_steps: int, total_steps: int, min_lr_ratio: float, last_epoch: int
    ) -> None:
        self.total_steps = check_whole("total_steps", total_steps, 1)
        self.warmup_steps = check_whole("warmup_steps", warmup_steps, 0)
        if self.warmup_steps > self.total_steps:
            raise ValueError(
                f"warmup_steps is {warmup_steps} and total_steps is {total_steps}; expected a warm-up no longer "
                "than the training, both in optimizer steps"
            )
        if not 0 <= min_lr_ratio <= 1:  # NaN too
            raise ValueError(
                f"min_lr_ratio is {min_lr_ratio!r}; expected a share of each group's lr, 0 to 1, such as "
                "1e-5 / lr for a lowest learning rate of 1e-5"
            )
        self.min_lr_ratio = float(min_lr_ratio)
        super().__init__(optimizer, check_whole("last_epoch", last_epoch, -1))

    def get_lr(self) -> list[float | Tensor]:
        """Return the learning rate of every parameter group at the step `last_epoch`."""
        self._adopt_new_groups()
        factor = self._factor(self.last_epoch)
        return [lr * factor for lr in self.base_lrs]

    def _factor(self, step: int) -> float:
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if step >= self.total_steps:
            return self.min_lr_ratio
        progress = (step - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        return self.min_lr_ratio + (1 - self.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * progress))

    def _adopt_new_groups(self) -> None:
        groups = self.optimizer.param_groups
        for i in range(len(self.base_lrs), len(groups)):
            group = groups[i]
            if "initial_lr" not in group:
                group["initial_lr"] = _base_lr(group, groups[:i])
            # Not appended: the list may be the one in a state dict that was loaded.
            self.base_lrs = [*self.base_lrs, _copy(group["initial_lr"])]


def _base_lr(group: dict[str, Any], others: list[dict[str, Any]]) -> Any:
    """Return the base learning rate of a new parameter group.

    Groups that name no lr share the optimizer's, which, if it is a tensor, the schedule has changed by now.
    """
    if isinstance(group["lr"], Tensor):
        for other in others:
            if other["lr"] is group["lr"]:
                return _copy(other["initial_lr"])
    return _copy(group["lr"])


def _copy(lr: Any) -> Any:
    return lr.clone() if isinstance(lr, Tensor) else lr
