"""Properties of the sources: any names and contents come back from a tar file as Python's tarfile wrote them."""

import io
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fastfeed._extension import extension
from fastfeed.data.sources import TarSource
from fastfeed.data.sources.shards import ShardFile, expand_braces
from fastfeed.data.sources.tar_headers import TarError, walk

NAMES = st.text(st.characters(exclude_characters="\0/.", codec="utf-8"), min_size=1, max_size=120)
FORMATS = st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])


def tar_of(members, format):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


@given(
    keys=st.lists(st.tuples(NAMES, NAMES, st.binary(max_size=1500), st.integers(0, 2**63 - 1)), min_size=1, max_size=6,
                  unique_by=lambda key: key[:2]),
    format=FORMATS,
    data=st.data(),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_what_was_written_is_read(keys, format, data):
    members = []
    for folder, stem, image, label in keys:
        members += [(f"{folder}/{stem}.jpg", image), (f"{folder}/{stem}.cls", str(label).encode())]
    with tempfile.TemporaryDirectory() as root:
        path = Path(root, "a.tar")
        path.write_bytes(tar_of(members, format))
        for _ in range(2):  # from the headers, then from the index
            source = TarSource(path)
            assert [source.name(i) for i in range(len(source))] == [f"{path}: {f}/{s}.jpg" for f, s, _, _ in keys]
            assert source.labels.tolist() == [label for *_, label in keys]
        order = data.draw(st.lists(st.integers(0, len(keys) - 1), max_size=20))
        batch = source.read(np.array(order, np.int64), extension().Pool(2))
        assert [array.tobytes() for array in batch.data] == [keys[i][2] for i in order]
        assert batch.targets.tolist() == [keys[i][3] for i in order]


@given(
    members=st.lists(st.tuples(NAMES, st.binary(max_size=600)), max_size=4, unique_by=lambda member: member[0]),
    format=FORMATS,
    damage=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=4),
    cut=st.none() | st.integers(0, 10**6),
)
@settings(max_examples=150, deadline=None)
def test_damaged_shards_end_in_members_or_an_error(members, format, damage, cut):
    data = bytearray(tar_of(members, format))
    for at, byte in damage:
        data[at % len(data)] = byte
    if cut is not None:
        del data[cut % len(data) :]
    with tempfile.TemporaryDirectory() as root:
        path = Path(root, "a.tar")
        path.write_bytes(data)
        try:
            with ShardFile(str(path), {}) as file:
                found = list(walk(file))
        except TarError as error:
            assert str(path) in str(error)  # noqa: PT017 - either outcome is right, depending on the damage
        else:
            assert all(0 <= member.offset <= member.offset + member.size <= len(data) for member in found)
            if not damage:
                assert [(m.name, bytes(data[m.offset : m.offset + m.size])) for m in found] == members


@given(first=st.integers(0, 300), last=st.integers(0, 300), width=st.integers(1, 5))
def test_ranges_in_braces(first, last, width):
    names = expand_braces(f"a{{{first:0{width}}..{last:0{width}}}}b")
    step = 1 if last >= first else -1
    assert [int(name[1:-1]) for name in names] == list(range(first, last + step, step))
    if width > 1 and max(first, last) < 10 ** (width - 1):
        assert {len(name) for name in names} == {width + 2}
