"""Files that samples are packed in: their names, and reading them where they lie, on disk or behind a URL."""

import errno
import glob
import importlib
import os
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

Storage = Mapping[str, Any]

_MOST = 1_000_000  # shards of one source; more is a slip in a pattern


def expand_shards(shards: Any, storage: Storage) -> list[str]:
    """Return paths and URLs of tar files, from any of the forms that `TarSource` takes.

    Raises:
        TypeError: for something else.
        FileNotFoundError: for a folder without tar files, or a pattern that none matches.
        ValueError: for no shards, or more than a million.
    """
    if isinstance(shards, str | os.PathLike):
        shards = [shards]
    if isinstance(shards, bytes) or not isinstance(shards, Iterable):
        raise TypeError(f"shards is {shards!r}; expected a path, a URL, or a list of them")
    found: list[str] = []
    for shard in shards:
        if not isinstance(shard, str | os.PathLike):
            raise TypeError(f"shards has a {type(shard).__name__}; expected paths and URLs")
        path = os.path.expanduser(os.fsdecode(shard).removeprefix("file://"))
        if not path:
            raise ValueError("shards has an empty path; expected the path of a tar file")
        # A file may have braces, or what else is in patterns, in its name.
        for one in [path] if not is_url(path) and os.path.exists(path) else expand_braces(path):
            found += _in_folder(one, storage)
    if not found:
        raise ValueError("shards is empty; expected at least one")
    return found


def names_shards(path: str | os.PathLike[str]) -> bool:
    """Whether a path or URL is that of tar shards, and not of a folder of images: one without .tar files.

    Raises:
        FileNotFoundError: if nothing is there.
    """
    text = os.path.expanduser(path)
    if os.path.isdir(text):
        return any(name.endswith(".tar") for name in os.listdir(text))
    if is_url(text) or any(os.path.exists(one) or _tars(_matches(one)) for one in [text, *expand_braces(text)]):
        return True
    raise FileNotFoundError(f"no such file or folder: {text}")


def expand_braces(pattern: str) -> list[str]:
    """Return the names that a pattern stands for, as bash does: ``train-{000..127}.tar``, ``{train,val}.tar``.

    Raises:
        ValueError: for more than a million.
    """
    for brace in re.finditer(r"\{([^{}]*)\}", pattern):
        numbers = re.fullmatch(r"(\d+)\.\.(\d+)", brace[1])
        if numbers is not None:
            first, last = int(numbers[1]), int(numbers[2])
            if abs(last - first) >= _MOST:
                raise ValueError(f"{pattern} stands for more than {_MOST} shards")
            padded = any(text.startswith("0") and len(text) > 1 for text in numbers.groups())
            width = max(map(len, numbers.groups())) if padded else 0
            step = 1 if last >= first else -1
            choices = [f"{number:0{width}}" for number in range(first, last + step, step)]
        elif "," in brace[1]:
            choices = brace[1].split(",")
        else:
            continue
        names: list[str] = []
        for choice in choices:
            names += expand_braces(pattern[: brace.start()] + choice + pattern[brace.end() :])
            if len(names) > _MOST:
                raise ValueError(f"{pattern} stands for more than {_MOST} shards")
        return names
    return [pattern]


def is_url(path: str) -> bool:
    """Whether fsspec is needed to read it, as for ``s3://bucket/train.tar``."""
    return "://" in path or "::" in path


def file_system(url: str, storage: Storage) -> tuple[Any, str]:
    """Return the fsspec file system of a URL, or of a path, and the path in it.

    Raises:
        ImportError: if fsspec, or its part for this kind of URL, is not installed.
    """
    try:
        fsspec = importlib.import_module("fsspec")
    except ModuleNotFoundError as error:
        if error.name != "fsspec":
            raise
        raise ImportError(f"{url} is read with fsspec, which is not installed: pip install fsspec") from error
    found: tuple[Any, str] = fsspec.core.url_to_fs(url, **(storage if is_url(url) else {}))
    return found


def fetch(urls: Sequence[str], ranges: Sequence[tuple[int, int]], storage: Storage) -> list[bytes | str]:
    """Return parts of files, one of (offset, size) for each URL; for one that cannot be read, why.

    They are asked for at once, if the file system can do that.
    """
    systems: dict[int, tuple[Any, list[int], list[str]]] = {}
    known = {url: file_system(url, storage) for url in dict.fromkeys(urls)}
    for i, url in enumerate(urls):
        system, path = known[url]
        _, positions, paths = systems.setdefault(id(system), (system, [], []))
        positions.append(i)
        paths.append(path)
    parts: list[bytes | str] = [b""] * len(urls)
    for system, positions, paths in systems.values():
        starts = [ranges[i][0] for i in positions]
        ends = [sum(ranges[i]) for i in positions]
        got = system.cat_ranges(paths, starts, ends, on_error="return")
        for i, part in zip(positions, got, strict=True):
            if isinstance(part, BaseException):
                parts[i] = f"{type(part).__name__}: {part}"
            elif len(part) != ranges[i][1]:
                parts[i] = f"{len(part)} bytes came instead of {ranges[i][1]}: the shard has changed"
            else:
                parts[i] = part
    return parts


class ShardFile(AbstractContextManager["ShardFile"]):
    """A shard, open for its headers to be read.

    Args:
        path: a path or URL.
        storage: options of the file system.

    Attributes:
        size: bytes.
        mtime_ns: the time of modification; 0 for a URL.
        identity: changes when the file does.

    Raises:
        OSError: FileNotFoundError, PermissionError, ... if it cannot be opened.
    """

    def __init__(self, path: str, storage: Storage) -> None:
        self.path = path
        if is_url(path):
            system, inner = file_system(path, storage)
            try:
                info = system.info(inner)
            except FileNotFoundError as error:  # whose message is some file systems' own idea of the path alone
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from error
            if info.get("type") == "directory" or not isinstance(info.get("size"), int):
                raise OSError(f"{path} is a folder, or its size is unknown; expected a tar file")
            self.size, self.mtime_ns = int(info["size"]), 0
            self.identity = f"{system.ukey(inner)} {self.size} {info.get('ETag') or info.get('etag')}"
            self._file = system.open(inner, "rb")
        else:
            # Not blocking, or a pipe would wait for its writer.
            self._file = open(  # noqa: SIM115 - closed by `__exit__`
                path, "rb", buffering=0, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)
            )
            status = os.fstat(self._file.fileno())
            if not stat.S_ISREG(status.st_mode):
                self._file.close()
                raise OSError(f"{path} is a pipe or a device; expected a tar file")
            self.size, self.mtime_ns = status.st_size, status.st_mtime_ns
            self.identity = f"{self.size} {self.mtime_ns}"

    def read_at(self, offset: int, size: int) -> bytes:
        """Return up to `size` bytes; fewer at the file's end."""
        self._file.seek(offset)
        parts = []
        while size > 0 and (part := self._file.read(size)):
            parts.append(part)
            size -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()


def _in_folder(path: str, storage: Storage) -> list[str]:
    """Return the shards in a folder, or those that a pattern matches, or the path itself if it is neither."""
    said = f"in {path}"
    if is_url(path):
        if path.partition("?")[0].endswith(".tar"):  # not a folder; to ask some servers would be a request
            return [path]
        system, inner = file_system(path, storage)
        if not system.isdir(inner):
            return [path]
        names = [system.unstrip_protocol(name) for name in system.ls(inner, detail=False)]
    elif os.path.isdir(path):
        names = [os.path.join(path, name) for name in os.listdir(path)]
    elif _is_pattern(path):
        names, said = _matches(path), f"match {path}"
    else:
        return [path]
    tars = _tars(names)
    if not tars:
        packed = any(name.endswith((".tgz", ".gz", ".bz2", ".xz", ".zst")) for name in names)
        why = ". Compressed ones are not read: unpack them, with gunzip say" if packed else ""
        raise FileNotFoundError(f"no .tar files {said}{why}")
    return tars


def _is_pattern(path: str) -> bool:
    """Whether there are wildcards in a path, but not in the name of a folder or file that is there."""
    folder, name = os.path.split(path)
    return glob.has_magic(name if os.path.isdir(folder) else path) and not os.path.exists(path)


def _matches(path: str) -> list[str]:
    if not _is_pattern(path):
        return []
    folder, name = os.path.split(path)
    return glob.glob(os.path.join(glob.escape(folder), name) if os.path.isdir(folder) else path)


def _tars(names: list[str]) -> list[str]:
    return sorted(name for name in names if name.endswith(".tar") and not os.path.basename(name).startswith("."))
