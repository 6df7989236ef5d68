"""DataLoader: the rooms of the pipeline in a line."""

import os
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastfeed.data.arguments import check_whole, choose_device
from fastfeed.data.finish import Finish, SampleParameters
from fastfeed.data.graph import Graph
from fastfeed.data.mix import Mix, MixedTarget, draw_mix, mix_target
from fastfeed.data.order import batches, epoch_order
from fastfeed.data.plan import make_plan
from fastfeed.data.ring import Done, Rings, Work
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
        mix: mixup, cutmix or both, after everything else; the target becomes a `fastfeed.MixedTarget`.
        stable_addresses: put every batch's tensors at the addresses of the first batch's, for steps captured in a CUDA
            graph. A batch is then overwritten by the next one, and all must have one size: see `drop_last`.
        seed: 64 bits; decides the order and every random choice.

    Yields:
        (images, target): images [N, 3, size, size] of `dtype`, (pixel / 255 - mean) / std; target [N] int64, or a
        MixedTarget. Both on `device`.

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
        mix: Mix | None = None,
        stable_addresses: bool = False,
        seed: int = 0,
    ) -> None:
        check_whole("batch_size", batch_size, 1)
        check_whole("num_workers", num_workers, 0)
        check_whole("prefetch_factor", prefetch_factor, 1)
        check_whole("seed", seed, 0)
        if seed >= 2**64:
            raise ValueError(f"seed is {seed}; expected at most 2**64 - 1")
        if transform is not None and not isinstance(transform, Transform):
            raise TypeError(
                f"transform is {type(transform).__name__}; expected a Transform, as fastfeed.transforms.train(224)"
            )
        if mix is not None and not isinstance(mix, Mix):
            raise TypeError(f"mix is {type(mix).__name__}; expected a fastfeed.Mix, as fastfeed.Mix(mixup=0.2)")
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
        self.mix = mix
        self.seed = seed
        self.epoch = 0
        # On a GPU the pass is queued on the consumer's stream as soon as DALI's work is: nothing is gained by waiting.
        ahead = 0 if self.device.type == "cuda" else 1
        self._finish = Finish(
            self.transform.mean,
            self.transform.std,
            dtype,
            memory_format,
            threads=self.num_workers,
            spare_outputs=ahead + 2,
        )
        self._rings = Rings(self._finish, self.device, ahead, stable_addresses)
        self._idle_graph: Graph | None = self._new_graph()  # now, so that what is missing shows here
        self._pid = os.getpid()

    def __len__(self) -> int:
        """Batches per epoch."""
        whole, rest = divmod(len(self.source), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[Any]:
        epoch = self.epoch
        self.epoch += 1
        return self._run(epoch)

    def _run(self, epoch: int) -> Iterator[Any]:
        # `map`, which keeps no reference to what it gives: the batch is the consumer's.
        yield from map(self._give, self._rings.run(self._decoded(epoch)))

    def _give(self, done: Done) -> tuple[torch.Tensor, torch.Tensor | MixedTarget]:
        return done.images, done.rest[0] if self.mix is None else MixedTarget(*done.rest)

    def _decoded(self, epoch: int) -> Iterator[Work]:
        order = epoch_order(len(self.source), shuffle=self.shuffle, seed=self.seed, epoch=epoch)
        todo = enumerate(batches(order, self.batch_size, drop_last=self.drop_last))
        # An iterator owns a graph while it runs: two over one loader do not mix their batches.
        graph = self._take_graph()
        pending: deque[tuple[SampleParameters, list[torch.Tensor]] | Exception] = deque()

        def submit_next() -> None:
            position, indices = next(todo, (0, None))
            if indices is None:
                return
            try:
                pending.append(self._submit(graph, indices, epoch, position))
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
                images = graph.result()
                submit_next()
                yield Work(images, *entry)
        except GeneratorExit:  # the consumer left early, which is no fault of the graph's
            self._idle_graph = graph
            raise
        self._idle_graph = graph

    def _submit(
        self, graph: Graph, indices: npt.NDArray[np.int64], epoch: int, position: int
    ) -> tuple[SampleParameters, list[torch.Tensor]]:
        batch = self.source.read(indices, self.num_workers)
        plan = make_plan(self.transform, batch.sizes, indices, seed=self.seed, epoch=epoch)
        graph.submit(batch, plan)
        n, size, target = len(indices), self.transform.crop.size, torch.from_numpy(batch.targets)
        if self.mix is None:
            return SampleParameters(n, flip=plan.flip), [target]
        mix = draw_mix(self.mix, n, size, size, seed=self.seed, epoch=epoch, batch=position)
        parameters = SampleParameters(n, flip=plan.flip, partner=mix.partner, weight=mix.weight, cut=mix.box)
        return parameters, list(mix_target(target, mix))

    def _new_graph(self) -> Graph:
        size = self.transform.crop.size
        largest = max(1, min(self.batch_size, len(self.source)))
        return Graph(size, largest, self.device, self.num_workers, self.prefetch_factor)

    def __getstate__(self) -> dict[str, Any]:
        # Threads and GPU memory, which no copy can share.
        return {**self.__dict__, "_idle_graph": None}

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
