"""The graph: encoded bytes and explicit windows in, uint8 [N, H, W, 3] out.

DALI decodes the windows. On a GPU it resizes them too; on the CPU, where its resize takes as long as its decoder, the
extension does (`csrc/resample.h`), with Pillow's filter and Pillow's bits.
"""

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from fastfeed._extension import extension
from fastfeed.data.augment import Operations, augment_
from fastfeed.data.plan import Plan
from fastfeed.data.transforms import INTERPOLATIONS, RandomCrop, Transform, rgb_fill

# One grey pixel, as a BMP file: it stands in for an image that cannot be read.
BLANK = np.frombuffer(
    b"BM\x3a\0\0\0\0\0\0\0\x36\0\0\0"  # 58 bytes, the pixels from byte 54
    b"\x28\0\0\0\1\0\0\0\1\0\0\0\1\0\x18\0\0\0\0\0\4\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"  # 1 x 1, 24 bits
    b"\x80\x80\x80\0",
    np.uint8,
)


class Entry:
    """A batch in the graph: what it was given, and which samples turned out to be bad."""

    def __init__(
        self,
        data: list[npt.NDArray[np.uint8]],
        plan: Plan,
        size: tuple[int, int],
        operations: Operations | None = None,
    ) -> None:
        self.data = data
        self.plan = plan
        self.size = size
        self.operations = operations
        self.failed: dict[int, str] = {}  # position in the batch -> reason


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
        max_batch_size: of any batch submitted.
        device: the CPU or a CUDA device, with its index.
        threads: CPU threads, of DALI and of the resampling.
        depth: batches in flight.
        exif: rotate images by their EXIF orientation before anything else.

    Raises:
        ImportError: if DALI is not installed.
    """

    def __init__(
        self, transform: Transform, max_batch_size: int, device: torch.device, threads: int, depth: int, *, exif: bool
    ) -> None:
        self._transform = transform
        self._max_batch_size = max_batch_size
        self._device = device
        self._threads = threads
        self._depth = depth
        self._exif = exif
        self._in_flight: deque[Entry | None] = deque()  # None: a filler, not wanted
        self._started = False
        self._pool = extension().Pool(threads)
        self._recycler = extension().Recycler(3)  # one that is filled, one that is finished, one that is held
        self._pipeline = self._build(max_batch_size, threads, depth)

    def submit(self, entry: Entry) -> None:
        """Start work on a batch; returns at once. At most `depth` batches may be in flight."""
        self._in_flight.append(entry)
        self._feed(self._pipeline, entry)
        if self._started:
            self._pipeline.schedule_run()
        elif len(self._in_flight) == self._depth:
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
            while len(self._in_flight) < self._depth:  # fewer batches than the queue is deep: repeat the last
                self._in_flight.append(None)
                self._feed(self._pipeline, last)
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
        dali = import_dali()
        on_gpu = self._device.type == "cuda"
        pipeline = dali.Pipeline(
            max_batch_size,
            num_threads=threads,
            device_id=self._device.index if on_gpu else None,
            prefetch_queue_depth=depth,
        )

        def given(name: str, dtype: Any) -> Any:
            # Not copied: `Entry` keeps the arrays for as long as the batch is in flight.
            return dali.fn.external_source(name=name, dtype=dtype, ndim=1, no_copy=not on_gpu)

        with pipeline:
            images = dali.fn.decoders.image_slice(
                given("encoded", dali.types.UINT8),
                given("start", dali.types.INT32),
                given("shape", dali.types.INT32),
                axes=[0, 1],
                device="mixed" if on_gpu else "cpu",
                output_type=dali.types.RGB,
                # As torchvision (Pillow) does; DALI's defaults differ.
                adjust_orientation=self._exif,
                jpeg_fancy_upsampling=True,
            )
            if on_gpu:
                images = self._resized(dali, images, given)
            pipeline.set_outputs(images)
        pipeline.build()
        return pipeline

    def _resized(self, dali: Any, images: Any, given: Any) -> Any:
        filters = (dali.types.INTERP_LINEAR, dali.types.INTERP_CUBIC, dali.types.INTERP_LANCZOS3)
        crop = self._transform.crop
        if isinstance(crop, RandomCrop):
            return dali.fn.slice(
                images,
                given("corner", dali.types.INT32),
                given("size", dali.types.INT32),
                axes=[0, 1],
                out_of_bounds_policy="pad",
                fill_values=[float(level) for level in rgb_fill("RandomCrop", crop.fill)],
            )
        return dali.fn.resize(
            images,
            size=given("size", dali.types.FLOAT),
            roi_start=given("roi_start", dali.types.FLOAT),
            roi_end=given("roi_end", dali.types.FLOAT),
            interp_type=filters[INTERPOLATIONS.index(crop.interpolation)],
            antialias=True,
        )

    def _feed(self, pipeline: Any, entry: Entry) -> None:
        plan = entry.plan
        pipeline.feed_input("encoded", entry.data)
        pipeline.feed_input("start", plan.start)
        pipeline.feed_input("shape", plan.shape)
        if self._device.type == "cpu":
            return
        size = np.tile(np.array(entry.size), (len(entry.data), 1))
        if isinstance(self._transform.crop, RandomCrop):
            pipeline.feed_input("corner", -plan.place[:, :2])
            pipeline.feed_input("size", size.astype(np.int32))
        else:
            pipeline.feed_input("size", size.astype(np.float32))
            pipeline.feed_input("roi_start", plan.box[:, :2].astype(np.float32))
            pipeline.feed_input("roi_end", plan.box[:, 2:].astype(np.float32))

    def _start(self) -> None:
        self._pipeline.schedule_run()
        self._started = True

    def _share(self) -> Any:
        stream = torch.cuda.current_stream(self._device) if self._device.type == "cuda" else None
        (output,) = self._pipeline.share_outputs(cuda_stream=stream)
        self._pipeline.release_outputs()  # what `output` refers to stays for as long as it does
        return output

    def _images(self, windows: Any, entry: Entry) -> Images:
        if self._device.type == "cuda":
            return Images(torch.utils.dlpack.from_dlpack(windows.as_tensor()))
        height, width = entry.size
        n = len(entry.data)
        memory = torch.from_numpy(self._recycler.take(n * height * width * 3))
        images = memory[: n * height * width * 3].view(n, height, width, 3)
        then = None
        if (operations := entry.operations) is not None:
            then = partial(augment_, operations=operations, pool=self._pool)
        crop = self._transform.crop
        if isinstance(crop, RandomCrop):
            images.copy_(torch.tensor(rgb_fill("RandomCrop", crop.fill), dtype=torch.uint8, device="cpu"))
            for image, (top, left, h, w), i in zip(images.numpy(), entry.plan.place.tolist(), range(n), strict=True):
                image[top : top + h, left : left + w] = np.asarray(windows[i])[:h, :w]
            return Images(images, None, then)
        addresses = np.fromiter((windows[i].data_ptr() for i in range(n)), np.int64, n)
        shape = entry.plan.shape.astype(np.int64)
        ticket = extension().resample(
            self._pool,
            addresses,
            shape,
            3 * shape[:, 1],
            entry.plan.box,
            images.data_ptr(),
            entry.size,
            Image.Resampling[crop.interpolation.upper()],
            (windows, images),
        )
        return Images(images, ticket, then)

    def _recover(self, entry: Entry, error: RuntimeError) -> None:
        """Find the images that DALI failed on, put `BLANK` in their places, and begin again with what is in flight.

        Each image is run alone, for DALI's own message numbers images unreliably.
        """
        alone = self._build(1, 1, 1)
        failed = {}
        for i in range(len(entry.data)):
            sample = np.array([i])
            one = Entry([entry.data[i]], entry.plan.at(sample), entry.size)
            try:
                self._feed(alone, one)
                alone.schedule_run()
                alone.share_outputs()
                alone.release_outputs()
            except RuntimeError:
                failed[i] = f"the file is truncated or corrupt ({len(entry.data[i])} bytes)"
                alone = self._build(1, 1, 1)
        if not failed:
            raise RuntimeError(f"DALI failed on a batch whose images it can decode one by one: {error}") from error
        for i in failed:
            entry.data[i] = BLANK
            entry.plan.start[i], entry.plan.shape[i] = 0, 1
            entry.plan.box[i] = 0, 0, 1, 1
        entry.failed.update(failed)
        self._rebuild()

    def _rebuild(self) -> None:
        """Begin again with what is in flight in a new pipeline: DALI promises nothing of one that failed."""
        again = [entry for entry in self._in_flight if entry is not None]
        self._pipeline = self._build(self._max_batch_size, self._threads, self._depth)
        self._started = False
        self._in_flight.clear()
        for entry in again:
            self.submit(entry)


def import_dali() -> Any:
    """Return nvidia.dali with fn and types.

    Raises:
        ImportError: with the pip line to install it.
    """
    try:
        import nvidia.dali
        import nvidia.dali.fn
        import nvidia.dali.types
    except ModuleNotFoundError as error:
        if error.name not in ("nvidia", "nvidia.dali"):
            raise
        raise ImportError(f"fastfeed.DataLoader needs NVIDIA DALI. Install it with: {dali_install_line()}") from error
    return nvidia.dali


def dali_install_line() -> str:
    """Return the pip command that installs the DALI that goes with this PyTorch."""
    major = "120" if (torch.version.cuda or "").startswith("12.") else "130"
    return f'pip install "nvidia-dali-cuda{major}>=2.4,<3"'
