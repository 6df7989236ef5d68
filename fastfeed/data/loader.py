"""DataLoader: the rooms of the pipeline in a line."""

import os
import warnings
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastfeed.data.finish import Finish, SampleParameters, require_cuda
from fastfeed.data.graph import Graph
from fastfeed.data.order import batches, epoch_order
from fastfeed.data.plan import Plan, make_plan
from fastfeed.data.sources import FolderSource
from fastfeed.data.transforms import Transform, train

_lost_in_fork: list[Graph] = []


class DataLoader:
    """Batches of images from files: DALI decodes, crops and resizes, one pass flips, normalises and casts.

    Every batch is a function of (dataset, seed, epoch, position): the same pixels for any number of threads and
    any depth of prefetching, and for each sample at any batch size.

    Args:
        dataset: a folder of class folders (see `FolderSource`), or a `FolderSource`.
        batch_size: samples per batch.
        shuffle: a new order in every epoch; False keeps the order of the source.
        num_workers: CPU threads that read, decode and finish; 0 is one per core. No processes are started.
        drop_last: leave out a last batch that is not full.
        prefetch_factor: batches decoded ahead, at least 1.
        transform: what happens to an image; `fastfeed.transforms.train(224)` by default.
        device: where the batches go, and where DALI decodes. By default the current GPU, if there is one that
            PyTorch and the extension can use, else the CPU.
        dtype: torch.float32, torch.float16 or torch.bfloat16.
        memory_format: torch.channels_last, or torch.contiguous_format.
        seed: 64 bits; decides the order and every random choice.

    Yields:
        (images, target): images [N, 3, size, size] of `dtype`, (pixel / 255 - mean) / std; target [N] int64.
        Both on `device`.

    Attributes:
        source: where the samples come from; `source.classes` names the targets.
        epoch: the epoch that the next `iter()` runs; each `iter()` adds one. Set it to resume or repeat one.

    Raises:
        FileNotFoundError, NotADirectoryError: for a folder that is not there or holds no classes or images.
        TypeError: for a dataset of another kind.
        ValueError: for an argument out of range.
        RuntimeError: for a GPU that is not there, or an extension built without CUDA asked to use one.
        ImportError: if DALI is not installed.

    While iterating: OSError for a file that cannot be read, ValueError or `fastfeed.data.graph.DecodeError` for one
    that cannot be decoded, each naming the file, after every batch before it was given.
    """

    def __init__(
        self,
        dataset: str | os.PathLike[str] | FolderSource,
        batch_size: int = 1,
        shuffle: bool = False,
        *,
        num_workers: int = 0,
        drop_last: bool = False,
        prefetch_factor: int = 2,
        transform: Transform | None = None,
        device: str | int | torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        memory_format: torch.memory_format = torch.channels_last,
        seed: int = 0,
    ) -> None:
        _check_whole("batch_size", batch_size, 1)
        _check_whole("num_workers", num_workers, 0)
        _check_whole("prefetch_factor", prefetch_factor, 1)
        _check_whole("seed", seed, 0)
        if seed >= 2**64:
            raise ValueError(f"seed is {seed}; expected at most 2**64 - 1")
        if transform is not None and not isinstance(transform, Transform):
            raise TypeError(
                f"transform is {type(transform).__name__}; expected a Transform, as fastfeed.transforms.train(224)"
            )
        if isinstance(dataset, str | os.PathLike):
            dataset = FolderSource(dataset)
        if not isinstance(dataset, FolderSource):
            raise TypeError(
                f"dataset is {type(dataset).__name__}; expected the path of a folder of class folders or a FolderSource"
            )
        self.source = dataset
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.num_workers = num_workers or len(os.sched_getaffinity(0))
        self.prefetch_factor = prefetch_factor
        self.transform = transform if transform is not None else train()
        self.device = choose_device(device)
        self.seed = seed
        self.epoch = 0
        self._finish = Finish(self.transform.mean, self.transform.std, dtype, memory_format, threads=self.num_workers)
        self._idle_graph: Graph | None = self._new_graph()  # now, so that what is missing shows here
        self._pid = os.getpid()

    def __len__(self) -> int:
        """Batches per epoch."""
        whole, rest = divmod(len(self.source), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        epoch = self.epoch
        self.epoch += 1
        return self._run(epoch)

    def _run(self, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        order = epoch_order(len(self.source), shuffle=self.shuffle, seed=self.seed, epoch=epoch)
        todo = iter(batches(order, self.batch_size, drop_last=self.drop_last))
        # An iterator owns a graph while it runs: two over one loader do not mix their batches.
        graph = self._take_graph()
        pending: deque[tuple[torch.Tensor, Plan] | Exception] = deque()

        def submit_next() -> None:
            indices = next(todo, None)
            if indices is None:
                return
            try:
                pending.append(self._submit(graph, indices, epoch))
            except (OSError, ValueError) as error:
                pending.append(error)  # raised when its turn comes, after the good batches before it

        for _ in range(self.prefetch_factor):
            submit_next()
        try:
            while pending:
                entry = pending.popleft()
                if isinstance(entry, Exception):
                    self._idle_graph = graph  # it has not met the file, and can go on
                    try:
                        raise entry
                    finally:
                        del entry  # the error holds this frame by its traceback: do not close the circle
                target, plan = entry
                images = graph.result()
                submit_next()
                yield (
                    self._finish(images, SampleParameters(len(images), flip=plan.flip)),
                    target.to(self.device, non_blocking=True),
                )
        except GeneratorExit:  # the consumer left early, which is no fault of the graph's
            self._idle_graph = graph
            raise
        self._idle_graph = graph

    def _submit(self, graph: Graph, indices: npt.NDArray[np.int64], epoch: int) -> tuple[torch.Tensor, Plan]:
        batch = self.source.read(indices, self.num_workers)
        plan = make_plan(self.transform, batch.sizes, indices, seed=self.seed, epoch=epoch)
        graph.submit(batch, plan)
        return self._pin(torch.from_numpy(batch.targets)), plan

    def _pin(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.pin_memory() if self.device.type == "cuda" else tensor

    def _new_graph(self) -> Graph:
        size = self.transform.crop.size
        largest = max(1, min(self.batch_size, len(self.source)))
        return Graph(size, largest, self.device, self.num_workers, self.prefetch_factor)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_idle_graph": None}  # threads and GPU memory, which no copy can share

    def _take_graph(self) -> Graph:
        graph, self._idle_graph = self._idle_graph, None
        if graph is not None and self._pid != os.getpid():
            # A fork copies DALI without its threads; to use it, or to destroy it, would wait for them forever.
            _lost_in_fork.append(graph)
            graph, self._pid = None, os.getpid()
        if graph is not None:
            try:
                graph.drain()  # of what an epoch that was left early did not take
                return graph
            except RuntimeError:
                pass  # one of those batches could not be decoded; the graph may not go on after an error
        return self._new_graph()


def choose_device(device: str | int | torch.device | None) -> torch.device:
    """Return the device that `device` names, or the best one there is.

    Raises:
        ValueError: for a kind of device that is neither CPU nor CUDA.
        RuntimeError: for a name that is no device's, a GPU that is not there, or an extension built without CUDA.
    """
    if device is None:
        if not torch.cuda.is_available():
            return torch.device("cpu")
        try:
            require_cuda()
        except RuntimeError as error:
            warnings.warn(f"there is a GPU, but batches are made on the CPU: {error}", stacklevel=3)
            return torch.device("cpu")
        return torch.device("cuda", torch.cuda.current_device())
    try:
        # PyTorch reads a bare number as a GPU's, where there is one.
        chosen = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    except RuntimeError:
        raise RuntimeError(f"device is {device!r}, which is none; expected 'cpu', 'cuda' or 'cuda:<index>'") from None
    if chosen.type not in ("cpu", "cuda"):
        raise ValueError(f"device is {device!r}; expected 'cpu', 'cuda' or 'cuda:<index>'")
    if chosen.type == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise RuntimeError(
            f"device is {device!r}, but PyTorch sees no NVIDIA GPU (torch.cuda.is_available() is False). Use "
            "device='cpu', or run `fastfeed info` to see what is missing"
        )
    index = chosen.index if chosen.index is not None else torch.cuda.current_device()
    if index >= torch.cuda.device_count():
        raise RuntimeError(f"device is {device!r}, but there are {torch.cuda.device_count()} GPUs, numbered from 0")
    require_cuda()
    return torch.device("cuda", index)


def _check_whole(name: str, value: int, low: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ValueError(f"{name} is {value!r}; expected a whole number, {low} or more")
