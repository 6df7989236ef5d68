"""Targets: what samples are labelled with, and how those of a batch become tensors."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import default_collate

from fastfeed.data.tree import Path, leaves, path_name, replace_leaves

NO_LABEL = -100
"""The class index of a sample that has none: what PyTorch's losses ignore by default."""

# A bool is an int in Python: it comes first.
_SCALARS: dict[str, tuple[type, ...]] = {
    "bool": (bool, np.bool_),
    "int": (int, np.integer),
    "float": (float, np.floating),
    "str": (str,),
}


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
    if targets is None:
        return Columns(torch.full((n,), NO_LABEL))
    if isinstance(targets, np.ndarray | torch.Tensor) or _holds_columns(targets):
        return Columns(replace_leaves(targets, lambda path, leaf: _column(leaf, path_name(path, "targets"), n)))
    if isinstance(targets, str | bytes) or not isinstance(targets, Iterable):
        raise TypeError(f"targets is of type {type(targets).__name__}; expected one target per path, as a list")
    samples = list(targets)
    if len(samples) != n:
        raise ValueError(f"targets has {len(samples)} entries, but there are {n} paths")
    first = samples[0]
    is_labels = _kind(first) == "int"
    if not is_labels:
        collate([first])  # so that what can be no tensor shows here
    for i, sample in enumerate(samples):
        try:
            samples[i] = conform(sample, first)
        except UnlikeError as error:
            raise TypeError(
                f"{path_name(error.path, f'targets[{i}]')} is of type {error.found}, but "
                f"{path_name(error.path, 'targets[0]')} of type {error.expected}; expected one type"
            ) from None
    if not is_labels:
        return Rows(samples)
    try:
        return Columns(torch.from_numpy(np.array(samples, np.int64)))
    except OverflowError:
        raise ValueError("targets has integers that do not fit 63 bits") from None


class UnlikeError(ValueError):
    """A part of a target that is of another type than in the example.

    Attributes:
        path: where it lies in the target, of keys and indices.
        found: its type, in words.
        expected: the type in the example, likewise.
    """

    def __init__(self, path: Path, found: str, expected: str) -> None:
        super().__init__(path, found, expected)
        self.path, self.found, self.expected = path, found, expected

    def __str__(self) -> str:
        where = path_name(self.path, "") or "it"
        return f"{where} is {_with_article(self.found)}, and there {_with_article(self.expected)}"


def conform(target: Any, example: Any) -> Any:
    """Return a target in the structure of an example, with leaves of the same types.

    So a batch's dtypes do not depend on which samples are in it: numbers are Python's own, of which collated floats are
    float64, and an int becomes a float where the example has one. Keys that the example has not are left out.

    Raises:
        UnlikeError: for a leaf of another type, a key that is not there, or a sequence of another length.
    """
    if not isinstance(example, Mapping | list | tuple):
        return _conform_leaf(target, example, ())
    found = dict(_conformed(target, example, ()))
    return replace_leaves(example, lambda path, _: found[path])


def collate(samples: Sequence[Any]) -> Any:
    """Return pytrees as one, by `torch.utils.data.default_collate`.

    Raises:
        ValueError: where it cannot be done.
    """
    try:
        # In pairs, as PyTorch's loader has them with their images: it collates strings to a tuple there.
        return default_collate([(sample,) for sample in samples])[0]
    except (TypeError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"targets cannot be made into a batch: {error}. Give each sample tensors, arrays, numbers or strings, of "
            "one structure and shape"
        ) from error


def select(targets: Any, samples: slice | list[int]) -> Any:
    """Return some rows of a batch's targets: tensors, and sequences of strings, in a pytree."""
    if isinstance(targets, list | tuple) and targets and all(isinstance(leaf, str | bytes) for leaf in targets):
        # What default_collate makes of strings.
        return targets[samples] if isinstance(samples, slice) else type(targets)(targets[i] for i in samples)
    if isinstance(targets, Mapping):
        return {key: select(value, samples) for key, value in targets.items()}
    if isinstance(targets, list | tuple):
        values = [select(value, samples) for value in targets]
        return type(targets)(*values) if hasattr(targets, "_fields") else type(targets)(values)
    return replace_leaves(targets, lambda _, column: column[samples])


def _conformed(target: Any, example: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    """Yield a target's leaves, of the types that they have in the example, with their paths there."""
    if isinstance(example, Mapping) and isinstance(target, Mapping):
        for key, value in example.items():
            if key not in target:
                raise UnlikeError(path, f"dict without {key!r}", f"dict with {key!r}")
            yield from _conformed(target[key], value, (*path, key))
    elif isinstance(example, list | tuple) and isinstance(target, list | tuple):
        if len(target) != len(example):
            raise UnlikeError(path, f"list of length {len(target)}", f"list of length {len(example)}")
        for i, value in enumerate(example):
            yield from _conformed(target[i], value, (*path, i))
    else:
        yield path, _conform_leaf(target, example, path)


def _conform_leaf(leaf: Any, example: Any, path: Path) -> Any:
    found, expected = _kind(leaf), _kind(example)
    if expected == "float" and found in ("float", "int"):
        try:
            return float(leaf)
        except OverflowError:
            raise UnlikeError(path, "int too large for a float", expected) from None
    if found != expected:
        raise UnlikeError(path, found, expected)
    return bool(leaf) if found == "bool" else int(leaf) if found == "int" else leaf


def _kind(leaf: Any) -> str:
    for name, types in _SCALARS.items():
        if isinstance(leaf, types):
            return name
    if isinstance(leaf, np.ndarray):
        return f"{leaf.dtype.name} array"
    if isinstance(leaf, torch.Tensor):
        return f"{str(leaf.dtype).removeprefix('torch.')} tensor"
    return type(leaf).__name__


def _with_article(kind: str) -> str:
    return f"{'an' if kind[0] in 'aeio' else 'a'} {kind}"


def _holds_columns(targets: Any) -> bool:
    if isinstance(targets, Mapping):
        return True
    found = list(leaves(targets)) if isinstance(targets, tuple) else []
    return bool(found) and all(isinstance(leaf, np.ndarray | torch.Tensor) for _, leaf in found)


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
