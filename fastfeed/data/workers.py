"""Workers: batches of any PyTorch dataset, made by its own code in PyTorch's worker processes."""

import copy
import math
from collections import deque
from collections.abc import Callable, Generator, Iterator
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset

from fastfeed.data.epoch import Epochs, Given, SampleInfo
from fastfeed.data.errors import BadSample
from fastfeed.data.finish import Finish
from fastfeed.data.order import BatchPicks
from fastfeed.data.ring import Done, Rings, Work
from fastfeed.data.tree import leaves, replace_leaves

_AHEAD_ON_GPU = 2  # batches that are copied while the consumer works on one


class Workers:
    """What a `DataLoader` does with a dataset that is no set of files: PyTorch's loader, and its batches moved ahead.

    The order is that of the files' path, so shares of ranks and states are too; the workers are given indices. On a GPU
    batches are copied on a side stream while the consumer works on others. Nothing else is done to them.

    The arguments are those of `DataLoader`, checked; `batched` is whether batches are given, or samples as they are,
    and `batch_size` and `drop_last` are for an iterable dataset.
    """

    errors: tuple[BadSample, ...] = ()  # the dataset's exceptions are raised
    mixing = False

    def __init__(
        self,
        dataset: Any,
        *,
        batched: bool,
        batch_size: int,
        drop_last: bool,
        num_workers: int,
        collate_fn: Callable[[list[Any]], Any] | None,
        device: torch.device,
        stable_addresses: bool,
        info: bool,
        **options: Any,
    ) -> None:
        self._dataset = dataset
        self._batched = batched
        self._batch_size = batch_size
        self._drop_last = drop_last
        self._info = info
        self._iterable = isinstance(dataset, IterableDataset)
        # Only without workers is the dataset that is iterated over this one, and not a copy.
        self._stateful = self._iterable and num_workers == 0 and hasattr(dataset, "state_dict")
        self._steps = _Steps(batched)
        if self._iterable:
            how: dict[str, Any] = {"batch_size": batch_size if batched else None, "drop_last": drop_last}
        elif batched:
            how = {"batch_sampler": self._steps}
        else:
            how = {"batch_size": None, "sampler": self._steps}
        self._loader: torch.utils.data.DataLoader[Any] = torch.utils.data.DataLoader(
            dataset, **how, num_workers=num_workers, collate_fn=collate_fn, **options
        )
        depth = _AHEAD_ON_GPU if device.type == "cuda" else 0
        # Its threads fill pinned memory; there are no images for it.
        self._finish = Finish((0.0,), (1.0,), threads=1)
        self._rings = Rings(self._finish, device, depth, stable_addresses)

    def batches_left(self, start: dict[str, Any], epochs: Epochs) -> int:
        """Return how many batches `run` gives.

        Raises:
            TypeError: if the dataset or the sampler has no length.
        """
        if not self._iterable:
            return epochs.batches_left(start)
        size = len(self._dataset)
        if self._batched:
            size = size // self._batch_size if self._drop_last else math.ceil(size / self._batch_size)
        return max(size - start["step"], 0)

    def run(self, start: dict[str, Any], epochs: Epochs) -> Generator[Given, None, None]:
        """Give an epoch's batches from a place on."""
        works = self._streamed(start) if self._iterable else self._picked(start, epochs)
        # `map`, which keeps no reference to what it gives: the batch is the consumer's.
        yield from map(self._given, self._rings.run(works))

    def close(self) -> None:
        """Give back threads and memory, and persistent workers; the next epoch takes new ones."""
        self._loader._iterator = None
        self._rings.close()
        self._finish.close()

    def _picked(self, start: dict[str, Any], epochs: Epochs) -> Iterator[Work]:
        drawn = self._steps.begin(epochs.steps(start))
        for batch in iter(self._loader):
            picks = drawn.popleft()  # batches come in the order in which they were drawn
            yield self._work(batch, picks, {**picks.progress(start["epoch"]), "bad": 0})

    def _streamed(self, start: dict[str, Any]) -> Iterator[Work]:
        skipped = start["step"]
        if self._stateful and start["sampler"] is not None:
            self._dataset.load_state_dict(start["sampler"])
            skipped = 0
        batches = iter(self._loader)
        for _ in islice(batches, skipped):  # what the dataset gives cannot be had without being made
            pass
        for step, batch in enumerate(batches, start["step"] + 1):
            state = copy.deepcopy(self._dataset.state_dict()) if self._stateful else None
            progress = {"epoch": start["epoch"], "consumed": step, "step": step, "sampler": state, "bad": 0}
            yield self._work(batch, None, progress)

    def _work(self, batch: Any, picks: BatchPicks | None, progress: dict[str, Any]) -> Work:
        if self._info and picks is not None:
            batch = _with_info(batch, picks)
        tensors = [leaf for _, leaf in leaves(batch) if isinstance(leaf, torch.Tensor)]
        return Work(None, None, tensors, (batch, progress))

    def _given(self, done: Done) -> Given:
        batch, progress = done.tag
        moved = iter(done.rest)
        return Given(
            replace_leaves(batch, lambda _, leaf: next(moved) if isinstance(leaf, torch.Tensor) else leaf), progress
        )

    def __getstate__(self) -> dict[str, Any]:
        # Persistent workers, which no copy can share.
        loader = copy.copy(self._loader)
        loader._iterator = None
        return {**self.__dict__, "_loader": loader}


class _Steps:
    """The sampler that PyTorch's loader draws from: the steps of an epoch, noted as they are drawn."""

    def __init__(self, batched: bool) -> None:
        self._batched = batched
        self._begun: tuple[Iterator[BatchPicks], deque[BatchPicks]] = iter(()), deque()

    def begin(self, steps: Iterator[BatchPicks]) -> deque[BatchPicks]:
        """Set what the next `iter()` gives, and return where it is noted."""
        self._begun = steps, deque()
        return self._begun[1]

    def __iter__(self) -> Iterator[Any]:
        return map(partial(self._drawn, self._begun[1]), self._begun[0])

    def _drawn(self, noted: deque[BatchPicks], picks: BatchPicks) -> Any:
        noted.append(picks)
        indices = picks.index.tolist()
        return indices if self._batched else indices[0]

    def __getstate__(self) -> dict[str, Any]:
        return {"_batched": self._batched, "_begun": (iter(()), deque())}  # an epoch that runs is not copied


def _with_info(batch: Any, picks: BatchPicks) -> Any:
    try:
        index = torch.from_numpy(picks.index.astype(np.int64))
    except (TypeError, ValueError):
        raise TypeError(
            f"the sampler gave {picks.index[0]!r}, and info=True needs indices that are whole numbers"
        ) from None
    info = SampleInfo(index, torch.from_numpy(picks.valid), [f"sample {i}" for i in index.tolist()])
    return (*batch, info) if isinstance(batch, list | tuple) else (batch, info)
