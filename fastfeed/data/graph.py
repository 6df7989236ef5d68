"""The DALI graph: encoded bytes and explicit windows in, uint8 [N, H, W, 3] out. DALI does the pixels, no more."""

from collections import deque
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastfeed.data.plan import Plan
from fastfeed.data.sources import EncodedBatch


class DecodeError(RuntimeError):
    """An image that cannot be decoded; the message names the file."""


class Graph:
    """Decodes and resizes batches, several of them in flight.

    `submit` any number of batches up to `depth`, take each with `result`, in the same order. A graph that raised
    is not used again.

    Args:
        size: height and width of the output, pixels.
        max_batch_size: of any batch submitted.
        device: the CPU or a CUDA device, with its index.
        threads: DALI's CPU threads.
        depth: batches in flight.

    Raises:
        ImportError: if DALI is not installed.
    """

    def __init__(self, size: int, max_batch_size: int, device: torch.device, threads: int, depth: int) -> None:
        dali = import_dali()
        self._size = size
        self._device = device
        self._depth = depth
        self._in_flight: deque[tuple[EncodedBatch, Plan] | None] = deque()  # None: a filler, not wanted
        self._started = False
        on_gpu = device.type == "cuda"
        self._pipeline = dali.Pipeline(
            max_batch_size,
            num_threads=threads,
            device_id=device.index if on_gpu else None,
            prefetch_queue_depth=depth,
        )
        with self._pipeline:
            encoded, start, shape, roi_start, roi_end = (
                dali.fn.external_source(name=name, dtype=dtype, ndim=1)
                for name, dtype in (
                    ("encoded", dali.types.UINT8),
                    ("start", dali.types.INT32),
                    ("shape", dali.types.INT32),
                    ("roi_start", dali.types.FLOAT),
                    ("roi_end", dali.types.FLOAT),
                )
            )
            images = dali.fn.decoders.image_slice(
                encoded,
                start,
                shape,
                axes=[0, 1],
                device="mixed" if on_gpu else "cpu",
                output_type=dali.types.RGB,
                # Both as torchvision (Pillow) does; DALI's defaults differ. Rotation comes before the window, so
                # a window drawn from the header's size could fall outside the image.
                adjust_orientation=False,
                jpeg_fancy_upsampling=True,
            )
            images = dali.fn.resize(
                images,
                size=[size, size],
                roi_start=roi_start,
                roi_end=roi_end,
                interp_type=dali.types.INTERP_LINEAR,
                antialias=True,
            )
            self._pipeline.set_outputs(images)
        self._pipeline.build()

    def submit(self, batch: EncodedBatch, plan: Plan) -> None:
        """Start work on a batch; returns at once."""
        self._in_flight.append((batch, plan))
        self._feed(batch.data, plan)
        if self._started:
            self._pipeline.schedule_run()
        elif len(self._in_flight) == self._depth:
            # DALI's first run takes as many batches as its queue is deep, so it waits for them, or for `result`.
            self._start()

    def result(self) -> torch.Tensor:
        """Wait for the oldest batch in flight: [N, size, size, 3] uint8 on the graph's device.

        On a GPU the work may still be under way; the tensor is ordered after it on the current stream, and its
        memory is reused only after what that stream does with it.

        Raises:
            DecodeError: naming the file, if an image of the batch cannot be decoded.
        """
        if not self._started:
            assert self._in_flight[-1] is not None, "result() without submit()"
            batch, plan = self._in_flight[-1]
            while len(self._in_flight) < self._depth:  # fewer batches than the queue is deep: repeat the last
                self._in_flight.append(None)
                self._feed(batch.data, plan)
            self._start()
        while (entry := self._in_flight[0]) is None:
            self._take()
        try:
            return self._take()
        except RuntimeError as error:
            raise self._explain(*entry, error) from error

    def drain(self) -> None:
        """Wait for everything in flight and drop it, so that the graph can serve another epoch."""
        while self._started and self._in_flight:
            self._take()

    def _start(self) -> None:
        self._pipeline.schedule_run()
        self._started = True

    def _take(self) -> torch.Tensor:
        self._in_flight.popleft()
        stream = torch.cuda.current_stream(self._device) if self._device.type == "cuda" else None
        (output,) = self._pipeline.share_outputs(cuda_stream=stream)
        images: torch.Tensor = torch.utils.dlpack.from_dlpack(output.as_tensor())
        self._pipeline.release_outputs()
        return images

    def _explain(self, batch: EncodedBatch, plan: Plan, error: RuntimeError) -> DecodeError:
        """Find the image DALI failed on by running each alone; its own message numbers images unreliably."""
        alone = Graph(self._size, 1, self._device, threads=1, depth=1)
        for i, name in enumerate(batch.names):
            one = slice(i, i + 1)
            alone.submit(batch.at(one), plan.at(one))
            try:
                alone._take()
            except RuntimeError:
                return DecodeError(
                    f"cannot decode {name} ({len(batch.data[i])} bytes): the file is truncated or corrupt. Replace or "
                    "remove it"
                )
        return DecodeError(f"DALI failed on a batch of {len(batch.names)} images, {batch.names[0]} the first: {error}")

    def _feed(self, data: list[npt.NDArray[np.uint8]], plan: Plan) -> None:
        self._pipeline.feed_input("encoded", data)
        self._pipeline.feed_input("start", plan.start)
        self._pipeline.feed_input("shape", plan.shape)
        self._pipeline.feed_input("roi_start", plan.roi_start)
        self._pipeline.feed_input("roi_end", plan.roi_end)


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
