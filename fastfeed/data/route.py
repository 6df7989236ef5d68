"""What a dataset and its loader's arguments come to: by DALI or through PyTorch's workers, and in which order."""

import logging
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset

from fastfeed.data.mix import Mix
from fastfeed.data.reading import Unreadable, read_collate, read_dataset, read_transform
from fastfeed.data.samplers import Labels, Sampler, Sequential, Shuffled
from fastfeed.data.sources import FolderSource, Source
from fastfeed.data.torch_samplers import GeneratedOrder, TorchSampler
from fastfeed.data.transforms import Transform, train

_LOG = logging.getLogger("fastfeed")

BACKENDS = ("dali", "torch")


@dataclass(frozen=True)
class Route:
    """What DALI decodes, and how; or why it does not.

    Attributes:
        source: of the encoded images; None where PyTorch's workers make the batches.
        transform: what happens to them.
        dtype: what the dataset's own transform converts to, where it says.
        mix: what the collate function does.
        reasons: for PyTorch's workers.
    """

    source: Source | None
    transform: Transform
    dtype: torch.dtype | None = None
    mix: Mix | None = None
    reasons: tuple[str, ...] = ()

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


def choose_route(dataset: Any, transform: Any, collate_fn: Any, mix: Mix | None, backend: str | None) -> Route:
    """Return which way a dataset goes, and log it.

    Args:
        dataset: of `as_dataset`.
        transform: as given: a Transform, one of torchvision's, or None for the dataset's own.
        collate_fn: as given, or None.
        mix: likewise.
        backend: likewise.

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
    if reasons:
        _LOG.log(level, "DataLoader: PyTorch's workers make the batches: %s", "; ".join(reasons))
        return Route(None, own or train(), reasons=tuple(reasons))
    assert source is not None
    _LOG.info("DataLoader: DALI decodes %s", type(dataset).__name__)
    return Route(source, own or train(), dtype, mix_of_collate)


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
        TypeError: for a sampler that is none.
        ValueError: for arguments that do not go together, as in PyTorch's loader.
    """
    given = {"shuffle": shuffle or None, "sampler": sampler, "batch_sampler": batch_sampler}
    names = [name for name, value in given.items() if value is not None]
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
    if shuffle and generator is not None:  # the very order of PyTorch's loader
        return TorchSampler(GeneratedOrder(dataset, generator))
    return Shuffled() if shuffle else Sequential()


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
    if not isinstance(targets, list | np.ndarray | torch.Tensor) or len(targets) == 0:
        return None
    labels = np.asarray(targets)
    return labels.astype(np.int64) if labels.ndim == 1 and labels.dtype.kind in "iu" else None


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
