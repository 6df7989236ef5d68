"""``fastfeed scan``: finds bad files before a training does."""

import itertools
import os
from collections import deque
from collections.abc import Iterator

import torch

from fastfeed.data.arguments import check_whole, choose_threads
from fastfeed.data.graph import Graph
from fastfeed.data.loader import MAX_PIXELS
from fastfeed.data.order import Batches
from fastfeed.data.prepare import Prepared, Preparer
from fastfeed.data.samplers import Sequential
from fastfeed.data.sources import IMAGE_EXTENSIONS, UNREAD_EXTENSIONS, ListSource, Source, TarSource
from fastfeed.data.sources.folder import all_images
from fastfeed.data.sources.shards import names_shards
from fastfeed.data.transforms import Resize, Transform

_BATCH = 16  # whole photographs are decoded, tens of megabytes each
_IN_FLIGHT = 2  # batches


def find_images(path: str | os.PathLike[str]) -> Source:
    """Return an image, every image under a folder, or those in tar shards, as samples without targets.

    Args:
        path: an image file; a folder of images, nested or not; or what `TarSource` takes for shards: a tar file, or a
            folder of them.

    Raises:
        FileNotFoundError: if it does not exist, or holds no images.
        OSError, ValueError: for shards that `TarSource` cannot read.
    """
    file = os.path.expanduser(path)
    if file.lower().endswith(IMAGE_EXTENSIONS + UNREAD_EXTENSIONS) and os.path.isfile(file):
        return ListSource([file])
    if names_shards(path):
        return TarSource(path, target=None)
    images = all_images(path)
    if not images:
        raise FileNotFoundError(f"no images in {path}. Expected files that end in {', '.join(IMAGE_EXTENSIONS)}")
    return ListSource(images)


def scan(source: Source, *, workers: int = 0, max_pixels: int = MAX_PIXELS) -> Iterator[tuple[str, str | None]]:
    """Read and decode every image once, the whole of it, on the CPU.

    Args:
        source: of the images.
        workers: threads; 0 is one per core.
        max_pixels: more than these make an image bad.

    Yields:
        The name of each sample, in order, and None, or why it cannot be used.

    Raises:
        ValueError: for a negative number of workers, or a max_pixels below 1.
        ImportError: if DALI is not installed.
    """
    check_whole("max_pixels", max_pixels, 1)
    threads = choose_threads("workers", workers)
    transform = Transform(Resize(8))  # which takes all of an image
    preparer = Preparer(source, transform, size=None, max_pixels=max_pixels, exif=False, threads=threads)
    graph = Graph(transform, _BATCH, torch.device("cpu"), threads, _IN_FLIGHT, exif=False)
    under_way: deque[Prepared] = deque()
    picks = Sequential().picks(len(source), None, seed=0, epoch=0)
    # The Nones at the end make room for the last batches.
    for step in itertools.chain(Batches(picks, _BATCH), [None] * _IN_FLIGHT):
        if len(under_way) == _IN_FLIGHT or (step is None and under_way):
            graph.result().wait()
            batch = under_way.popleft()
            bad = batch.all_bad
            yield from ((name, bad.get(i)) for i, name in enumerate(batch.names))
        if step is not None:
            under_way.append(preparer.prepare(0, step, seed=0))
            graph.submit(under_way[-1].entry)
