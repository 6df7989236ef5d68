"""Which samples a tar shard holds and where they lie, kept in a file from one run to the next."""

import hashlib
import os
import secrets
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastfeed.data.sources.base import IMAGE_EXTENSIONS
from fastfeed.data.sources.shards import ShardFile, Storage, is_url
from fastfeed.data.sources.tar_headers import TarError, walk

_VERSION = 2  # another one whenever other members are images
_LARGEST_KEPT = 4096  # bytes of a target that is kept in the index


@dataclass(frozen=True)
class Member:
    """A member of a sample's key beside its image; `data` is None where it is to be read from the shard."""

    extension: str
    offset: int
    size: int
    data: bytes | None


@dataclass(frozen=True)
class Members:
    """The members of N samples' keys beside their images.

    Attributes:
        first: [N + 1] int64; sample i's are first[i] to first[i + 1] - 1.
        extensions: what their names end in.
        kinds: [M] int64, indices into `extensions`.
        ranges: [M, 2] int64, offset and size in the shard.
        starts: [M] int64, where each lies in `kept`; -1 for those that are not.
        kept: the bytes of the small ones.
    """

    first: npt.NDArray[np.int64]
    extensions: list[str]
    kinds: npt.NDArray[np.int64]
    ranges: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    kept: bytes

    def of(self, sample: int) -> list[Member]:
        """Return a sample's members."""
        result = []
        for i in range(self.first[sample], self.first[sample + 1]):
            offset, size = self.ranges[i].tolist()
            start = int(self.starts[i])
            data = None if start < 0 else self.kept[start : start + size]
            result.append(Member(self.extensions[self.kinds[i]], offset, size, data))
        return result


@dataclass(frozen=True)
class ShardIndex:
    """The samples of a shard.

    Attributes:
        stamp: the shard's size and time of modification (ns; 0 for a URL).
        names: [N] names of the members with the images.
        images: [N, 2] int64, their offsets and sizes.
        members: the other members.
    """

    stamp: tuple[int, int]
    names: list[str]
    images: npt.NDArray[np.int64]
    members: Members


def shard_index(path: str, cache_dir: Path | None, storage: Storage) -> ShardIndex:
    """Return the index of a shard: the one that was kept, if the shard is still the same, or a new one, which is kept.

    Args:
        path: a path or URL.
        cache_dir: where indices are kept; None: beside the shard, or, where that cannot be, in the user's cache folder.
        storage: options for the URL's file system.

    Raises:
        OSError: if the shard cannot be read, or an index cannot be written in `cache_dir`.
        TarError: if it is no tar file, or a damaged one.
    """
    with ShardFile(path, storage) as file:
        places = _places(path, cache_dir)
        for place in places:
            index = _load(place, file)
            if index is not None:
                return index
        index = _build(file)
    for place in places:
        try:
            _save(index, place, file.identity)
            break
        except OSError:
            if cache_dir is not None:
                raise
    return index


def concatenate(parts: Sequence[Members]) -> Members:
    """Return the members of several shards' samples in one."""
    extensions = sorted({extension for part in parts for extension in part.extensions})
    number = {extension: i for i, extension in enumerate(extensions)}
    firsts, kinds, starts, members, bytes_ = [np.zeros(1, np.int64)], [], [], 0, 0
    for part in parts:
        firsts.append(part.first[1:] + members)
        kinds.append(np.array([number[extension] for extension in part.extensions], np.int64)[part.kinds])
        starts.append(np.where(part.starts < 0, -1, part.starts + bytes_))
        members, bytes_ = members + len(part.kinds), bytes_ + len(part.kept)
    return Members(
        np.concatenate(firsts),
        extensions,
        np.concatenate(kinds),
        np.concatenate([part.ranges for part in parts]),
        np.concatenate(starts),
        b"".join(part.kept for part in parts),
    )


def _build(file: ShardFile) -> ShardIndex:
    keys: dict[str, dict[str, tuple[str, Member]]] = {}
    for member in walk(file):
        folder, slash, base = member.name.rpartition("/")
        stem, _, extension = base.partition(".")
        if not stem or not extension:
            continue  # as WebDataset does: hidden files, and those without an extension
        extension = extension.lower()
        data = None
        if member.size <= _LARGEST_KEPT and not extension.endswith(IMAGE_EXTENSIONS):
            data = file.read_at(member.offset, member.size)
        found = keys.setdefault(f"{folder}{slash}{stem}", {})
        if extension in found:
            raise TarError(f"{file.path} has two members named {member.name}; expected each name once")
        found[extension] = member.name, Member(extension, member.offset, member.size, data)
    names, images, others = [], [], []
    for key, found in keys.items():
        image = _image(file.path, key, list(found))
        if image is not None:
            name, place = found.pop(image)
            names.append(name)
            images.append((place.offset, place.size))
            others.append([other for _, other in found.values()])
    return ShardIndex((file.size, file.mtime_ns), names, np.array(images, np.int64).reshape(-1, 2), _as_members(others))


def _image(path: str, key: str, extensions: list[str]) -> str | None:
    """Return which member of a key is its image."""
    whole = [extension for extension in extensions if f".{extension}" in IMAGE_EXTENSIONS]
    if whole:
        return whole[0]
    parts = [extension for extension in extensions if extension.endswith(IMAGE_EXTENSIONS)]
    if len(parts) > 1:
        raise TarError(
            f"{path} has several images of one key, {key}: .{', .'.join(parts)}. A key is a name up to its first dot: "
            "rename the members, or name one of each key .jpg, .png, .bmp or .webp"
        )
    return parts[0] if parts else None


def _as_members(samples: list[list[Member]]) -> Members:
    members = [member for sample in samples for member in sample]
    extensions = sorted({member.extension for member in members})
    number = {extension: i for i, extension in enumerate(extensions)}
    lengths = np.array([-1 if member.data is None else len(member.data) for member in members], np.int64)
    ends = np.cumsum(np.maximum(lengths, 0))
    return Members(
        np.concatenate([[0], np.cumsum([len(sample) for sample in samples])]).astype(np.int64),
        extensions,
        np.array([number[member.extension] for member in members], np.int64),
        np.array([(member.offset, member.size) for member in members], np.int64).reshape(-1, 2),
        np.where(lengths < 0, -1, ends - lengths),
        b"".join(member.data or b"" for member in members),
    )


# ------------------------------------------------------------------------------------- files


def user_cache() -> Path:
    """Return the folder for what can be made again."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastfeed"
    except RuntimeError:  # a user without a home
        return Path(tempfile.gettempdir()) / f"fastfeed-{os.getuid()}"


def _places(path: str, cache_dir: Path | None) -> list[Path]:
    """Return the files that may hold a shard's index, the best one first."""
    whole = path if is_url(path) else os.path.abspath(path)
    base = os.path.basename(path.rstrip("/").partition("?")[0])
    apart = f"{base}.{hashlib.sha256(os.fsencode(whole)).hexdigest()[:16]}.fastfeed-index.npz"
    if cache_dir is not None:
        return [cache_dir / apart]
    beside = [] if is_url(path) else [Path(f"{path}.fastfeed-index.npz")]
    return [*beside, user_cache() / "indices" / apart]


def _save(index: ShardIndex, place: Path, identity: str) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    # Under its name it is always whole, however many processes make it at once.
    unfinished = place.with_name(f".{place.name}.{secrets.token_hex(8)}")
    try:
        with open(unfinished, "xb") as file:
            np.savez(file, **_to_arrays(index, identity))
        os.replace(unfinished, place)
    finally:
        unfinished.unlink(missing_ok=True)


def _load(place: Path, shard: ShardFile) -> ShardIndex | None:
    """Return the index in a file, if it is one, of this version, and of the shard as it is now."""
    try:
        with np.load(place, allow_pickle=False) as arrays:
            if arrays["version"].tolist() != _VERSION or _decode(arrays["identity"]) != shard.identity:
                return None
            return _from_arrays(arrays, shard)
    except Exception:  # whatever NumPy raises for a damaged file: the index is made again
        return None


def _to_arrays(index: ShardIndex, identity: str) -> dict[str, Any]:
    members = index.members
    return {
        "version": np.array(_VERSION),
        "identity": _encode(identity),
        # No name has a NUL, by which tar ends its names.
        "names": _encode("\0".join(index.names)),
        "images": index.images,
        "first": members.first,
        "extensions": _encode("\0".join(members.extensions)),
        "kinds": members.kinds,
        "ranges": members.ranges,
        "starts": members.starts,
        "kept": np.frombuffer(members.kept, np.uint8),
    }


def _from_arrays(arrays: Any, shard: ShardFile) -> ShardIndex:
    members = Members(
        arrays["first"],
        _split(arrays["extensions"]),
        arrays["kinds"],
        arrays["ranges"],
        arrays["starts"],
        arrays["kept"].tobytes(),
    )
    index = ShardIndex((shard.size, shard.mtime_ns), _split(arrays["names"]), arrays["images"], members)
    n, m = len(index.names), len(members.kinds)
    shapes = [index.images.shape, members.first.shape, members.ranges.shape, members.starts.shape]
    whole = all(
        array.dtype == np.int64
        for array in (index.images, members.first, members.kinds, members.ranges, members.starts)
    )
    if not whole or shapes != [(n, 2), (n + 1,), (m, 2), (m,)]:
        raise ValueError("an index of other arrays")
    return index


def _encode(text: str) -> npt.NDArray[np.uint8]:
    return np.frombuffer(text.encode("utf-8", "surrogateescape"), np.uint8)


def _decode(array: npt.NDArray[np.uint8]) -> str:
    return array.tobytes().decode("utf-8", "surrogateescape")


def _split(array: npt.NDArray[np.uint8]) -> list[str]:
    return _decode(array).split("\0") if len(array) else []
