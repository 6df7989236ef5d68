"""Batches as trees: tuples, lists, mappings and dataclasses, nested, with anything else as leaves."""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.nn.utils.rnn import PackedSequence

Path = tuple[Any, ...]  # of indices, keys and field names, from the root to a leaf


def leaves(tree: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield every leaf with its path, from left to right."""
    children = _children(tree)
    if children is None:
        yield path, tree
        return
    for key, child in children:
        yield from leaves(child, (*path, key))


def replace_leaves(
    tree: Any, function: Callable[[Path, Any], Any], path: Path = (), *, stop: type | None = None
) -> Any:
    """Return a tree of the same types with function(path, leaf) for each leaf.

    An object of the class `stop` is a leaf too. Of a dataclass neither ``__init__`` nor ``__post_init__`` is called.
    Mappings that do not say how they are copied become dicts.
    """
    children = None if stop is not None and isinstance(tree, stop) else _children(tree)
    if children is None:
        return function(path, tree)
    new = {key: replace_leaves(child, function, (*path, key), stop=stop) for key, child in children}
    if isinstance(tree, Mapping):
        # Without a __copy__ of its own, a copy of a class that is no dict would share its items with the original.
        if type(tree) is not dict and (isinstance(tree, dict) or hasattr(tree, "__copy__")):
            try:
                mapping: Any = copy.copy(tree)
                for key, value in new.items():
                    mapping[key] = value  # not `update`, by which a Counter adds
                return mapping
            except (AttributeError, TypeError):
                pass  # it cannot be copied or updated
        return new
    if dataclasses.is_dataclass(tree):
        result = copy.copy(tree)
        for name, value in new.items():
            object.__setattr__(result, name, value)  # frozen ones refuse setattr
        return result
    values = list(new.values())
    if isinstance(tree, list):
        if type(tree) is list:
            return values
        changed = copy.copy(tree)
        changed[:] = values
        return changed
    if hasattr(tree, "_fields"):
        return type(tree)(*values)
    return tuple(values) if type(tree) is tuple else type(tree)(values)


def resolved(tree: Any, path: Path) -> Path:
    """Return a path as `leaves` has it: negative indices counted from the end, fields of named tuples as indices."""
    result = []
    for step in path:
        fields, key = getattr(tree, "_fields", ()), step
        if isinstance(tree, tuple) and step in fields:
            key = fields.index(step)
        elif isinstance(tree, list | tuple) and isinstance(step, int) and -len(tree) <= step < 0:
            key = step + len(tree)
        result.append(key)
        tree = dict(_children(tree) or ()).get(key)
    return tuple(result)


def path_name(path: Path, root: str = "batch") -> str:
    """Return a path as Python writes it, such as batch[0]['image']."""
    return root + "".join(f"[{key!r}]" for key in path)


def _children(tree: Any) -> list[tuple[Any, Any]] | None:
    # First what batches are made of: to ask for a Mapping takes its time.
    if isinstance(tree, torch.Tensor | PackedSequence):  # of whose tensors one must stay on the CPU
        return None
    if type(tree) is list or type(tree) is tuple:
        return list(enumerate(tree))
    if isinstance(tree, Mapping):
        return list(tree.items())
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        return [(field.name, getattr(tree, field.name)) for field in dataclasses.fields(tree)]
    if isinstance(tree, list | tuple):
        # A named tuple's fields have names too, but every tuple is indexed by number.
        return list(enumerate(tree))
    return None
