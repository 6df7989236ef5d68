"""DataLoader: the rooms of the pipeline in a line."""

import inspect
import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from fastfeed.data.arguments import check_whole, choose_device, choose_threads
from fastfeed.data.background import ahead
from fastfeed.data.declarations import flag
from fastfeed.data.epoch import EpochIterator, Epochs, SampleInfo, beginning
from fastfeed.data.errors import BadSample, Report, SampleError
from fastfeed.data.finish import Finish, SampleParameters
from fastfeed.data.graph import Graph, Images
from fastfeed.data.mix import Mix, draw_mix, mix_target
from fastfeed.data.order import rank_and_world_size
from fastfeed.data.prepare import Prepared, Preparer
from fastfeed.data.ring import Done, Rings, Work
from fastfeed.data.samplers import Sampler, Sequential, Shuffled, TorchSampler
from fastfeed.data.schedule import BatchSizeSchedule, SizeSchedule
from fastfeed.data.sources import FolderSource, Source
from fastfeed.data.sources.targets import select
from fastfeed.data.transforms import RandomErasing, Transform, train
from fastfeed.data.tree import leaves, replace_leaves

MAX_PIXELS = 178_956_970  # as Pillow, which takes larger images for decompression bombs


class DataLoader:
    """Batches of images from files: DALI decodes and crops, one pass flips, normalises, mixes and casts.

    Every batch is a function of (dataset, seed, epoch, position): the same pixels for any number of threads, ranks, and
    any depth of prefetching, before and after a resume, and for each sample at any batch size.

    Args:
        dataset: a folder of class folders (see `FolderSource`), or a source: `FolderSource`, `ListSource`, `TarSource`.
        batch_size: samples per batch, of this rank; or a function of the epoch and the step, the same on every rank, as
            ``lambda epoch, step: 64 if epoch < 10 else 32``.
        shuffle: a new order in every epoch; False, or None, keeps the order of the source.
        sampler: which samples come, and when: one of `fastfeed.data.samplers` (weighted, class-balanced, repeated
            augmentation), which is dealt to the ranks, or any of PyTorch's, which is iterated over on each rank.
        batch_sampler: likewise one of PyTorch's, of whole batches; instead of batch_size, shuffle, sampler, drop_last.
        num_workers: CPU threads that read, decode and finish; 0 is one per core. No processes are started.
        drop_last: leave out a last batch that is not full.
        prefetch_factor: batches decoded ahead, at least 1.
        transform: what happens to an image; `fastfeed.transforms.train(224)` by default.
        size: the output's size by epoch and step instead of the transform's: a function, such as
            `fastfeed.data.schedule.ProgressiveSize` or `MultiScale`.
        device: where the batches go, and where DALI decodes. By default the current GPU, if there is one that
            PyTorch and the extension can use, else the CPU.
        dtype: torch.float32, torch.float16 or torch.bfloat16.
        memory_format: torch.channels_last, or torch.contiguous_format.
        mix: mixup, cutmix or both, after everything else. Class indices become a `fastfeed.MixedTarget`, and targets
            of floating-point rows, [N, ...] (several labels at once, say), are mixed as they are; there must be no
            other targets.
        stable_addresses: put every batch's tensors at the addresses of the first batch's, for steps captured in a CUDA
            graph. A batch is then overwritten by the next one, and all must have one size: see `drop_last`.
        seed: 64 bits; decides the order and every random choice.
        on_error: what a bad sample does (a file that is missing, empty, truncated, of another format, or too large):
            "raise" a `SampleError` when its batch's turn comes; "replace" it by another one of its batch (or, if all
            are bad, by grey pixels), marked in `SampleInfo.valid`; or "drop" it, so that its batch is smaller. A batch
            of which nothing is left is not given, so with several ranks, whose steps must be equal, take "replace".
        max_errors: with "replace" and "drop", how many bad samples an epoch may have before a `SampleError` after all:
            a count (int), a share of the epoch (float), or None for any number. A sample counts as often as it comes.
            Every rank counts its own, and an epoch that is resumed goes on from the count in the state.
        max_pixels: a larger image is bad: its file may be a decompression bomb.
        info: give a `SampleInfo` with each batch.
        exif: rotate images by their EXIF orientation. Pillow, and so torchvision, does not.
        rank: of this process; by default torch.distributed's, where it is initialised, else 0.
        world_size: likewise; else 1. Ranks take equally many steps: see `fastfeed.data.order.Batches`.

    Yields:
        (images, target): images [N, 3, H, W] of `dtype`, (pixel / 255 - mean) / std; target [N] int64, a MixedTarget,
        or what the source has. All on `device`. With `info`, (images, target, info).

    Attributes:
        source: where the samples come from; `source.classes` names the targets.
        epoch: the epoch that the next `iter()` runs; each `iter()` adds one. Set it to repeat or skip one.

    Raises:
        FileNotFoundError, NotADirectoryError: for a folder that is not there or holds no classes or images.
        TypeError: for a dataset, or another argument, of another kind.
        ValueError: for an argument out of range.
        RuntimeError: for a GPU that is not there, or an extension built without CUDA asked to use one.
        ImportError: if DALI is not installed.

    While iterating: `SampleError` for bad samples as above, after every batch before theirs was given.

    What the arguments set stays as it is: to set such an attribute later raises ValueError.
    """

    _made = False

    def __init__(
        self,
        dataset: str | os.PathLike[str] | Source,
        batch_size: int | BatchSizeSchedule = 1,
        shuffle: bool | None = False,
        sampler: Any = None,
        batch_sampler: Iterable[Any] | None = None,
        *,
        num_workers: int = 0,
        drop_last: bool = False,
        prefetch_factor: int = 2,
        transform: Transform | None = None,
        size: SizeSchedule | None = None,
        device: str | int | torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        memory_format: torch.memory_format = torch.channels_last,
        mix: Mix | None = None,
        stable_addresses: bool = False,
        seed: int = 0,
        on_error: str = "raise",
        max_errors: float | None = None,
        max_pixels: int = MAX_PIXELS,
        info: bool = False,
        exif: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        self.batch_size = batch_size if callable(batch_size) else check_whole("batch_size", batch_size, 1)
        self.shuffle = False if shuffle is None else flag("shuffle", shuffle)
        self.drop_last = flag("drop_last", drop_last)
        self.num_workers = choose_threads("num_workers", num_workers)
        self.prefetch_factor = check_whole("prefetch_factor", prefetch_factor, 1)
        self.seed = check_whole("seed", seed, 0, 2**64 - 1)
        self._info = flag("info", info)
        self._exif = flag("exif", exif)
        max_pixels = check_whole("max_pixels", max_pixels, 1)
        if transform is not None and not isinstance(transform, Transform):
            raise TypeError(
                f"transform is {type(transform).__name__}; expected a Transform, as fastfeed.transforms.train(224)"
            )
        if mix is not None and not isinstance(mix, Mix):
            raise TypeError(f"mix is {type(mix).__name__}; expected a fastfeed.Mix, as fastfeed.Mix(mixup=0.2)")
        if size is not None and not callable(size):
            raise TypeError(
                f"size is {size!r}; expected a function of the epoch and the step: one size belongs to the transform, "
                "as fastfeed.transforms.train(224)"
            )
        if isinstance(dataset, str | os.PathLike):
            dataset = FolderSource(dataset)
        if not isinstance(dataset, Source):
            raise TypeError(
                f"dataset is {type(dataset).__name__}; expected the path of a folder of class folders, or a "
                "FolderSource, ListSource or TarSource"
            )
        if len(dataset) >= 2**32:
            raise ValueError(f"dataset has {len(dataset)} samples; expected fewer than 2**32")
        self.source = dataset
        self.transform = transform if transform is not None else train()
        self.device = choose_device(device)
        self.mix = mix
        self._epoch = 0
        self.rank, self.world_size = rank_and_world_size(rank, world_size)
        if flag("stable_addresses", stable_addresses) and on_error == "drop":
            raise ValueError(
                "stable_addresses needs batches of one size: take on_error='replace' or 'raise', not 'drop'"
            )
        self.sampler = self._make_sampler(sampler, batch_sampler)
        self._epochs = Epochs(
            dataset, self.sampler, self.batch_size, self.seed, self.rank, self.world_size, drop_last=self.drop_last
        )
        # What must be the same for a state to go on where it was.
        order = self.sampler.identity(len(dataset), dataset.labels)
        self._identity = {"seed": self.seed, "samples": len(dataset), "order": order}
        self._report = Report(on_error, max_errors)
        self._preparer = Preparer(
            dataset,
            self.transform,
            seed=self.seed,
            size=size,
            max_pixels=max_pixels,
            exif=self._exif,
            threads=self.num_workers,
        )
        # On a GPU the pass is queued on the consumer's stream as soon as DALI's work is: nothing is gained by waiting.
        self._lag = 0 if self.device.type == "cuda" else 1
        erase = self.transform.erase
        noise = isinstance(erase, RandomErasing) and erase.value == "random"
        self._finish = Finish(
            self.transform.mean,
            self.transform.std,
            dtype,
            memory_format,
            fill=erase.value if isinstance(erase, RandomErasing) and not isinstance(erase.value, str) else 0.0,
            threads=self.num_workers,
            spare_outputs=self._lag + 2,
        )
        self._noise = noise
        self._rings = Rings(self._finish, self.device, self._lag, stable_addresses)
        self._idle_graph: Graph | None = self._new_graph(beginning(0))  # now, so that what is missing shows here
        self._closed = False  # and not used since
        self._pid = os.getpid()
        # The last batch that was given; None between epochs, where `_resume` is where the next `iter()` begins.
        self._progress: dict[str, Any] | None = None
        self._resume: dict[str, Any] | None = None
        self._newest: object = None  # the iterator that the state is of
        self._made = True

    def __setattr__(self, name: str, value: object) -> None:
        # Threads, DALI's graph and the last pass are made from the arguments: to set one later would do nothing, or
        # half of what is meant.
        if self._made and name in _ARGUMENTS:
            raise ValueError(
                f"{name} cannot be set once the DataLoader is made: make another one, which goes on from this one's "
                "state_dict() with load_state_dict(). Image sizes can change by `size`, a schedule; the epoch by "
                "set_epoch()"
            )
        super().__setattr__(name, value)

    @property
    def errors(self) -> list[BadSample]:
        """The bad samples that were met so far, each once, with its newest reason."""
        return self._report.samples

    def __len__(self) -> int:
        """Batches of the epoch that the next `iter()` runs, on every rank the same."""
        return self._epochs.batches_left(beginning(self._epoch))

    @property
    def epoch(self) -> int:
        """The epoch that the next `iter()` runs."""
        return self._epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self.set_epoch(epoch)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that the next `iter()` runs, from its beginning."""
        epoch = check_whole("epoch", epoch, 0)
        self._epoch, self._resume, self._progress, self._newest = epoch, None, None, None

    def state_dict(self) -> dict[str, Any]:
        """Return where the iterator is that was begun last, after the batch that it gave last: a few numbers, and a
        text for the order that the samples come in.

        It may be loaded by a loader with another batch size or number of ranks: what is left of the epoch is cut anew.
        """
        progress = self._progress or self._resume or beginning(self._epoch)
        return {**progress, **self._identity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue, with the next `iter()`, from a state.

        Raises:
            KeyError, TypeError: for a state of something else.
            ValueError: for the state of a loader with another seed or order, or of a dataset of another size; for a
                place that is no whole number.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"the state is {type(state).__name__}; expected what DataLoader.state_dict() returned")
        missing = self.state_dict().keys() - state.keys()
        if missing:
            raise KeyError(
                f"the state has no {', '.join(sorted(missing))}, only {', '.join(map(str, state)) or 'nothing'}: "
                "expected what DataLoader.state_dict() returned"
            )
        for name, own in self._identity.items():
            if state[name] != own:
                raise ValueError(
                    f"the state is of a loader with {name} = {state[name]}, and this one has {own}: its batches would "
                    "not be those that are left. Load it into one with the same dataset, seed and sampler"
                )
        numbers = {
            name: check_whole(f"the state's {name}", state[name], 0) for name in beginning(0) if name != "sampler"
        }
        self._resume = {**numbers, "sampler": state["sampler"]}
        self._epoch, self._progress, self._newest = numbers["epoch"], None, None

    def __iter__(self) -> EpochIterator:
        start = self._resume or beginning(self._epoch)
        self._epoch, self._resume, self._progress = start["epoch"] + 1, None, start
        self._newest, self._closed = object(), False
        return EpochIterator(self._run(start, self._newest), partial(self._epochs.batches_left, start))

    def __enter__(self) -> "DataLoader":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Give back threads and memory; what an iterator uses that is running, when it ends.

        The loader can be used again.
        """
        self._closed = True
        self._idle_graph = None
        self._rings.close()
        self._preparer.close()
        self._finish.close()
        self.source.close()

    def _make_sampler(self, sampler: Any, batch_sampler: Any) -> Sampler | TorchSampler:
        if batch_sampler is not None:
            if self.batch_size != 1 or self.shuffle or sampler is not None or self.drop_last:
                raise ValueError("batch_sampler goes with no batch_size, shuffle, sampler or drop_last: it decides all")
            return TorchSampler(batch_sampler, batched=True, world_size=self.world_size)
        if sampler is None:
            return Shuffled() if self.shuffle else Sequential()
        if self.shuffle:
            raise ValueError("sampler goes with shuffle=False: it decides the order")
        return sampler if isinstance(sampler, Sampler) else TorchSampler(sampler, world_size=self.world_size)

    def _run(self, start: dict[str, Any], this: object) -> Generator[Any, None, None]:
        batches = self._rings.run(self._decoded(start))
        try:
            # `map`, which keeps no reference to what it gives: the batch is the consumer's.
            yield from map(partial(self._give, this), batches)
        finally:
            batches.close()
            if self._closed:  # while this ran, which has left its threads and memory to the next epoch
                self.close()
        if this is self._newest:
            self._progress = None

    def _give(self, this: object, done: Done) -> Any:
        targets, info, progress = done.tag
        if this is self._newest:
            self._progress = progress
        rest = iter(done.rest)
        targets = replace_leaves(targets, lambda _, leaf: next(rest) if isinstance(leaf, torch.Tensor) else leaf)
        if not self._info:
            return done.images, targets
        return done.images, targets, replace(info, valid=next(rest))

    def _decoded(self, start: dict[str, Any]) -> Iterator[Work]:
        # An iterator owns a graph while it runs: two over one loader do not mix their batches.
        graph, epoch, count = self._take_graph(start), start["epoch"], start["bad"]
        prepared = ahead((self._preparer.prepare(epoch, picks) for picks in self._epochs.steps(start)), depth=1)
        pending: deque[Prepared] = deque()
        begun: deque[tuple[Prepared, Images]] = deque()
        lag = 0
        error: Exception | None = None

        def submit_next() -> None:
            nonlocal error
            try:
                batch = None if error is not None else next(prepared, None)
            except Exception as raised:
                error = raised  # its turn comes after the batches before it
                return
            if batch is not None:
                pending.append(batch)
                graph.submit(batch.entry)

        try:
            for _ in range(graph.depth):
                submit_next()
            while pending or begun:
                if pending:
                    begun.append((pending.popleft(), graph.result()))
                    self._preparer.remember(begun[-1][0])
                    submit_next()
                if len(begun) > lag or not pending:
                    lag = self._lag  # but the first batch at once: somebody waits for it
                    count += len(begun[0][0].all_bad)
                    work = self._work(*begun.popleft(), epoch, count)
                    if work is not None:
                        yield work
            if error is not None:
                raise error
            self._idle_graph = graph
        except (GeneratorExit, SampleError):
            self._idle_graph = graph
            raise  # anything else, an interrupt say, may have come in the middle of a call of the graph: not kept
        finally:
            prepared.close()
            begun.clear()
            del error  # it holds this frame by its traceback: do not close the circle

    def _work(self, batch: Prepared, images: Images, epoch: int, count: int) -> Work | None:
        """Return what the last pass is to do, or None for a batch of which nothing is left.

        `count` is how many positions of the epoch had a bad sample so far, with those of this batch.
        """
        pixels = images.wait()
        picks, plan, targets, names = batch.picks, batch.entry.plan, batch.targets, batch.names
        index, valid = torch.from_numpy(picks.index), torch.from_numpy(picks.valid)
        bad = batch.all_bad
        if bad:
            reasons = {int(index[i]): (names[i], reason) for i, reason in bad.items()}
            self._report.add(reasons, epoch, count, self._epochs.size())
            taken = self._report.select(len(index), bad)
            if not taken:
                return None
            pixels, plan = _rows(pixels, taken), plan.at(np.array(taken))
            targets = select(targets, taken)
            valid = valid.clone()
            valid[list(bad)] = False
            if self._report.mode == "drop":
                index, valid, names = index[taken], valid[taken], [names[i] for i in taken]
        n, height, width, _ = pixels.shape
        mixing: dict[str, Any] = {}
        if self.mix is not None:
            position = int(picks.position[0])
            mix = draw_mix(self.mix, n, height, width, seed=self.seed, epoch=epoch, batch=position)
            mixing = {"partner": mix.partner, "weight": mix.weight, "cut": mix.box}
            targets = mix_target(targets, mix)
        noise = plan.noise_key if self._noise else None
        parameters = SampleParameters(
            n,
            flip=(plan.flip & 1) > 0,
            vertical_flip=(plan.flip & 2) > 0,
            erase=plan.erase,
            noise_key=noise,
            **mixing,
        )
        rest = [leaf for _, leaf in leaves(targets) if isinstance(leaf, torch.Tensor)]
        if self._info:
            rest.append(valid)
        progress = {
            "epoch": epoch,
            "consumed": picks.consumed,
            "step": picks.step + 1,
            "sampler": picks.sampler_state,
            "bad": count,
        }
        return Work(pixels, parameters, rest, (targets, SampleInfo(index, valid, names), progress))

    def _new_graph(self, start: dict[str, Any]) -> Graph:
        try:
            depth = max(1, min(self.prefetch_factor, self._epochs.batches_left(start)))
        except TypeError:  # of a sampler without a length
            depth = self.prefetch_factor
        largest = self._epochs.largest_batch(start)
        return Graph(self.transform, largest, self.device, self.num_workers, depth, exif=self._exif)

    def __getstate__(self) -> dict[str, Any]:
        # Threads and GPU memory, which no copy can share.
        return {**self.__dict__, "_idle_graph": None}

    def _take_graph(self, start: dict[str, Any]) -> Graph:
        graph, self._idle_graph = self._idle_graph, None
        if graph is not None and self._pid != os.getpid():  # a fork copies DALI without its threads
            graph, self._pid = None, os.getpid()
        if graph is None or graph.max_batch_size < self._epochs.largest_batch(start):
            return self._new_graph(start)
        graph.drain()  # of what an epoch that was left early did not take
        return graph


def _rows(pixels: torch.Tensor, taken: list[int]) -> torch.Tensor:
    # NumPy on the CPU: PyTorch's threads do not outlive a fork, and a child would wait for them for ever.
    if pixels.is_cuda:
        return pixels[torch.tensor(taken, device=pixels.device)]
    return torch.from_numpy(pixels.numpy()[taken])


_ARGUMENTS = frozenset(inspect.signature(DataLoader).parameters) | {"source"}
