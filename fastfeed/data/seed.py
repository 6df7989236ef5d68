"""The seed of a loader: given, or drawn from PyTorch's generator."""

import torch

from fastfeed.data.arguments import check_whole


class Seed:
    """64 bits that decide all that is random in a loader.

    Args:
        given: by the user, or None.
        default: what it is then; None to draw it from PyTorch's global generator when it is first needed, as PyTorch's
            loader draws those of its workers: what is made between, a model, say, is what it would be without a loader.
        is_free: whether a state may bring another one, if none is given.

    Attributes:
        is_free: whether a state may bring another one: nobody chose this one.

    Raises:
        TypeError, ValueError: for a seed that is no whole number, or out of range.
    """

    def __init__(self, given: int | None, default: int | None, *, is_free: bool) -> None:
        self.is_free = given is None and is_free
        self._value = default if given is None else check_whole("seed", given, 0, 2**64 - 1)
        self._adopted = False

    def of(self, world_size: int) -> int:
        """Return the seed; 0 where several ranks share an epoch, each of which would draw another one."""
        if self.is_free and not self._adopted and world_size > 1:
            return 0
        if self._value is None:
            self._value = int(torch.empty((), dtype=torch.int64).random_().item())
        return self._value

    def adopt(self, seed: int) -> None:
        """Take over that of a state."""
        self._value, self._adopted = int(seed), True
