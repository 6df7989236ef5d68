"""Tar shards in WebDataset's naming, read where they lie."""

import json
import os
import posixpath
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastfeed._extension import extension
from fastfeed.data.sources.base import EncodedBatch, Source
from fastfeed.data.sources.list import checked_classes
from fastfeed.data.sources.shards import expand_shards, fetch, is_url
from fastfeed.data.sources.tar_index import Member, ShardIndex, concatenate, shard_index
from fastfeed.data.sources.targets import NO_LABEL, UnlikeError, collate, conform, select

_LARGEST = 2**31  # bytes of an image, as in csrc/reader.cpp
_AT_ONCE = 8  # shards whose indices are read at the same time
_LOOKED_AT = 100  # samples, to find one whose target can be read

Parse = Callable[[dict[str, bytes]], Any]


class TarSource(Source):
    """Samples in uncompressed tar files, read by their offsets, never unpacked.

    Naming is WebDataset's: the members of a sample have one key, their path up to the first dot of the file name;
    ``images/0001.jpg`` and ``images/0001.cls`` are one sample. Its image is the first member with extension .jpg,
    .jpeg, .jfif, .jpe, .png, .bmp or .webp; where there is none, the one whose extension ends so, as .rgb.png. Keys
    without an image, hidden files and files without an extension are passed over. Samples come in the order of the
    shards, and in a shard in that of their keys' first members.

    Where the members lie is found once, by a walk over the headers, and kept in an index beside the shard, named
    <shard>.fastfeed-index.npz. It is made again when the shard has changed.

    Args:
        shards: a path or URL, or a list of them. Each may have braces, as ``train-{000..127}.tar``, or name a folder,
            for the .tar files in it, in sorted order. In a path ``~`` is the home of a user, and ``*``, ``?`` and
            ``[...]`` stand for the .tar files that match, likewise. URLs are read with fsspec: ``s3://``, ``https://``,
            ``memory://`` and so on.
        target: what samples are labelled with.

            - ``"cls"``, or another extension: the member that holds the class index as text. A batch's are int64 [N].
            - ``"folder"``: the name of the folder that the image lies in; `classes` are these names over all shards.
            - ``"json"``: the .json member, parsed. A batch's are collated by ``torch.utils.data.default_collate``.
            - ``"txt"``: the .txt member, UTF-8. A batch has a list of N strings.
            - A function of a dict with the bytes of each member but the image, by extension in lower case; it returns
              the target, and a batch's are collated likewise.
            - ``None``: nothing. A batch's are -100, which PyTorch's losses ignore.

            Targets that are collated have one structure: that of the first sample in the shards (the first of a hundred
            whose target can be read). Its keys are taken, and a sample that lacks one, has a list of another length, or
            a value of another type, is bad; but an int where the first has a float becomes a float. In place of a bad
            sample's target stands the first one's.
        classes: class names, where targets are class indices.
        cache_dir: the folder to keep indices in; by default beside the shards, or, where that cannot be written or they
            are URLs, in ``$XDG_CACHE_HOME/fastfeed``.
        storage_options: what fsspec's file system for the URLs takes, as ``{"anon": True}`` for a public bucket.

    Attributes:
        shards: the paths and URLs.

    Raises:
        FileNotFoundError, PermissionError, OSError: for a shard that cannot be read, or a folder without any, or a
            pattern that matches none.
        ValueError: for a shard that is compressed, damaged, cut short or no tar file; for shards without images, or in
            which no image has the target.
        TypeError: for an argument of another type.
        ImportError: for a URL, if fsspec, or its part for such URLs, is not installed.
    """

    def __init__(
        self,
        shards: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        target: str | Parse | None = "cls",
        classes: Sequence[str] | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        if target is not None and not callable(target) and (not isinstance(target, str) or not target):
            raise TypeError(f"target is {target!r}; expected an extension, as 'cls', or 'folder', a function or None")
        if target == "folder" and classes is not None:
            raise TypeError("classes are the folders' names with target='folder'; leave it out")
        self._target = target.lower() if isinstance(target, str) else target
        self._storage = dict(storage_options or {})
        self.shards = expand_shards(shards, self._storage)
        indices = self._indices(None if cache_dir is None else Path(os.path.expanduser(cache_dir)))
        self._stamps = np.array([index.stamp for index in indices], np.int64)
        self._names = [name for index in indices for name in index.names]
        if not self._names:
            raise ValueError(f"no images in {_some(self.shards)}. Expected members such as 0001.jpg")
        shard = np.repeat(np.arange(len(indices)), [len(index.names) for index in indices])
        images = np.concatenate([index.images for index in indices])
        self._ranges = np.column_stack([shard, images])
        self._rows = np.arange(len(self._names))
        self._problems: dict[int, str] = {}  # by row
        for row in np.flatnonzero(images[:, 1] > _LARGEST).tolist():
            self._problems[row] = f"{images[row, 1]} bytes: too large for an image, which may have 2 GiB"
            self._ranges[row, 2] = 0
        self._members = concatenate([index.members for index in indices])
        self._needs(self._target)
        self._example: tuple[int, Any] | None = None  # whose structure all targets have: its row and target
        self._has_looked = False  # for it
        self._labels: npt.NDArray[np.int64] | None = None
        if self._target is None:
            self._labels = np.full(len(self._names), NO_LABEL, np.int64)
        elif self._target == "folder":
            self.classes, self._labels = self._folders()
        elif isinstance(self._target, str) and self._target not in ("json", "txt"):
            self._labels = self._class_indices(self._target)
        self.labels = self._labels
        if classes is not None:
            self.classes = checked_classes(classes, self._labels)

    def __len__(self) -> int:
        """Images in the shards."""
        return len(self._rows)

    def name(self, index: int) -> str:
        """Return "shard: member"."""
        return self._name(self._rows[index])

    def subset(self, indices: npt.ArrayLike) -> "TarSource":
        """Return a source of the samples at `indices`, in that order, with the same classes."""
        chosen = object.__new__(TarSource)
        chosen.__dict__.update(self.__getstate__())
        chosen._rows = self._rows[self._checked(indices)]
        chosen.labels = None if self._labels is None else self._labels[chosen._rows]
        return chosen

    def read(self, indices: npt.ArrayLike, pool: Any) -> EncodedBatch:
        """Read samples: see `Source.read`."""
        rows = self._rows[self._checked(indices)]
        data, sizes, orientation, errors = self._images(rows, pool)
        targets, target_errors = self._targets(rows, pool)
        errors = [self._problems.get(row) or a or b for row, a, b in zip(rows, errors, target_errors, strict=True)]
        return EncodedBatch(data, sizes, orientation, targets, [self._name(row) for row in rows], errors)

    def _indices(self, cache_dir: Path | None) -> list[ShardIndex]:
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            try:
                return list(threads.map(lambda shard: shard_index(shard, cache_dir, self._storage), self.shards))
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                raise

    def _name(self, row: int) -> str:
        return f"{self.shards[self._ranges[row, 0]]}: {self._names[row]}"

    def _needs(self, target: str | Parse | None) -> None:
        """Check that some sample has the target."""
        if isinstance(target, str) and target != "folder" and target not in self._members.extensions:
            there = ", ".join(f".{name}" for name in self._members.extensions[:5]) or "none"
            raise ValueError(
                f"no image in {_some(self.shards)} has a .{target} member beside it (other members: {there}). Name the "
                "target's extension, or use target='folder' where folders are the classes"
            )

    def _folders(self) -> tuple[list[str], npt.NDArray[np.int64]]:
        folders = [posixpath.basename(posixpath.dirname(name)) for name in self._names]
        for row, folder in enumerate(folders):
            if folder in ("", ".", ".."):
                raise ValueError(f"{self._name(row)} lies in no folder, which target='folder' takes for its class")
        classes = sorted(set(folders))
        number = {name: i for i, name in enumerate(classes)}
        return classes, np.array([number[folder] for folder in folders], np.int64)

    def _class_indices(self, target: str) -> npt.NDArray[np.int64]:
        members = self._members
        labels = np.full(len(self._names), NO_LABEL, np.int64)
        problems = dict.fromkeys(range(len(labels)), f"no .{target} member beside it")
        which = np.flatnonzero(members.kinds == members.extensions.index(target))
        rows = np.repeat(np.arange(len(labels)), np.diff(members.first))[which]
        starts, sizes = members.starts[which], members.ranges[which, 1]
        for row, start, size in zip(rows.tolist(), starts.tolist(), sizes.tolist(), strict=True):
            text = members.kept[start : start + size] if start >= 0 else b""
            try:
                label = int(text)
            except ValueError:
                label = -1
            if 0 <= label < 2**63:
                labels[row] = label
                del problems[row]
            else:
                said = repr(text[:40].decode("utf-8", "replace")) if start >= 0 else f"{size} bytes long"
                problems[row] = f"its .{target} member is {said}; expected a class index"
        self._problems = {**problems, **self._problems}
        return labels

    def _images(self, rows: npt.NDArray[np.int64], pool: Any) -> tuple[Any, Any, Any, list[str | None]]:
        if not self._is_remote:
            ranges = self._ranges[rows]
            shards, ranges[:, 0] = np.unique(ranges[:, 0], return_inverse=True)
            return extension().read_ranges(pool, self._memory(), *self._shards(shards), ranges)
        parts = self._fetch([tuple(entry) for entry in self._ranges[rows].tolist()])
        images = [part if isinstance(part, bytes) else b"" for part in parts]
        data, sizes, orientation, errors = extension().read_memory(pool, self._memory(), images)
        for i, part in enumerate(parts):
            if isinstance(part, str):
                errors[i] = part
        return data, sizes, orientation, errors

    @property
    def extensions(self) -> list[str]:
        """Extensions of the members beside the images, in lower case: what `target` may be."""
        return list(self._members.extensions)

    @property
    def _is_remote(self) -> bool:
        return any(map(is_url, self.shards))

    def _shards(self, numbers: npt.NDArray[np.int64]) -> tuple[list[bytes], npt.NDArray[np.int64]]:
        return [os.fsencode(self.shards[number]) for number in numbers], self._stamps[numbers]

    def _fetch(self, ranges: Sequence[tuple[int, int, int]]) -> list[bytes | str]:
        """Return parts of remote shards, (shard, offset, size) each, or why they could not be read."""
        return fetch([self.shards[shard] for shard, _, _ in ranges], [part[1:] for part in ranges], self._storage)

    def _targets(self, rows: npt.NDArray[np.int64], pool: Any) -> tuple[Any, list[str | None]]:
        if self._labels is not None:
            return torch.from_numpy(self._labels[rows]), [None] * len(rows)
        values, errors = self._parsed(rows, pool)
        return self._collate(rows, values, errors, pool), errors

    def _parsed(self, rows: npt.NDArray[np.int64], pool: Any) -> tuple[list[Any], list[str | None]]:
        values: list[Any] = []
        errors: list[str | None] = []
        for members in self._contents(rows, pool):
            value, error = None, members if isinstance(members, str) else None
            if not isinstance(members, str):
                value, error = self._parse(members)
            values.append(value)
            errors.append(error)
        return values, errors

    def _contents(self, rows: npt.NDArray[np.int64], pool: Any) -> list[dict[str, bytes] | str]:
        """Return for each sample the bytes of its target's members, or why they could not be read."""
        contents: list[dict[str, bytes] | str] = []
        todo: list[tuple[int, Member]] = []
        for i, row in enumerate(rows):
            members = self._members.of(row)
            if isinstance(self._target, str):
                members = [member for member in members if member.extension == self._target]
            contents.append({member.extension: member.data or b"" for member in members})
            todo += [(i, member) for member in members if member.data is None]
        ranges = [(int(self._ranges[rows[i], 0]), member.offset, member.size) for i, member in todo]
        for (i, member), data in zip(todo, self._read_parts(ranges, pool), strict=True):
            content = contents[i]
            if isinstance(data, str):
                contents[i] = f"its .{member.extension} member: {data}"
            elif isinstance(content, dict):
                content[member.extension] = data
        return contents

    def _read_parts(self, ranges: list[tuple[int, int, int]], pool: Any) -> list[bytes | str]:
        if not ranges:
            return []
        if self._is_remote:
            return self._fetch(ranges)
        array = np.array(ranges, np.int64)
        shards, array[:, 0] = np.unique(array[:, 0], return_inverse=True)
        data, errors = extension().read_ranges(pool, self._memory(), *self._shards(shards), array, images=False)
        return [error or part.tobytes() for part, error in zip(data, errors, strict=True)]

    def _parse(self, members: dict[str, bytes]) -> tuple[Any, str | None]:
        """Return a target, or why there is none."""
        if callable(self._target):
            try:
                return self._target(members), None
            except Exception as error:  # of this sample, whatever it is
                return None, f"target() raised {type(error).__name__}: {error}"
        if self._target not in members:
            return None, f"no .{self._target} member beside it"
        try:
            text = members[self._target]
            return (json.loads(text) if self._target == "json" else text.decode()), None
        except (ValueError, RecursionError) as error:
            return None, f"its .{self._target} member cannot be read: {error}"

    def _collate(self, rows: npt.NDArray[np.int64], values: list[Any], errors: list[str | None], pool: Any) -> Any:
        """Return the targets as one, and note in `errors` those that cannot be part of it."""
        if not self._has_looked:
            self._example, self._has_looked = self._find_example(pool), True
        example = self._example or _first_good(rows, values, errors)
        if example is None:
            for i, value in enumerate(values):
                errors[i] = errors[i] or _problem([value])
            return torch.full((len(rows),), NO_LABEL)
        row, first = example
        for i, value in enumerate(values):
            if errors[i] is None:
                try:
                    values[i] = conform(value, first)
                except UnlikeError as error:
                    errors[i] = f"its target is not like that of {self._name(row)}: {error}{self._way_out(error)}"

        def collated() -> Any:
            filled = [first if error else value for value, error in zip(values, errors, strict=True)]
            # Behind the example, whose shapes are those of all.
            return select(collate([first, *filled]), slice(1, None))

        try:
            return collated()
        except ValueError:
            for i, value in enumerate(values):
                errors[i] = errors[i] or _problem([value])
                if errors[i] is None and (problem := _problem([first, value])) is not None:
                    errors[i] = f"its target is not like that of {self._name(row)}: {problem}"
            return collated()

    def _way_out(self, error: UnlikeError) -> str:
        if self._target != "json":
            return ""
        write = "write 1.0 for 1 there, or " if (error.found, error.expected) == ("float", "int") else ""
        return f": {write}give `target` a function"

    def _find_example(self, pool: Any) -> tuple[int, Any] | None:
        for row in range(min(len(self._names), _LOOKED_AT)):
            rows = np.array([row])
            found = _first_good(rows, *self._parsed(rows, pool))
            if found is not None:
                return found
        return None


def _first_good(rows: npt.NDArray[np.int64], values: list[Any], errors: list[str | None]) -> tuple[int, Any] | None:
    """Return the first sample whose target can be made into a batch: its row and target."""
    for row, value, error in zip(rows.tolist(), values, errors, strict=True):
        if error is None and _problem([value]) is None:
            return row, conform(value, value)
    return None


def _problem(values: list[Any]) -> str | None:
    """Return why targets cannot be made into a batch."""
    try:
        collate(values)
    except ValueError as error:
        return str(error)
    return None


def _some(shards: Sequence[str]) -> str:
    return ", ".join(shards[:3]) + (", …" if len(shards) > 3 else "")
