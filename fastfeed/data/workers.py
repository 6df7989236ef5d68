"""Workers: batches of any PyTorch dataset, made by its own code in PyTorch's worker processes."""

import copy
from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, IterDataPipe, default_collate

from fastfeed.data.epoch import Epochs, Given, SampleInfo
from fastfeed.data.errors import BadSample
from fastfeed.data.finish import Finish
from fastfeed.data.order import BatchPicks
from fastfeed.data.reading import LeftBatch, Scaling, Split, collate_left, split_tail
from fastfeed.data.ring import Done, Rings, Work
from fastfeed.data.tree import leaves, replace_leaves

_END = object()
# What PyTorch's loader lets one set later.
WORKER_OPTIONS = (
    "num_workers",
    "collate_fn",
    "pin_memory",
    "timeout",
    "worker_init_fn",
    "multiprocessing_context",
    "generator",
    "prefetch_factor",
    "pin_memory_device",
)
# What may be given, and set, to no effect where there are no such workers.
UNUSED_BY_DALI = frozenset(
    ("pin_memory", "timeout", "worker_init_fn", "multiprocessing_context", "pin_memory_device", "in_order")
)

_AHEAD_ON_GPU = 2  # batches that are copied while the consumer works on one


class Workers:
    """What a `DataLoader` does with a dataset that is no set of files: PyTorch's loader, and its batches moved ahead.

    The order is that of the files' path, so shares of ranks and states are too; the workers are given indices. On a GPU
    batches are copied on a side stream while the consumer works on others. Where the tail of a transform can be left to
    the last pass (`split_tail`), the workers get a copy of the dataset without it, whose attributes become those of the
    dataset at the beginning of every epoch. Nothing else is done to batches.

    The arguments are those of `DataLoader`, checked; `batched` is whether batches are given, or samples as they are,
    and `batch_size` and `drop_last` are for an iterable dataset, `shuffle` for an ``IterDataPipe``.
    """

    errors: tuple[BadSample, ...] = ()  # the dataset's exceptions are raised
    mixing = False

    def __init__(
        self,
        dataset: Any,
        *,
        batched: bool,
        batch_size: int,
        shuffle: bool | None,
        drop_last: bool,
        num_workers: int,
        collate_fn: Callable[[list[Any]], Any] | None,
        device: torch.device,
        stable_addresses: bool,
        info: bool,
        **options: Any,
    ) -> None:
        self._dataset = dataset
        self._info = info
        self._iterable = isinstance(dataset, IterableDataset)
        self._collate_fn = collate_fn
        self._batched = batched
        split = self._split()
        self._copy = None if split is None else split.dataset
        self._steps = _Steps(batched)
        if self._iterable:
            how: dict[str, Any] = {"batch_size": batch_size if batched else None, "drop_last": drop_last}
            if isinstance(dataset, IterDataPipe):
                how["shuffle"] = shuffle
        elif batched:
            how = {"batch_sampler": self._steps}
        else:
            how = {"batch_size": None, "sampler": self._steps}
        self._loader: torch.utils.data.DataLoader[Any] = torch.utils.data.DataLoader(
            dataset if split is None else split.dataset,
            **how,
            num_workers=num_workers,
            collate_fn=collate_fn if split is None else collate_left,
            **options,
        )
        depth = _AHEAD_ON_GPU if device.type == "cuda" else 0
        # Its threads fill pinned memory; there are no images for it.
        self._finish = Finish((0.0,), (1.0,), threads=1)
        self._rings = Rings(self._finish, device, depth, stable_addresses)
        self._stable = stable_addresses
        # For the last pass of bytes, which on a GPU needs no threads.
        self._threads = torch.get_num_threads() if device.type == "cpu" else 1
        self._passes: dict[tuple[Scaling, int], Finish] = {}

    def set_option(self, name: str, value: Any) -> None:
        """Change one of `WORKER_OPTIONS`, for the next epoch."""
        if name == "collate_fn":
            self._collate_fn = value
            if self._copy is not None and value is default_collate:
                value = collate_left
        setattr(self._loader, name, value)

    def _split(self) -> Split | None:
        return split_tail(self._dataset, self._collate_fn) if self._batched else None

    def _follow_dataset(self) -> None:
        """Let the workers' copy of the dataset be what the dataset is now."""
        if self._copy is not None:
            split = self._split()
            newest = copy.copy(self._dataset) if split is None else split.dataset
            self._copy.__dict__ = newest.__dict__

    @property
    def _stateful(self) -> bool:
        # Only without workers is the dataset that is iterated over this one, and not a copy.
        return self._iterable and self._loader.num_workers == 0 and hasattr(self._dataset, "state_dict")

    def batches_left(self, start: dict[str, Any], epochs: Epochs) -> int:
        """Return how many batches `run` gives.

        Raises:
            TypeError: if the dataset or the sampler has no length.
        """
        if not self._iterable:
            return epochs.batches_left(start)
        return max(len(self._loader) - start["step"], 0)

    def run(self, start: dict[str, Any], epochs: Epochs) -> Generator[Given, None, None]:
        """Give an epoch's batches from a place on."""
        works = self._streamed(start) if self._iterable else self._picked(start, epochs)
        # `map`, which keeps no reference to what it gives: the batch is the consumer's.
        yield from map(self._given, self._rings.run(works))

    def close(self) -> None:
        """Give back threads and memory, and persistent workers; the next epoch takes new ones."""
        self._loader._iterator = None
        self._rings.close()
        for finish in (self._finish, *self._passes.values()):
            finish.close()

    def _picked(self, start: dict[str, Any], epochs: Epochs) -> Iterator[Work]:
        """Give the batches of a map-style dataset."""
        drawn = self._steps.begin(epochs.steps(start))
        self._follow_dataset()
        batches = iter(self._loader)

        def next_work() -> Work | None:
            self._check_newest(drawn)
            asked = drawn.asked
            result = _next_result(batches)
            if result is _END:
                drawn.raise_error()
                return None
            if isinstance(result, _Failed) and drawn.asked == asked:
                return self._work(result, None, {})  # not of a batch: the workers took too long, say
            picks = drawn.picks.popleft()  # batches come in the order in which they were drawn
            return self._work(result, picks, {**picks.progress(start["epoch"]), "bad": 0})

        return iter(next_work, None)  # which keeps no reference to what it gives, as a loop would

    def _streamed(self, start: dict[str, Any]) -> Iterator[Work]:
        """Give the batches of an iterable dataset."""
        step = start["step"]
        skipped = step
        if self._stateful and start["sampler"] is not None:
            self._dataset.load_state_dict(start["sampler"])
            skipped = 0
        this = self._steps.begin(iter(()))
        batches = iter(self._loader)
        for _ in range(skipped):  # what the dataset gives cannot be had without being made
            if _next_result(batches) is _END:
                break

        def next_work() -> Work | None:
            nonlocal step
            self._check_newest(this)
            result = _next_result(batches)
            if result is _END:
                return None
            step += 1
            state = copy.deepcopy(self._dataset.state_dict()) if self._stateful else None
            progress = {"epoch": start["epoch"], "consumed": step, "step": step, "sampler": state, "bad": 0}
            return self._work(result, None, progress)

        return iter(next_work, None)

    def _check_newest(self, drawn: "_Drawn") -> None:
        if self._loader.persistent_workers and self._steps.newest is not drawn:
            raise RuntimeError(
                "persistent workers make the batches of one iterator at a time, and one was begun after this one. "
                "Take several DataLoaders, or persistent_workers=False, to iterate twice at once"
            )

    def _work(self, batch: Any, picks: BatchPicks | None, progress: dict[str, Any]) -> Work:
        if isinstance(batch, _Failed):
            return Work(None, None, [], (batch, [], progress))
        images = finish = None
        if isinstance(batch, LeftBatch):
            images, finish = batch.images, self._last_pass(batch.scaling, batch.images.shape[3])
            batch = [None, *batch.rest]
        elif self._stable and self._copy is not None and _is_image_batch(batch[0]):
            # Floats, where other batches may be bytes: they go to the same address, by a pass that changes nothing.
            images, finish = batch[0], self._last_pass(Scaling(), batch[0].shape[1])
            batch = [None, *batch[1:]]
        if self._info and picks is not None:
            batch = _with_info(batch, picks)
        tensors = [leaf for _, leaf in leaves(batch) if isinstance(leaf, torch.Tensor)]
        return Work(images, None, tensors, (batch, tensors, progress), finish)

    def _last_pass(self, scaling: Scaling, channels: int) -> Finish:
        finish = self._passes.get((scaling, channels))
        if finish is None:
            mean, std = (value * (channels // len(value)) for value in (scaling.mean, scaling.std))
            finish = Finish(
                mean,
                std,
                memory_format=torch.contiguous_format,
                factor=scaling.factor,
                threads=self._threads,
            )
            self._passes[scaling, channels] = finish
        return finish

    def _given(self, done: Done) -> Given:
        batch, tensors, progress = done.tag
        if isinstance(batch, _Failed):
            return Given(None, progress, batch.take())
        if not all(new is old for new, old in zip(done.rest, tensors, strict=True)):  # else as it is: of whatever type
            moved = iter(done.rest)
            batch = replace_leaves(batch, lambda _, leaf: next(moved) if isinstance(leaf, torch.Tensor) else leaf)
        if done.images is not None:
            batch = type(batch)((done.images, *batch[1:]))  # a list, or, with info, a tuple
        return Given(batch, progress)

    def __getstate__(self) -> dict[str, Any]:
        # Persistent workers, which no copy can share.
        loader = copy.copy(self._loader)
        loader._iterator = None
        return {**self.__dict__, "_loader": loader}


class _Steps:
    """The sampler that PyTorch's loader draws from: the steps of the epoch that was begun last."""

    def __init__(self, batched: bool) -> None:
        self._batched = batched
        self.newest = _Drawn(iter(()), batched)

    def begin(self, steps: Iterator[BatchPicks]) -> "_Drawn":
        """Set what the next `iter()` gives, and return it."""
        self.newest = _Drawn(steps, self._batched)
        return self.newest

    def __iter__(self) -> "_Drawn":
        return self.newest

    def __getstate__(self) -> dict[str, Any]:
        # An epoch that runs is not copied.
        return {"_batched": self._batched, "newest": _Drawn(iter(()), self._batched)}


class _Drawn(Iterator[Any]):
    """The steps of an epoch, noted as PyTorch's loader draws them: ahead of the batches, if it has workers.

    Attributes:
        picks: of the batches that are still to come.
        asked: how often it was asked for a step: by PyTorch's loader whenever a batch is done, whatever came of it.
    """

    def __init__(self, steps: Iterator[BatchPicks], batched: bool) -> None:
        self.picks: deque[BatchPicks] = deque()
        self.asked = 0
        self._steps = steps
        self._batched = batched
        self._error: Exception | None = None

    def __next__(self) -> Any:
        self.asked += 1
        try:
            picks = next(self._steps)
        except StopIteration:
            raise
        except Exception as error:  # of the sampler: its turn comes after the batches that were drawn before it
            self._error = error
            raise StopIteration from None
        self.picks.append(picks)
        indices = picks.index.tolist()
        return indices if self._batched else indices[0]

    def raise_error(self) -> None:
        """Raise what the sampler raised, if it did."""
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
        finally:
            del error  # it holds this frame by its traceback: do not close the circle


class _Failed:
    """What came instead of a batch."""

    def __init__(self, error: Exception) -> None:
        self._error: Exception | None = error

    def take(self) -> Exception | None:
        """Return the error, and forget it: by its traceback it holds frames that hold this."""
        error, self._error = self._error, None
        return error


def _next_result(batches: Iterator[Any]) -> Any:
    """Return the next batch, or how it failed, after which PyTorch's loader goes on; `_END` at the end."""
    try:
        return next(batches, _END)
    except Exception as error:
        return _Failed(error)


def _is_image_batch(value: Any) -> bool:
    is_floats = isinstance(value, torch.Tensor) and value.dtype == torch.float32 and value.dim() == 4
    return is_floats and value.shape[1] in (1, 3, 4)


def _with_info(batch: Any, picks: BatchPicks) -> Any:
    try:
        index = torch.from_numpy(picks.index.astype(np.int64))
    except (TypeError, ValueError):
        raise TypeError(
            f"the sampler gave {picks.index[0]!r}, and info=True needs indices that are whole numbers"
        ) from None
    info = SampleInfo(index, torch.from_numpy(picks.valid), [f"sample {i}" for i in index.tolist()])
    return (*batch, info) if isinstance(batch, list | tuple) else (batch, info)
