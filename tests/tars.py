"""Small tar shards for tests."""

import io
import json
import tarfile

from tests.images import picture


def jpeg(seed, height=24, width=32):
    """Return an encoded picture."""
    file = io.BytesIO()
    picture(height, width, seed=seed).save(file, "JPEG")
    return file.getvalue()


def write_tar(path, members, format=tarfile.PAX_FORMAT):
    """Write a tar file of (name, bytes) pairs and TarInfos."""
    with tarfile.open(path, "w", format=format) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                name, data = member
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def samples(n, start=0):
    """Return the members of n samples, numbered from `start`: a JPEG file and its class each."""
    return [
        (name, data)
        for i in range(start, start + n)
        for name, data in ((f"{i:04}.jpg", jpeg(i, 10 + i, 20)), (f"{i:04}.cls", f"{i % 3}\n".encode()))
    ]


def whole_tar(tmp_path):
    """Write a shard of three samples."""
    return write_tar(tmp_path / "a.tar", samples(3))


def target_tar(tmp_path):
    """Write a shard with members of several kinds; some too large to be kept in the index."""
    members = []
    for i in range(4):
        members += [
            (f"{i}.jpg", jpeg(i)),
            (f"{i}.json", json.dumps({"id": i, "box": [i, i + 0.5], "pad": "x" * 6000 * (i % 2)}).encode()),
            (f"{i}.txt", f"caption {i} 猫".encode()),
            (f"{i}.mask.npy", bytes([i]) * (10 if i < 2 else 5000)),
        ]
    return write_tar(tmp_path / "a.tar", members)


def masks(members):
    """A target made of the members of a sample of `target_tar`."""
    assert sorted(members) == ["json", "mask.npy", "txt"]
    return {"sum": sum(members["mask.npy"]), "size": len(members["mask.npy"])}
