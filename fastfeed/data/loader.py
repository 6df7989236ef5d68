"""DataLoader: PyTorch's, by DALI where that can be, and by PyTorch's workers where not."""

import copy
import inspect
import types
from collections.abc import Callable, Generator, Iterable
from functools import partial
from typing import Any

import torch
from torch.utils.data import BatchSampler, IterableDataset, default_collate, default_convert

from fastfeed.data.arguments import check_whole, check_worker_options, choose_device, choose_threads
from fastfeed.data.declarations import flag
from fastfeed.data.decoding import Decoding
from fastfeed.data.epoch import EpochBatchSampler, EpochIterator, Epochs, EpochSampler, Given, beginning
from fastfeed.data.errors import BadSample
from fastfeed.data.mix import Mix, check_addresses
from fastfeed.data.order import rank_and_world_size
from fastfeed.data.progress import Progress, Run, place_of
from fastfeed.data.route import (
    as_dataset,
    check_declarations,
    choose_route,
    labels_of,
    length_of,
    make_order,
    say_dealt,
)
from fastfeed.data.samplers import Sequential
from fastfeed.data.schedule import BatchSizeSchedule, SizeSchedule
from fastfeed.data.seed import Seed
from fastfeed.data.sources import Source
from fastfeed.data.torch_samplers import TorchSampler
from fastfeed.data.views import TTA
from fastfeed.data.workers import UNUSED_BY_DALI, WORKER_OPTIONS, Workers

MAX_PIXELS = 178_956_970  # as Pillow, which takes larger images for decompression bombs


class DataLoader:
    """`torch.utils.data.DataLoader`, with the same arguments, and batches of images from DALI where that can be.

    What DALI decodes: a folder, a source, or a dataset of torchvision's whose transforms can be read, or one with a
    method `get_encoded`; DALI crops, and one pass flips, normalises, mixes and casts, in threads and on the GPU. There
    every batch is a function of (dataset, seed, epoch, position): the same pixels for any number of threads, ranks, and
    any depth of prefetching, before and after a resume, and for each sample at any batch size. Any other dataset goes
    through PyTorch's worker processes, as it does in PyTorch's loader, and its batches are moved to the device ahead
    of the training. Of torchvision's own datasets (CIFAR10, MNIST, ...) images then travel as bytes: the conversion to
    float32 and a Normalize at the end of the transform are done by the last pass, with the same bits; what is set on
    the dataset later shows from the next epoch on. Which way it is, and why, stands in the log ("fastfeed").

    Args:
        dataset: a folder of class folders (see `FolderSource`); a source: `FolderSource`, `ListSource`, `TarSource`; or
            any dataset of PyTorch's, map-style or iterable.
        batch_size: samples per batch, of this rank; None gives samples instead of batches; or a function of the epoch
            and the step, the same on every rank, as ``lambda epoch, step: 64 if epoch < 10 else 32``.
        shuffle: a new order in every epoch; False, or None, keeps the order of the dataset.
        sampler: which samples come, and when: one of `fastfeed.data.samplers` (weighted, class-balanced, repeated
            augmentation), which is dealt to the ranks, or any of PyTorch's, which is iterated over on each rank.
        batch_sampler: likewise one of PyTorch's, of whole batches; instead of batch_size, shuffle, sampler, drop_last.
        num_workers: with DALI CPU threads that read, decode and finish; 0 is one per core, shared among torchrun's
            processes on a machine, and no processes are started. Else PyTorch's worker processes; 0 is none.
        collate_fn: how samples become a batch. DALI takes ``default_collate``, and functions that mix what it gives by
            torchvision's ``v2.MixUp`` and ``v2.CutMix``.
        pin_memory: for PyTorch's workers; without it memory is pinned when a batch is sent to a GPU.
        drop_last: leave out a last batch that is not full.
        timeout: seconds to wait for a batch of PyTorch's workers; 0 is for ever.
        worker_init_fn: for PyTorch's workers; DALI starts none.
        multiprocessing_context: likewise.
        generator: a `torch.Generator` that draws the order, with `shuffle`, and the seeds of PyTorch's workers, as in
            PyTorch's loader. By default `seed` decides the order.
        prefetch_factor: with DALI batches decoded ahead, at least 1; else batches ahead of each worker. By default 2.
        persistent_workers: for PyTorch's workers; DALI's threads stay in any case.
        pin_memory_device: for PyTorch's workers.
        in_order: accepted; batches always come in order.
        transform: what happens to an image: `fastfeed.transforms.train(224)`, say, or transforms of torchvision's that
            can be read. By default the dataset's own, or, if it has none, `fastfeed.transforms.train(224)`.
        size: the output's size by epoch and step instead of the transform's: a function, such as
            `fastfeed.data.schedule.ProgressiveSize` or `MultiScale`.
        device: where the batches go, and where DALI decodes. By default the current GPU (where none was chosen, that of
            LOCAL_RANK), if there is one that PyTorch and the extension can use, else the CPU.
        dtype: torch.float32, torch.float16 or torch.bfloat16; by default what the dataset's transform makes, else
            float32.
        memory_format: torch.channels_last, which is the default of a folder or a source, or torch.contiguous_format,
            that of a dataset of PyTorch's, whose script may call `view`.
        mix: mixup, cutmix or both, after everything else. Class indices become a `fastfeed.MixedTarget`, and targets
            of floating-point rows, [N, ...] (several labels at once, say), are mixed as they are; there must be no
            other targets.
        stable_addresses: put every batch's tensors at the addresses of the first batch's, for steps captured in a CUDA
            graph. A batch is then overwritten by the next one, and all must have one size: see `drop_last`.
        seed: 64 bits; decides the order and every random choice, but those that a dataset makes itself. By default 0
            for a folder or a source. For a dataset of PyTorch's it is drawn from PyTorch's global generator when the
            first epoch begins, so that ``torch.manual_seed`` decides it, and is 0 where several ranks share an epoch,
            or where it decides nothing: with PyTorch's workers, in the dataset's order or that of a PyTorch sampler.
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
        tta: several views of each sample, for test-time augmentation: `fastfeed.transforms.TTA`.
        rank: of this process; by default torch.distributed's when an epoch begins, or 0 where it is not initialised.
        world_size: likewise; else 1. Ranks take equally many steps: see `fastfeed.data.order.Batches`.
        backend: "dali", to refuse a dataset that DALI cannot take; "torch", to have PyTorch's workers; None chooses.

    Yields:
        With DALI (images, target): images [N, 3, H, W] of `dtype`, (pixel / 255 - mean) / std, or, with `tta`,
        [N, V, 3, H, W]; target [N] int64, a
        MixedTarget, or what the dataset has. Else what ``collate_fn`` makes. All tensors on `device`. With `info`, a
        SampleInfo as one more element.

    Attributes:
        dataset: what was given; for the path of a folder its `FolderSource`, whose `classes` names the targets.
        sampler, batch_sampler: what was given, or this rank's share of the next epoch.
        backend: "dali" or "torch".
        transform: what DALI does.
        epoch: the epoch that the next iterator runs, which takes it with its first batch and leaves the next one here.
            Set it to repeat or skip one.
        mixup_enabled: whether batches are mixed; set it to False to end mixing, as timm's training script does. Targets
            stay what they are with `mix`.

    Raises:
        FileNotFoundError, NotADirectoryError: for a folder that is not there or holds no classes or images.
        TypeError: for a dataset, or another argument, of another kind.
        ValueError: for an argument out of range; for one that only DALI's path has, where it is not taken; for
            ``backend="dali"`` with a dataset that DALI cannot take.
        RuntimeError: for a GPU that is not there, or an extension built without CUDA asked to use one.
        ImportError: for files, if DALI is not installed. Datasets of PyTorch's go through its workers then.

    While iterating: `SampleError` for bad samples as above, after every batch before theirs was given; what a dataset
    raises in a worker, with the worker's traceback.

    What the arguments set stays as it is: to set such an attribute later raises ValueError. With PyTorch's workers what
    PyTorch's loader lets one set can be set here too, for the next epoch, and with DALI what only those workers use:
    trainers set `worker_init_fn`.
    """

    _made = False
    __class_getitem__: Any = classmethod(types.GenericAlias)  # for annotations, as PyTorch's: DataLoader[Any]

    def __init__(
        self,
        dataset: Any,
        batch_size: int | BatchSizeSchedule | None = 1,
        shuffle: bool | None = None,
        sampler: Any = None,
        batch_sampler: Iterable[Any] | None = None,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        pin_memory: bool = False,
        drop_last: bool = False,
        timeout: float = 0,
        worker_init_fn: Callable[[int], None] | None = None,
        multiprocessing_context: Any = None,
        generator: torch.Generator | None = None,
        *,
        prefetch_factor: int | None = None,
        persistent_workers: bool = False,
        pin_memory_device: str = "",
        in_order: bool = True,
        transform: Any = None,
        size: SizeSchedule | None = None,
        device: str | int | torch.device | None = None,
        dtype: torch.dtype | None = None,
        memory_format: torch.memory_format | None = None,
        mix: Mix | None = None,
        stable_addresses: bool = False,
        seed: int | None = None,
        on_error: str = "raise",
        max_errors: float | None = None,
        max_pixels: int = MAX_PIXELS,
        info: bool = False,
        exif: bool = False,
        tta: TTA | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        backend: str | None = None,
    ) -> None:
        self._batch_size = 1 if batch_size is None else batch_size
        if not callable(self._batch_size):
            self._batch_size = check_whole("batch_size", self._batch_size, 1)
        self.shuffle = flag("shuffle", bool(shuffle) if shuffle in (None, 0, 1) else shuffle)
        self.drop_last = flag("drop_last", drop_last)
        check_worker_options(num_workers, timeout, persistent_workers, multiprocessing_context)
        self.num_workers = int(num_workers)
        self.pin_memory, self.pin_memory_device = pin_memory, pin_memory_device
        self.timeout, self.worker_init_fn = timeout, worker_init_fn
        self.multiprocessing_context, self.generator = multiprocessing_context, generator
        self.persistent_workers, self.in_order = persistent_workers, in_order
        if prefetch_factor is not None:
            prefetch_factor = check_whole("prefetch_factor", prefetch_factor, 1)
        self.prefetch_factor = 2 if prefetch_factor is None and num_workers > 0 else prefetch_factor
        info, exif = flag("info", info), flag("exif", exif)
        max_pixels = check_whole("max_pixels", max_pixels, 1)
        check_declarations(mix, size, tta)
        if flag("stable_addresses", stable_addresses) and on_error == "drop":
            raise ValueError(
                "stable_addresses needs batches of one size: take on_error='replace' or 'raise', not 'drop'"
            )
        if rank is not None or world_size is not None:
            rank, world_size = rank_and_world_size(rank, world_size)
        self._rank, self._world_size = rank, world_size
        self.dataset = dataset = as_dataset(dataset)
        self._iterable, own = isinstance(dataset, IterableDataset), isinstance(dataset, Source)
        self._given_sampler, self._given_batch_sampler = sampler, batch_sampler
        self._order = make_order(
            dataset, batch_size, self.shuffle, sampler, batch_sampler, drop_last=self.drop_last, generator=generator
        )
        batched = batch_size is not None
        self.batch_size = None if batch_sampler is not None else batch_size
        self.collate_fn = collate_fn or (default_collate if batched else default_convert)
        self.device = choose_device(device)
        route = choose_route(dataset, transform, collate_fn, mix, backend, batched=batched)
        self._route = route
        self.backend = "torch" if route.source is None else "dali"
        # Drawn only where it decides something, as in PyTorch's loader: a dataset draws from the same generator.
        has_order = type(self._order) is Sequential or isinstance(self._order, TorchSampler)
        self._seed = Seed(seed, 0 if own or (route.source is None and has_order) else None, is_free=not own)
        self.transform = route.transform
        self.mix = mix or route.mix
        self._counted = dataset if route.source is None else route.source
        self._labels = labels_of(dataset) if route.source is None else route.source.labels
        if not isinstance(self._order, TorchSampler):  # now: what does not go with the dataset shows here
            self._order_name = self._order.identity(self._size or 0, self._labels)
        common: dict[str, Any] = {
            "batched": batched,
            "device": self.device,
            "stable_addresses": stable_addresses,
            "info": info,
        }
        self._engine: Decoding | Workers
        if route.source is None:
            route.refuse(
                transform=transform is not None,
                size=size is not None,
                dtype=dtype is not None,
                memory_format=memory_format is not None,
                mix=mix is not None,
                on_error=on_error != "raise",
                max_errors=max_errors is not None,
                max_pixels=max_pixels != MAX_PIXELS,
                exif=exif,
                tta=tta is not None,
            )
            if self._iterable and (info or callable(batch_size)):
                name = "info" if info else "a batch_size by schedule"
                raise ValueError(f"{name} needs indices of samples, and {type(dataset).__name__} is iterable")
            self._engine = Workers(
                dataset,
                batch_size=batch_size if isinstance(batch_size, int) else 1,
                shuffle=shuffle,
                drop_last=self.drop_last,
                num_workers=self.num_workers,
                collate_fn=collate_fn,
                pin_memory=pin_memory,
                timeout=timeout,
                worker_init_fn=worker_init_fn,
                multiprocessing_context=multiprocessing_context,
                generator=generator,
                prefetch_factor=self.prefetch_factor,
                persistent_workers=persistent_workers,
                pin_memory_device=pin_memory_device,
                **common,
            )
        else:
            if tta is not None:
                tta.check(route.transform)
            check_addresses(self.mix, stable_addresses)
            self._engine = Decoding(
                route.source,
                route.transform,
                self._epochs(rank=0, world_size=1),
                threads=choose_threads("num_workers", num_workers),
                depth=self.prefetch_factor or 2,
                size=size,
                dtype=dtype or route.dtype or torch.float32,
                memory_format=memory_format or (torch.channels_last if own else torch.contiguous_format),
                mix=self.mix,
                on_error=on_error,
                max_errors=max_errors,
                max_pixels=max_pixels,
                exif=exif,
                tta=tta,
                **common,
            )
        if route.source is not None and isinstance(self._order, TorchSampler):
            self._order.draw_seeds_of_workers()
        self._begun = False  # ever
        self._closed = False  # and not used since
        self._progress = Progress()
        self._made = True

    def __setattr__(self, name: str, value: object) -> None:
        # Threads, DALI's graph and the last pass are made from the arguments: to set one later would do nothing, or
        # half of what is meant.
        if self._made and isinstance(self._engine, Workers) and name in WORKER_OPTIONS:
            self._engine.set_option(name, value)
        elif self._made and name in _ARGUMENTS - UNUSED_BY_DALI:
            raise ValueError(
                f"{name} cannot be set once the DataLoader is made: make another one, which goes on from this one's "
                "state_dict() with load_state_dict(). Image sizes can change by `size`, a schedule; the epoch by "
                "set_epoch(); mixing ends with mixup_enabled = False"
            )
        super().__setattr__(name, value)

    @property
    def rank(self) -> int:
        """Number of this process, as given, or as torch.distributed has it now."""
        return rank_and_world_size(self._rank, self._world_size)[0]

    @property
    def world_size(self) -> int:
        """The number of ranks, likewise."""
        return rank_and_world_size(self._rank, self._world_size)[1]

    @property
    def _size(self) -> int | None:
        # Now: a dataset of PyTorch's may grow between epochs.
        return None if self._iterable else length_of(self._counted, self._order)

    @property
    def seed(self) -> int:
        """What was given, or drawn; 0 where several ranks share an epoch, or it decides nothing."""
        return self._seed.of(self.world_size)

    @property
    def sampler(self) -> Any:
        """What was given, or this rank's share of the epoch that the next `iter()` runs."""
        if self._given_sampler is not None or self._iterable:
            return self._given_sampler
        if isinstance(self._order, TorchSampler):
            return getattr(self._order.sampler, "sampler", None) if self._order.batched else self._order.sampler
        return EpochSampler(partial(self._epochs, drop_last=False), self.epoch, self.set_epoch)

    @property
    def batch_sampler(self) -> Any:
        """What was given, or the batches of `sampler`; None where there are none, or a schedule decides."""
        if self._given_batch_sampler is not None or self._iterable or not isinstance(self.batch_size, int):
            return self._given_batch_sampler
        sampler = self.sampler
        if isinstance(sampler, EpochSampler):
            return EpochBatchSampler(sampler, self.batch_size, self.drop_last, self._epochs)
        return BatchSampler(sampler, self.batch_size, self.drop_last)

    @property
    def errors(self) -> list[BadSample]:
        """The bad samples that were met so far, each once, with its newest reason."""
        return list(self._engine.errors)

    @property
    def mixup_enabled(self) -> bool:
        """Whether batches are mixed; the epoch that is running is changed too, from its next batches on."""
        return self._engine.mixing

    @mixup_enabled.setter
    def mixup_enabled(self, enabled: bool) -> None:
        if enabled and self.mix is None:
            raise ValueError("mixup_enabled cannot be True without mix: give the DataLoader a fastfeed.Mix")
        self._engine.mixing = flag("mixup_enabled", enabled)

    def __len__(self) -> int:
        """Batches of the epoch that the next `iter()` runs, on every rank the same.

        Raises:
            TypeError: if the dataset is iterable, or a PyTorch sampler decides, and has no length.
        """
        return self._engine.batches_left(beginning(self.epoch), self._epochs())

    @property
    def epoch(self) -> int:
        """The epoch that the next `iter()` runs."""
        return int(self._progress.next_start(self._epoch_of_sampler())["epoch"])

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self.set_epoch(epoch)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that the next `iter()` runs: from its beginning, or, if it is that of a state that was loaded
        and not yet gone on from, from there.

        A sampler of PyTorch's that has `set_epoch` is set too, and only here: without this its epoch is the script's to
        set, as with PyTorch's loader, and the loader begins with the one that it is set to.
        """
        epoch = check_whole("epoch", epoch, 0)
        if isinstance(self._order, TorchSampler):
            self._order.set_epoch(epoch)
        self._progress.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return where the iterator is that was begun last, after the batch that it gave last: a few numbers, and a
        text for the order that the samples come in.

        It may be loaded by a loader with another batch size or number of ranks: what is left of the epoch is cut anew.
        That of an iterable dataset counts its batches, which are made again and skipped when it is loaded, unless the
        dataset has `state_dict` and `load_state_dict` and there are no workers.
        """
        place = self._progress.place(self._epoch_of_sampler())
        if place["sampler"] is None and isinstance(self._order, TorchSampler):
            place = {**place, "sampler": self._order.between_epochs()}
        return {**place, **self._identity(self.seed)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue, with the next `iter()`, from a state.

        Raises:
            KeyError, TypeError: for a state of something else.
            ValueError: for the state of a loader with another seed or order, or of a dataset of another size; for a
                place that is no whole number.
        """
        free = self._seed.is_free  # then the state brings one, and none is drawn
        place = place_of(state, self._identity(0 if free else self.seed), any_seed=free)
        if isinstance(self._order, TorchSampler):
            place["sampler"] = self._order.resume(place["sampler"], midway=place["step"] > 0)
        if free:
            self._seed.adopt(state["seed"])
        self._progress.resume(place)

    def __copy__(self) -> "DataLoader":
        other = type(self).__new__(type(self))
        other.__dict__.update(self.__dict__, _progress=copy.copy(self._progress))  # its epochs are its own
        return other

    def __iter__(self) -> EpochIterator:
        this = Run(self._epochs())
        return EpochIterator(self._run(this), partial(self._length, this))

    def __enter__(self) -> "DataLoader":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Give back threads, workers and memory; what an iterator uses that is running, when it ends.

        The loader can be used again.
        """
        self._closed = True
        self._engine.close()

    def _run(self, this: Run) -> Generator[Given, None, None]:
        self._route.check_unchanged(self.dataset)
        # Now, with the first batch: trainers call `iter()`, even twice, and then set the epoch.
        start = self._progress.begin(this, self._epoch_of_sampler())
        self._closed = False
        if self._rank is None and not isinstance(self._order, TorchSampler) and not self._begun:
            say_dealt(self.dataset, self.world_size)
        self._begun = True
        _ = this.epochs.seed  # drawn now, if it is to be, and not in a thread that runs ahead
        batches = self._engine.run(start, this.epochs)
        try:
            # `map`, which keeps no reference to what it gives: the batch is the consumer's.
            yield from map(partial(self._progress.note, this), batches)
        finally:
            batches.close()
            if self._closed:  # while this ran, which has left its threads and memory to the next epoch
                self.close()
        self._progress.end(this)

    def _length(self, this: Run) -> int:
        start = this.start or self._progress.next_start(self._epoch_of_sampler())
        return self._engine.batches_left(start, this.epochs)

    def _epoch_of_sampler(self) -> int | None:
        """Return what a script has set a PyTorch sampler's epoch to since the last one began, or None."""
        return self._order.epoch_set_elsewhere() if isinstance(self._order, TorchSampler) else None

    def _epochs(
        self, *, rank: int | None = None, world_size: int | None = None, drop_last: bool | None = None
    ) -> Epochs:
        """Return the epochs of this rank, or of another one."""
        if rank is None or world_size is None:
            rank, world_size = rank_and_world_size(self._rank, self._world_size)
        # To a dataset's own code any index may mean something.
        checked = self.backend == "dali" or not isinstance(self._order, TorchSampler)
        return Epochs(
            self._size if checked else None,
            self._labels,
            self._order,
            self._batch_size,
            partial(self._seed.of, world_size),
            rank,
            world_size,
            drop_last=self.drop_last if drop_last is None else drop_last,
        )

    def _identity(self, seed: int) -> dict[str, Any]:
        """Return what must be the same for a state to go on where it was."""
        order = self._order.identity(self.world_size) if isinstance(self._order, TorchSampler) else self._order_name
        return {"seed": seed, "samples": self._size, "order": order}


_ARGUMENTS = frozenset(inspect.signature(DataLoader).parameters)
