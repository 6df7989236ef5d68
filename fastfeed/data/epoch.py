"""What an epoch gives, and where it begins."""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, eq=False)
class SampleInfo:
    """Which samples a batch holds.

    Attributes:
        index: [N] int64, in the dataset: where another sample stands in for a bad one, the bad one's.
        valid: [N] bool: False where a sample only fills the batch, because another rank has one more, or because it
            stands in for a bad one. Do not count it in an evaluation.
        path: N names of files, or of shards and members.
    """

    index: torch.Tensor
    valid: torch.Tensor
    path: list[str]


class EpochIterator(Iterator[Any]):
    """The batches of an epoch, or of what is left of one after a resume.

    Its length is how many it gives in all, and does not change, as that of ``torch.utils.data.DataLoader``'s iterators.
    With on_error="drop" batches of which nothing is left are missing from that.
    """

    def __init__(self, batches: Generator[Any, None, None], length: Callable[[], int]) -> None:
        self._batches = batches
        self._length = length

    def __next__(self) -> Any:
        return next(self._batches)

    def __len__(self) -> int:
        return self._length()

    def close(self) -> None:
        """End the epoch here, and give back what it holds; dropping the iterator does the same."""
        self._batches.close()


def beginning(epoch: int) -> dict[str, Any]:
    """Return where an epoch begins: positions consumed, over all ranks, and those of this rank with bad samples."""
    return {"epoch": epoch, "consumed": 0, "step": 0, "sampler": None, "bad": 0}
