"""Where a loader is in its epochs, and the states that say so."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastfeed.data.arguments import check_whole
from fastfeed.data.epoch import Epochs, Given, beginning


@dataclass(eq=False)
class Run:
    """An iteration over a loader."""

    epochs: Epochs
    start: dict[str, Any] | None = None  # of its epoch, which it takes with its first batch


class Progress:
    """Where a loader is: after the batch that was given last by the iterator that was begun last.

    Places are as `beginning` has them.

    A script may set the epoch of a PyTorch sampler at any time: what is so set is given to the methods as `epoch`, None
    where nothing is.
    """

    def __init__(self) -> None:
        self._epoch = 0  # of the next iterator
        self._given: dict[str, Any] | None = None  # None between epochs, where `_resume` is where the next one begins
        self._resume: dict[str, Any] | None = None
        self._newest: Run | None = None

    def place(self, epoch: int | None) -> dict[str, Any]:
        """Return where the newest iterator is, or where the next one begins if that one is done."""
        return self._given or self.next_start(epoch)

    def next_start(self, epoch: int | None) -> dict[str, Any]:
        """Return where the next iterator begins; an epoch that is to be resumed stays so when it is set again."""
        if self._resume is not None and epoch in (None, self._resume["epoch"]):
            return self._resume
        return beginning(self._epoch if epoch is None else epoch)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iterator; one that is to be resumed stays so."""
        if self._resume is None or self._resume["epoch"] != epoch:
            self._epoch, self._resume, self._given = epoch, None, None

    def resume(self, place: dict[str, Any]) -> None:
        """Set where the next iterator begins."""
        self._epoch, self._resume, self._given, self._newest = place["epoch"], place, None, None

    def begin(self, run: Run, epoch: int | None) -> dict[str, Any]:
        """Give an iterator its place, and the next one the epoch after it."""
        run.start = start = self.next_start(epoch)
        self._epoch, self._resume, self._given, self._newest = start["epoch"] + 1, None, start, run
        return start

    def note(self, run: Run, given: Given) -> Given:
        """Note that an iterator gives a batch, and return that."""
        if run is self._newest and given.error is None:
            self._given = given.progress
        return given

    def end(self, run: Run) -> None:
        """Note that an iterator is done."""
        if run is self._newest:
            self._given = None


def place_of(state: Mapping[str, Any], identity: Mapping[str, Any], *, any_seed: bool) -> dict[str, Any]:
    """Return the place that a loader's state says.

    Args:
        state: what `DataLoader.state_dict` returned.
        identity: of the loader that is to go on from it: what must be the same.
        any_seed: that may be another one; what is none raises nevertheless.

    Raises:
        KeyError, TypeError, ValueError: as `DataLoader.load_state_dict`.
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"the state is {type(state).__name__}; expected what DataLoader.state_dict() returned")
    missing = {*beginning(0), *identity} - state.keys()
    if missing:
        raise KeyError(
            f"the state has no {', '.join(sorted(missing))}, only {', '.join(map(str, state)) or 'nothing'}: "
            "expected what DataLoader.state_dict() returned"
        )
    for name, own in identity.items():
        if name == "seed" and any_seed:
            check_whole("the state's seed", state[name], 0, 2**64 - 1)
        elif state[name] != own:
            raise ValueError(
                f"the state is of a loader with {name} = {state[name]}, and this one has {own}: its batches would "
                "not be those that are left. Load it into one with the same dataset, seed and sampler"
            )
    numbers = {name: check_whole(f"the state's {name}", state[name], 0) for name in beginning(0) if name != "sampler"}
    return {**numbers, "sampler": state["sampler"]}
