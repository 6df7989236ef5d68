"""Samples that cannot be used: what is done about them, and the report."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

_LOG = logging.getLogger("fastfeed")

MODES = ("raise", "replace", "drop")


@dataclass(frozen=True, order=True)
class BadSample:
    """A sample that could not be used.

    Attributes:
        index: in the dataset.
        path: of the file, or the shard and the member.
        reason: why.
        epoch: in which it was first met with this reason.
    """

    index: int
    path: str
    reason: str
    epoch: int


class SampleError(RuntimeError):
    """A sample that cannot be used; the message names the file, the reason and the way out.

    Attributes:
        samples: the bad samples of the batch, the first one at least.
    """

    def __init__(self, message: str, samples: list[BadSample]) -> None:
        super().__init__(message, samples)
        self.samples = samples

    def __str__(self) -> str:
        return str(self.args[0])


class Report:
    """The bad samples that a loader has met, and how many an epoch may have.

    Args:
        mode: "raise", "replace" or "drop".
        budget: how many bad samples an epoch may have, as a count (int) or a share of the epoch (float); None: any.

    Raises:
        ValueError: for another mode, a budget out of range, or one for mode "raise", which allows none.
    """

    def __init__(self, mode: str, budget: float | None) -> None:
        if mode not in MODES:
            raise ValueError(f"on_error is {mode!r}; expected 'raise', 'replace' or 'drop'")
        whole = isinstance(budget, int | np.integer) and not isinstance(budget, bool) and budget >= 0
        if budget is not None and not whole and not (isinstance(budget, float | np.floating) and 0 <= budget <= 1):
            raise ValueError(
                f"max_errors is {budget!r}; expected a count (an int, 0 or more), a share of the epoch (a float, 0.0 "
                "to 1.0), or None for any number"
            )
        if budget is not None and mode == "raise":
            raise ValueError(
                f"max_errors is {budget!r}, and on_error='raise' allows no bad sample: take on_error='replace' or "
                "'drop', or leave max_errors out"
            )
        self.mode = mode
        self.budget = budget if budget is None else int(budget) if whole else float(budget)
        self._samples: dict[int, BadSample] = {}

    @property
    def samples(self) -> list[BadSample]:
        """All bad samples so far, each once, with its newest reason."""
        return list(self._samples.values())

    def add(self, reasons: Mapping[int, tuple[str, str]], epoch: int, count: int, epoch_size: int) -> None:
        """Take up a batch's bad samples, and log those that are new, or have a new reason.

        Args:
            reasons: index -> (path, reason).
            epoch: in which they were met.
            count: how many positions of the epoch had a bad sample so far, with those of this batch.
            epoch_size: positions of the epoch.

        Raises:
            SampleError: in mode "raise", or if the epoch now has more than the budget allows.
        """
        bad = [BadSample(index, path, reason, epoch) for index, (path, reason) in reasons.items()]
        if not bad:
            return
        for sample in bad:
            known = self._samples.get(sample.index)
            if known is None or known.reason != sample.reason:
                self._samples[sample.index] = sample
                if self.mode != "raise":
                    _LOG.warning("%s sample %d, %s: %s", self._verb(), sample.index, sample.path, sample.reason)
        first, last = bad[0], bad[-1]
        if self.mode == "raise":
            others = f" (and {len(bad) - 1} more in this batch)" if len(bad) > 1 else ""
            raise SampleError(
                f"cannot use {first.path}: {first.reason}{others}. Replace or remove the file; on_error='replace' or "
                "'drop' goes on without it, and `fastfeed scan` finds all bad files",
                bad,
            )
        if self.budget is not None:
            # Rounded before it is cut, or 0.29 of 100 samples would be 28.
            allowed = self.budget if isinstance(self.budget, int) else int(round(self.budget * epoch_size, 6))
            if count > allowed:
                raise SampleError(
                    f"{count} of the epoch's {epoch_size} samples are bad, and max_errors={self.budget!r} allows "
                    f"{allowed}: the last is {last.path}: {last.reason}. `loader.errors` lists them",
                    bad,
                )

    def select(self, n: int, bad: Iterable[int]) -> list[int]:
        """Return which of a batch's N positions are taken: for each bad one the next good one, or none.

        Where all are bad, "replace" takes them as they are.
        """
        bad = set(bad)
        good = [i for i in range(n) if i not in bad]
        if self.mode == "drop":
            return good
        return [i if i not in bad else next((j for j in good if j > i), good[0]) if good else i for i in range(n)]

    def _verb(self) -> str:
        return "replacing" if self.mode == "replace" else "dropping"
