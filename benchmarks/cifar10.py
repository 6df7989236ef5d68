"""CIFAR-10 as image files, for `accuracy`: ``python -m benchmarks.cifar10 DIR`` writes DIR/{train,test}/<class>/*.png.

It is downloaded by torchvision, 170 MB.
"""

import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.torchvision_ops import import_torchvision


def write(images: Iterable[tuple[Any, int]], classes: Sequence[str], folder: Path) -> None:
    """Write PIL images with their targets as <folder>/<class>/<number>.png."""
    for name in classes:
        (folder / name).mkdir(parents=True)
    for number, (image, target) in enumerate(images):
        image.save(folder / classes[target] / f"{number:05}.png")


def main(arguments: list[str]) -> int:
    """Download and write both parts; return the exit code."""
    if len(arguments) != 1:
        print("usage: python -m benchmarks.cifar10 DIR", file=sys.stderr)
        return 2
    cifar10 = import_torchvision("torchvision.datasets").CIFAR10
    with tempfile.TemporaryDirectory() as download:
        for split in ("train", "test"):
            data = cifar10(download, train=split == "train", download=True)
            write(data, data.classes, Path(arguments[0]) / split)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
