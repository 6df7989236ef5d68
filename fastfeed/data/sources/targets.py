"""Targets: what samples are labelled with, and how those of a batch become tensors."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import default_collate

from fastfeed.data.tree import leaves, path_name, replace_leaves

NO_LABEL = -100
"""The class index of a sample that has none: what PyTorch's losses ignore by default."""


class Columns:
    """Targets as a pytree of tensors, each with a row per sample."""

    def __init__(self, tree: Any) -> None:
        self._tree = tree

    @property
    def labels(self) -> npt.NDArray[np.int64] | None:
        """[N] class indices, if that is what the targets are."""
        tree = self._tree
        is_labels = isinstance(tree, torch.Tensor) and tree.dim() == 1 and tree.dtype == torch.int64
        return tree.numpy() if is_labels else None

    def take(self, indices: npt.NDArray[np.int64]) -> Any:
        """Return the rows of some samples."""
        rows = torch.from_numpy(indices)
        return replace_leaves(self._tree, lambda _, column: column[rows])

    def subset(self, indices: npt.NDArray[np.int64]) -> "Columns":
        """Return the targets of some samples."""
        return Columns(self.take(indices))


class Rows:
    """Targets as a list with a pytree for each sample, collated when a batch is made of them."""

    labels: npt.NDArray[np.int64] | None = None

    def __init__(self, samples: list[Any]) -> None:
        self._samples = samples

    def take(self, indices: npt.NDArray[np.int64]) -> Any:
        """Return some samples' targets, collated."""
        return collate([self._samples[i] for i in indices])

    def subset(self, indices: npt.NDArray[np.int64]) -> "Rows":
        """Return the targets of some samples."""
        return Rows([self._samples[i] for i in indices])


def as_targets(targets: Any, n: int) -> Columns | Rows:
    """Return the targets of `n` samples in the form that suits them: `ListSource` says which forms there are.

    Raises:
        TypeError: for targets of another kind, or of different kinds.
        ValueError: for another number of them.
    """
    if isinstance(targets, np.ndarray | torch.Tensor) or _holds_columns(targets):
        return Columns(replace_leaves(targets, lambda path, leaf: _column(leaf, path_name(path, "targets"), n)))
    if isinstance(targets, str | bytes) or not isinstance(targets, Iterable):
        raise TypeError(f"targets is of type {type(targets).__name__}; expected one target per path, as a list")
    samples = list(targets)
    if len(samples) != n:
        raise ValueError(f"targets has {len(samples)} entries, but there are {n} paths")
    for i, sample in enumerate(samples):
        if isinstance(sample, bool) != isinstance(samples[0], bool) or not _same_kind(sample, samples[0]):
            raise TypeError(
                f"targets[{i}] is of type {type(sample).__name__}, but targets[0] of type {type(samples[0]).__name__}; "
                "expected one type"
            )
    if isinstance(samples[0], int | np.integer) and not isinstance(samples[0], bool):
        try:
            return Columns(torch.from_numpy(np.array(samples, np.int64)))
        except OverflowError:
            raise ValueError("targets has integers that do not fit 63 bits") from None
    collate(samples[:1])  # so that what can be no tensor shows here
    return Rows(samples)


def collate(samples: Sequence[Any]) -> Any:
    """Return pytrees as one, by `torch.utils.data.default_collate`.

    Raises:
        ValueError: where it cannot be done.
    """
    try:
        collated = default_collate(list(samples))
        if _mixes_strings(collated):  # which default_collate does not look at
            raise TypeError("some are strings, and others are not")
        return collated
    except (TypeError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"targets cannot be made into a batch: {error}. Give each sample tensors, arrays, numbers or strings, of "
            "one structure and shape"
        ) from error


def select(targets: Any, samples: slice | list[int]) -> Any:
    """Return some rows of a batch's targets: tensors and lists of strings, in a pytree."""
    if isinstance(targets, list | tuple) and targets and all(isinstance(leaf, str | bytes) for leaf in targets):
        # What default_collate makes of strings.
        return targets[samples] if isinstance(samples, slice) else [targets[i] for i in samples]
    if isinstance(targets, Mapping):
        return {key: select(value, samples) for key, value in targets.items()}
    if isinstance(targets, list | tuple):
        values = [select(value, samples) for value in targets]
        return type(targets)(*values) if hasattr(targets, "_fields") else type(targets)(values)
    return replace_leaves(targets, lambda _, column: column[samples])


def _mixes_strings(collated: Any) -> bool:
    if isinstance(collated, Mapping):
        return any(map(_mixes_strings, collated.values()))
    if not isinstance(collated, list | tuple):
        return False
    strings = [isinstance(value, str | bytes) for value in collated]
    return not all(strings) if any(strings) else any(map(_mixes_strings, collated))


def _holds_columns(targets: Any) -> bool:
    if isinstance(targets, Mapping):
        return True
    found = list(leaves(targets)) if isinstance(targets, tuple) else []
    return bool(found) and all(isinstance(leaf, np.ndarray | torch.Tensor) for _, leaf in found)


def _same_kind(a: Any, b: Any) -> bool:
    return isinstance(a, type(b)) or isinstance(b, type(a)) or all(isinstance(x, int | np.integer) for x in (a, b))


def _column(values: Any, name: str, n: int) -> torch.Tensor:
    if not isinstance(values, np.ndarray | torch.Tensor):
        raise TypeError(
            f"{name} is of type {type(values).__name__}; expected an array or a tensor with a row per path. For one "
            "target per path, give a list"
        )
    if len(values.shape) == 0 or values.shape[0] != n:
        raise ValueError(f"{name} has shape {list(values.shape)}, but there are {n} paths; expected [{n}, ...]")
    if isinstance(values, torch.Tensor):
        if values.layout != torch.strided:
            raise TypeError(f"{name} is a tensor of layout {values.layout}; expected a dense one")
        column = values.detach().to("cpu", copy=True)
    else:
        try:
            # A copy: what the caller does to the array later changes no targets.
            column = torch.from_numpy(np.array(values, values.dtype.newbyteorder("="), order="C"))
        except TypeError:
            raise TypeError(
                f"{name} is an array of {values.dtype}; expected numbers. For strings, give a list"
            ) from None
    if column.dtype == torch.uint64 and (column.view(torch.int64) < 0).any():
        raise ValueError(f"{name} has integers that do not fit 63 bits")
    whole = not column.is_floating_point() and not column.is_complex() and column.dtype != torch.bool
    return column.to(torch.int64) if whole and column.dim() == 1 else column
