"""The graph: encoded bytes and explicit windows in, uint8 [N, H, W, 3] out.

DALI decodes the windows. On a GPU it resizes them too; on the CPU, where its resize takes as long as its decoder, the
extension does (`csrc/resample.h`), with Pillow's filter and Pillow's bits.
"""

import ctypes
import os
import weakref
import zlib
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from fastfeed._extension import extension
from fastfeed.data.augment import augment_
from fastfeed.data.pipeline import BLANK, Entry, build_pipeline, feed
from fastfeed.data.plan import blank
from fastfeed.data.transforms import Transform, padding_fill

# A fork copies DALI without its threads: to shut a pipeline down in the child, as DALI does when the interpreter ends,
# would wait for them for ever, or crash. So the child's copies are taken from DALI's hands and never destroyed.
_alive: "weakref.WeakSet[Graph]" = weakref.WeakSet()


def _keep_lost_pipelines() -> None:
    for graph in list(_alive):
        lost = getattr(graph.pipeline, "_pipe", None)  # what DALI would shut down; it has no public way to leave it
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(lost))
        graph.pipeline._pipe = None


os.register_at_fork(after_in_child=_keep_lost_pipelines)


class Images:
    """The pixels of a batch: [N, H, W, 3] uint8, complete after `wait`."""

    def __init__(
        self, images: torch.Tensor, ticket: Any = None, then: Callable[[torch.Tensor], Any] | None = None
    ) -> None:
        self._images = images
        self._ticket = ticket
        self._then = then

    def wait(self) -> torch.Tensor:
        """Return the pixels, once they are made; on a GPU, ordered on the current stream."""
        if self._ticket is not None:
            self._ticket.wait()
        if self._then is not None:
            self._then(self._images)
        return self._images


class Graph:
    """Decodes and resizes batches, several of them in flight.

    `submit` batches, take each with `result`, in the same order. All in one thread. A batch in which images cannot be
    decoded costs time, but no other sample: the bad ones become `BLANK`.

    Args:
        transform: whose crop decides how windows become the output.
        max_batch_size: of the batches that are submitted. A larger one is taken too, at the price of another build.
        device: the CPU or a CUDA device, with its index.
        threads: CPU threads, of DALI and of the resampling.
        depth: batches in flight.
        exif: rotate images by their EXIF orientation before anything else.
        whole: whether DALI resizes and augments too; by default on a GPU.
        views: of each sample.

    Raises:
        ImportError: if DALI is not installed.
    """

    def __init__(
        self,
        transform: Transform,
        max_batch_size: int,
        device: torch.device,
        threads: int,
        depth: int,
        *,
        exif: bool = False,
        whole: bool | None = None,
        views: int = 1,
    ) -> None:
        self._transform = transform
        self.max_batch_size = max_batch_size
        self._device = device
        self._threads = threads
        self.depth = depth
        self._exif = exif
        self._whole = device.type == "cuda" if whole is None else whole
        self._views = views
        self._in_flight: deque[Entry | None] = deque()  # None: a filler, not wanted
        self._started = False
        self._pool = extension().Pool(threads)
        self._recycler = extension().Recycler(3)  # one that is filled, one that is finished, one that is held
        self.pipeline = self._build(max_batch_size, threads, depth)
        _alive.add(self)

    def submit(self, entry: Entry) -> None:
        """Start work on a batch; returns at once. At most `depth` batches may be in flight."""
        if len(entry.data) > self.max_batch_size:  # of a batch sampler, whose sizes nobody knows before
            self.max_batch_size = len(entry.data)
            self._rebuild()
        self._in_flight.append(entry)
        self._feed(self.pipeline, entry)
        if self._started:
            self.pipeline.schedule_run()
        elif len(self._in_flight) == self.depth:
            # DALI's first run takes as many batches as its queue is deep, so it waits for them, or for `result`.
            self._start()

    def result(self) -> Images:
        """Wait until the oldest batch in flight is decoded; it is being resized yet. Its `Entry` says what failed.

        On a GPU the work may still be under way; the tensor is ordered after it on the current stream, and its
        memory is reused only after what that stream does with it.
        """
        if not self._started:
            last = self._in_flight[-1]
            assert last is not None, "result() without submit()"
            while len(self._in_flight) < self.depth:  # fewer batches than the queue is deep: repeat the last
                self._in_flight.append(None)
                self._feed(self.pipeline, last)
            self._start()
        while (entry := self._in_flight[0]) is None:
            self._in_flight.popleft()
            try:
                self._share()
            except RuntimeError:  # nobody wants it
                self._rebuild()
                return self.result()
        try:
            windows = self._share()
        except RuntimeError as error:
            self._recover(entry, error)
            return self.result()
        self._in_flight.popleft()
        return self._images(windows, entry)

    def drain(self) -> None:
        """Drop everything in flight, so that the graph can serve another epoch."""
        failed = False
        try:
            while self._started and self._in_flight:
                self._in_flight.popleft()
                self._share()
        except RuntimeError:  # an image of the batch cannot be decoded, and nobody wants it
            failed = True
        if failed or self._in_flight:
            self._in_flight.clear()
            self._rebuild()

    def _build(self, max_batch_size: int, threads: int, depth: int) -> Any:
        return build_pipeline(
            self._transform,
            max_batch_size * (self._views if self._whole else 1),
            threads,
            depth,
            device_id=self._device.index if self._device.type == "cuda" else None,
            whole=self._whole,
            exif=self._exif,
        )

    def _feed(self, pipeline: Any, entry: Entry) -> None:
        feed(pipeline, self._transform, entry, whole=self._whole)

    def _start(self) -> None:
        self.pipeline.schedule_run()
        self._started = True

    def _share(self) -> Any:
        stream = torch.cuda.current_stream(self._device) if self._device.type == "cuda" else None
        (output,) = self.pipeline.share_outputs(cuda_stream=stream)
        self.pipeline.release_outputs()  # what `output` refers to stays for as long as it does
        return output

    def _images(self, windows: Any, entry: Entry) -> Images:
        if self._whole:
            return Images(torch.utils.dlpack.from_dlpack(windows.as_tensor()))
        height, width = entry.size
        n, views = len(entry.plan.start), entry.views
        try:
            memory = torch.from_numpy(self._recycler.take(n * height * width * 3))
        except MemoryError as error:
            size = n * height * width * 3 / 2**30
            raise MemoryError(
                f"there is no memory for {n} images of {height} x {width} pixels: {size:.1f} GiB"
            ) from error
        images = memory[: n * height * width * 3].view(n, height, width, 3)
        then = None
        if (operations := entry.operations) is not None:
            then = partial(augment_, operations=operations, pool=self._pool)
        addresses = np.repeat(np.array([windows[i].data_ptr() for i in range(len(entry.data))], np.int64), views)
        shape = entry.plan.shape.astype(np.int64)
        given = (self._pool, addresses, shape, 3 * shape[:, 1])
        output = (images.data_ptr(), entry.size)
        plan, keep = entry.plan, (windows, images)
        if (fill := padding_fill(self._transform.crop)) is not None:
            ticket = extension().place(*given, plan.place.astype(np.int64), *output, fill, keep)
        else:
            boxes = plan.whole * np.array([0.0, 0.0, 1.0, 1.0])  # all of it
            ticket = extension().resample(*given, boxes, *output, plan.filter, keep, plan.whole, plan.resized)
        return Images(images, ticket, then)

    def _recover(self, entry: Entry, error: RuntimeError) -> None:
        """Find the images that DALI failed on, put `BLANK` in their places, and begin again with what is in flight.

        Each image is run alone, for DALI's own message numbers images unreliably.
        """
        alone = self._build(1, 1, 1)
        failed, unreadable = {}, {}
        for i, data in enumerate(entry.data):
            if self._can_decode(alone, entry.one(i)):
                continue
            failed[i] = f"the file is truncated or corrupt ({len(data)} bytes)"
            alone = self._build(1, 1, 1)
            # Decoders go from the top left: what fails there fails in every window, and need not be tried again.
            corner = entry.one(i)
            blank(corner.plan, corner.rows([0]))
            if not self._can_decode(alone, corner):
                unreadable[i] = zlib.crc32(data.data)
                alone = self._build(1, 1, 1)
        if not failed:
            raise RuntimeError(f"DALI failed on a batch whose images it can decode one by one: {error}") from error
        positions = list(failed)
        blank(entry.plan, entry.rows(positions))
        for i in positions:
            entry.data[i] = BLANK
        # A GPU without memory, say, fails on any image, and the files are not to blame.
        if not self._can_decode(alone, entry.one(positions[0])):
            raise RuntimeError(f"DALI failed on a batch, and on an image that is known to be good: {error}") from error
        entry.failed.update(failed)
        entry.unreadable.update(unreadable)
        self._rebuild()

    def _can_decode(self, pipeline: Any, entry: Entry) -> bool:
        try:
            self._feed(pipeline, entry)
            pipeline.schedule_run()
            pipeline.share_outputs()
            pipeline.release_outputs()
        except RuntimeError:
            return False
        return True

    def _rebuild(self) -> None:
        """Begin again with what is in flight in a new pipeline: DALI promises nothing of one that failed."""
        again = [entry for entry in self._in_flight if entry is not None]
        self.pipeline = self._build(self.max_batch_size, self._threads, self.depth)
        self._started = False
        self._in_flight.clear()
        for entry in again:
            self.submit(entry)
