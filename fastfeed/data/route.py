"""What a dataset and its loader's arguments come to: by DALI or through PyTorch's workers, and in which order."""

import logging
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, IterDataPipe

from fastfeed.data.dali import dali_install_line, has_dali
from fastfeed.data.mix import Mix
from fastfeed.data.reading import (
    Snapshot,
    Unreadable,
    read_collate,
    read_dataset,
    read_transform,
    snapshot,
    split_tail,
)
from fastfeed.data.samplers import Labels, Sampler, Sequential, Shuffled
from fastfeed.data.sources import FolderSource, Source
from fastfeed.data.torch_samplers import GeneratedOrder, TorchSampler
from fastfeed.data.transforms import Transform, train
from fastfeed.data.views import TTA

_LOG = logging.getLogger("fastfeed")

BACKENDS = ("dali", "torch")


_WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@dataclass(frozen=True)
class Route:
    """What DALI decodes, and how; or why it does not.

    Attributes:
        source: of the encoded images; None where PyTorch's workers make the batches.
        transform: what happens to them.
        dtype: what the dataset's own transform converts to, where it says.
        mix: what the collate function does.
        reasons: for PyTorch's workers.
        snapshot: of a dataset of PyTorch's that DALI decodes, as it was read.
    """

    source: Source | None
    transform: Transform
    dtype: torch.dtype | None = None
    mix: Mix | None = None
    reasons: tuple[str, ...] = ()
    snapshot: Snapshot | None = None

    def check_unchanged(self, dataset: Any) -> None:
        """Raise RuntimeError if a dataset that was read has another transform now, or other samples."""
        if self.snapshot is not None and not self.snapshot.same(snapshot(dataset)):
            raise RuntimeError(
                f"{type(dataset).__name__} was changed, its transform or its samples, after the DataLoader was made, "
                "which had read them: make a new DataLoader. Image sizes can change by its `size`, a schedule"
            )

    def refuse(self, **arguments: Any) -> None:
        """Raise ValueError, where PyTorch's workers make the batches, for arguments that only DALI's path has.

        Args:
            arguments: by their names, whether they were given.
        """
        given = [name for name, is_given in arguments.items() if is_given]
        if self.source is None and given:
            raise ValueError(
                f"{', '.join(given)}: only for images that DALI decodes, and this dataset goes through PyTorch's "
                f"workers ({'; '.join(self.reasons)}). Leave {'it' if len(given) == 1 else 'them'} out; "
                "fastfeed.Prefetcher normalises, mixes and casts uint8 batches of any loader"
            )


def as_dataset(dataset: Any) -> Any:
    """Return the dataset that an argument of `DataLoader` stands for: a folder's, or itself.

    Raises:
        TypeError: for what is no dataset.
        FileNotFoundError, NotADirectoryError: as `FolderSource`.
    """
    if isinstance(dataset, str | os.PathLike):
        return FolderSource(dataset)
    if isinstance(dataset, Source | IterableDataset) or hasattr(dataset, "__getitem__"):
        return dataset
    raise TypeError(
        f"dataset is {type(dataset).__name__}; expected the path of a folder of class folders, a FolderSource, "
        "ListSource or TarSource, or a dataset of PyTorch's, with __getitem__ or __iter__"
    )


def check_declarations(mix: Any, size: Any, tta: Any) -> None:
    """Raise for declarations of another kind, or that do not go together.

    Raises:
        TypeError, ValueError: as `DataLoader`.
    """
    if mix is not None and not isinstance(mix, Mix):
        raise TypeError(f"mix is {type(mix).__name__}; expected a fastfeed.Mix, as fastfeed.Mix(mixup=0.2)")
    if tta is not None and not isinstance(tta, TTA):
        raise TypeError(f"tta is {tta!r}; expected a fastfeed.transforms.TTA, as TTA(crops=5)")
    if tta is not None and mix is not None:
        raise ValueError("mix goes with training, and tta with evaluation: leave one of them out")
    if size is not None and not callable(size):
        raise TypeError(
            f"size is {size!r}; expected a function of the epoch and the step: one size belongs to the transform, "
            "as fastfeed.transforms.train(224)"
        )


def choose_route(
    dataset: Any, transform: Any, collate_fn: Any, mix: Mix | None, backend: str | None, *, batched: bool
) -> Route:
    """Return which way a dataset goes, and log it.

    Args:
        dataset: of `as_dataset`.
        transform: as given: a Transform, one of torchvision's, or None for the dataset's own.
        collate_fn: as given, or None.
        mix: likewise.
        backend: likewise.
        batched: whether there are batches.

    Raises:
        TypeError: for a transform of another kind, or one that cannot be read.
        ValueError: for a backend that is none, or that does not go with the dataset.
    """
    if backend not in (None, *BACKENDS):
        raise ValueError(f"backend is {backend!r}; expected 'dali', 'torch', or None to choose")
    reasons: list[str] = []
    level = logging.WARNING
    source = own = dtype = mix_of_collate = None
    try:
        if isinstance(dataset, Source):
            source = dataset
        else:
            reading = read_dataset(dataset)
            source, own, dtype = reading.source, reading.transform, reading.dtype
    except Unreadable as error:
        reasons += error.reasons
        # Nobody expects DALI to take what is no dataset of images.
        level = logging.WARNING if error.has_images else logging.INFO
    try:
        mix_of_collate = None if collate_fn is None else read_collate(collate_fn)
    except Unreadable as error:
        reasons += error.reasons
    if transform is not None:
        own, dtype = _given_transform(transform)
    if mix is not None and mix_of_collate is not None:
        raise ValueError("mix and a collate_fn that mixes are both given: leave one of them out")
    if isinstance(dataset, Source):
        if reasons or backend == "torch":
            why = "; ".join(reasons) or "backend='torch' needs a dataset of PyTorch's"
            raise ValueError(f"{type(dataset).__name__} holds files, which DALI decodes: {why}")
    elif backend == "torch":
        reasons, level = ["backend='torch' asks for them"], logging.INFO
    elif backend == "dali" and reasons:
        raise ValueError(f"backend='dali', but DALI cannot take this dataset: {'; '.join(reasons)}")
    elif backend is None and not reasons and _for_workers(dataset) and not has_dali():
        reasons = [f"NVIDIA DALI is not installed ({dali_install_line()})"]
    if reasons and not _for_workers(dataset):
        raise TypeError(
            f"{type(dataset).__name__} has no __getitem__, which PyTorch's workers need, and DALI cannot take it: "
            f"{'; '.join(reasons)}"
        )
    if reasons:
        split = split_tail(dataset, collate_fn) if batched else None
        tail = "" if split is None else f"; {' and '.join(split.tail.names)} run in the last pass"
        _LOG.log(level, "DataLoader: PyTorch's workers make the batches: %s%s", "; ".join(reasons), tail)
        return Route(None, own or train(), reasons=tuple(reasons))
    assert source is not None
    _LOG.info("DataLoader: DALI decodes %s", type(dataset).__name__)
    read = None if isinstance(dataset, Source) else snapshot(dataset)
    return Route(source, own or train(), dtype, mix_of_collate, snapshot=read)


def make_order(
    dataset: Any,
    batch_size: Any,
    shuffle: bool,
    sampler: Any,
    batch_sampler: Any,
    *,
    drop_last: bool,
    generator: torch.Generator | None,
) -> Sampler | TorchSampler:
    """Return what decides which samples come, and when.

    Raises:
        TypeError: for a sampler or a generator that is none.
        ValueError: for arguments that do not go together, as in PyTorch's loader.
    """
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator is {generator!r}; expected a torch.Generator, or None")
    given = {"shuffle": shuffle or None, "sampler": sampler, "batch_sampler": batch_sampler}
    names = [name for name, value in given.items() if value is not None]
    if isinstance(dataset, IterDataPipe) and names == ["shuffle"]:  # whose own shuffling PyTorch's loader turns on
        return Sequential()
    if isinstance(dataset, IterableDataset) and names:
        raise ValueError(f"{names[0]} is given, but {type(dataset).__name__} is iterable, and decides the order itself")
    if batch_sampler is not None:
        if batch_size != 1 or drop_last or len(names) > 1:
            raise ValueError("batch_sampler goes with no batch_size, shuffle, sampler or drop_last: it decides all")
        return TorchSampler(batch_sampler, batched=True)
    if batch_size is None and drop_last:
        raise ValueError("drop_last goes with a batch_size, which is None: there are no batches")
    if sampler is not None:
        if shuffle:
            raise ValueError("sampler goes with shuffle=False: it decides the order")
        return sampler if isinstance(sampler, Sampler) else TorchSampler(sampler)
    if shuffle and not isinstance(dataset, Source) and not len(dataset):
        raise ValueError(f"shuffle is True, but {type(dataset).__name__} has no samples: leave it out, or give it some")
    if shuffle and generator is not None:  # the very order of PyTorch's loader
        return TorchSampler(GeneratedOrder(dataset, generator))
    return Shuffled() if shuffle else Sequential()


def say_dealt(dataset: Any, world_size: int) -> None:
    """Log that the ranks share the samples of a dataset of PyTorch's, which they do not in PyTorch's loader."""
    if world_size > 1 and not isinstance(dataset, Source | IterableDataset):
        _LOG.warning(
            "DataLoader: the samples of %s are dealt to %d ranks, for no sampler was given; rank=0, world_size=1 gives "
            "every rank all of them",
            type(dataset).__name__,
            world_size,
        )


def length_of(dataset: Any, order: Sampler | TorchSampler) -> int | None:
    """Return the number of samples; None of a map-style dataset that has none, which a PyTorch sampler may go with."""
    try:
        return len(dataset)
    except (TypeError, NotImplementedError):
        if isinstance(order, TorchSampler):
            return None
        raise


def labels_of(dataset: Any) -> Labels | None:
    """Return [N] class indices, if a dataset has them as torchvision's do, in `targets`."""
    targets = getattr(dataset, "targets", None)
    if isinstance(targets, torch.Tensor):
        targets = targets.detach().cpu().numpy() if targets.dtype in _WHOLE and targets.dim() == 1 else None
    elif isinstance(targets, list):
        is_whole = all(isinstance(target, int | np.integer) and not isinstance(target, bool) for target in targets)
        targets = np.array(targets, np.int64) if targets and is_whole else None
    if not isinstance(targets, np.ndarray) or targets.ndim != 1 or targets.dtype.kind not in "iu" or not len(targets):
        return None
    return targets.astype(np.int64)


def _for_workers(dataset: Any) -> bool:
    """Whether PyTorch's workers could make batches of a dataset of PyTorch's, which may have no `__getitem__`."""
    return (
        isinstance(dataset, IterableDataset) or getattr(type(dataset), "__getitem__", None) is not Dataset.__getitem__
    )


def _given_transform(transform: Any) -> tuple[Transform, torch.dtype | None]:
    if isinstance(transform, Transform):
        return transform, None
    try:
        return read_transform(transform)
    except Unreadable as error:
        raise TypeError(
            f"transform is {type(transform).__name__}; expected a Transform, as fastfeed.transforms.train(224), or "
            f"transforms of torchvision's that can be read: {'; '.join(error.reasons)}"
        ) from None
