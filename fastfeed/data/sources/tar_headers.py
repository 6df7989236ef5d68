"""The members of a tar file, from its headers alone: POSIX.1-2001 (pax), ustar, GNU tar and the format before them."""

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass

from fastfeed.data.sources.shards import ShardFile

_BLOCK = 512
_LARGEST_EXTENSION = 1 << 20  # bytes of a name or of pax records; more is damage
_MOST_LINKS = 40  # on the way to a file, as Linux has it: they may form a ring
_REGULAR = b"07\0"
_WITHOUT_DATA = b"123456"  # links, devices, folders, pipes: a size in their headers counts nothing
_COMPRESSED = {
    b"\x1f\x8b": "gzip -d",
    b"BZh": "bzip2 -d",
    b"\xfd7zXZ\0": "xz -d",
    b"\x28\xb5\x2f\xfd": "zstd -d",
    b"PK\3\4": "unzip",
}


@dataclass(frozen=True)
class TarMember:
    """A file in a tar file: its name, and where its bytes lie."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class _Header:
    name: str
    size: int
    kind: bytes
    link: str


class TarError(ValueError):
    """A file that is no tar file, or a damaged one, or one of a kind that is not read."""


def walk(file: ShardFile) -> Iterator[TarMember]:
    """Yield the regular files of a tar file, in its order; links to other members last, as what they point at.

    Links to something else, folders, pipes and devices are passed over.

    Raises:
        TarError: naming the file and what is wrong.
    """
    found: dict[str, TarMember] = {}
    links: list[tuple[str, str]] = []
    for header, offset in _headers(file):
        kind, name = header.kind, header.name
        if kind == b"1":
            links.append((name, header.link))
        elif kind == b"2":
            links.append((name, posixpath.join(posixpath.dirname(name), header.link)))
        elif (kind in _REGULAR or kind not in b"3456DV") and not name.endswith("/"):
            member = TarMember(name, offset, header.size)
            found[posixpath.normpath(name)] = member
            yield member
    targets = {posixpath.normpath(name): posixpath.normpath(target) for name, target in links}
    for name, target in links:
        end = posixpath.normpath(target)
        for _ in range(_MOST_LINKS):  # a link to a link
            if end in found or end not in targets:
                break
            end = targets[end]
        if end in found:
            yield TarMember(name, found[end].offset, found[end].size)


def _headers(file: ShardFile) -> Iterator[tuple[_Header, int]]:
    """Yield each member's header, with what extensions say put into it, and the offset of its data."""
    at = 0
    lasting: dict[str, str] = {}  # of pax headers for all members that follow
    pax: dict[str, str] = {}  # of those for the next one
    name = link = None  # likewise, of GNU tar
    while True:
        block = file.read_at(at, _BLOCK)
        if len(block) == _BLOCK and not any(block):
            return
        if len(block) < _BLOCK:
            raise TarError(_no_end(file, at, len(block)))
        header = _parse(file, block, at)
        at += _BLOCK
        if header.kind in b"LKxXg":
            data = _extension(file, header, at)
            at += _padded(header.size)
            if header.kind == b"L":
                name = _text(data)
            elif header.kind == b"K":
                link = _text(data)
            elif header.kind == b"g":
                lasting.update(_pax_records(file, data, at))
            else:
                pax = _pax_records(file, data, at)
            continue
        records = {**lasting, **pax}
        if header.kind == b"S" or any(key.startswith("GNU.sparse") for key in records):
            raise TarError(f"{file.path}: {header.name} is stored as a sparse file; pack it without tar --sparse")
        size = header.size
        if "size" in records:
            if not records["size"].isdecimal():
                raise TarError(_damaged(file, at))
            size = int(records["size"])
        header = _Header(
            records.get("path", name or header.name), size, header.kind, records.get("linkpath", link or header.link)
        )
        length = 0 if header.kind in _WITHOUT_DATA else size
        if at + length > file.size:
            raise TarError(
                f"{file.path} is cut short: {header.name} ends at byte {at + length}, and the file at {file.size}. "
                "Fetch or make it again"
            )
        yield header, at
        at += _padded(length)
        pax, name, link = {}, None, None


def _parse(file: ShardFile, block: bytes, at: int) -> _Header:
    expected = _number(block[148:156])
    others = block[:148] + b" " * 8 + block[156:]
    # The oldest programs added the bytes as signed ones.
    if expected != sum(others) and expected != sum(byte - 256 * (byte > 127) for byte in others):
        raise TarError(_not_tar(file, block) if at == 0 else _damaged(file, at))
    size = _number(block[124:136])
    if size is None:
        raise TarError(_damaged(file, at))
    name, kind = _text(block[:100]), block[156:157]
    # GNU tar's own format, which ends its magic in a blank, has other things in the place of the prefix.
    prefix = _text(block[345:500]) if block[257:263] == b"ustar\0" else ""
    return _Header(f"{prefix}/{name}" if prefix else name, size, kind, _text(block[157:257]))


def _number(field: bytes) -> int | None:
    """Return a number in octal digits, or, from GNU tar, in binary; None if it is neither."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    text = field.partition(b"\0")[0].strip()
    if not text:
        return 0
    return int(text, 8) if not text.strip(b"01234567") else None


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _extension(file: ShardFile, header: _Header, at: int) -> bytes:
    data = file.read_at(at, header.size) if header.size <= _LARGEST_EXTENSION else b""
    if len(data) < header.size:
        raise TarError(_damaged(file, at) if header.size > _LARGEST_EXTENSION else _no_end(file, at, len(data)))
    return data


def _pax_records(file: ShardFile, data: bytes, at: int) -> dict[str, str]:
    """Return the records, each "LENGTH KEY=VALUE" and a line feed; the length counts all of it."""
    records = {}
    data, start = data.rstrip(b"\0"), 0
    while start < len(data):
        blank = data.find(b" ", start, start + 10)
        digits = data[start : max(blank, start)]
        end = start + int(digits) if digits.isdigit() else start
        key, equals, value = data[blank + 1 : end].partition(b"=")
        if not equals or not value.endswith(b"\n") or end > len(data):
            raise TarError(_damaged(file, at))
        records[_text(key)] = _text(value[:-1])
        start = end
    return records


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _damaged(file: ShardFile, at: int) -> str:
    return f"{file.path} is damaged: expected a tar header at byte {at}. Fetch or make it again"


def _not_tar(file: ShardFile, block: bytes) -> str:
    for magic, command in _COMPRESSED.items():
        if block.startswith(magic):
            return (
                f"{file.path} is compressed, so its samples cannot be read where they lie. Unpack it to a .tar file, "
                f"with {command}; images hardly get smaller by it"
            )
    return f"{file.path} is not a tar file; expected a folder or a tar shard"


def _no_end(file: ShardFile, at: int, length: int) -> str:
    if at == 0 and length == 0:
        return f"{file.path} is empty; expected a tar file"
    if at == 0:
        return _not_tar(file, file.read_at(0, _BLOCK))
    if length:
        return f"{file.path} is cut short, at byte {file.size}. Fetch or make it again"
    return (
        f"{file.path} has no end-of-archive mark: it was cut short, or its writer was not closed. Fetch or make it "
        f"again; if it is whole, mark its end with: truncate -s +1024 {file.path}"
    )
