"""SPDL: FFmpeg decodes, crops and scales, in threads of this process."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from benchmarks.loaders.recipe import FLIP, MEAN_255, RATIO, SCALE, STD_255, Batches, FinishedOnDevice, Recipe
from benchmarks.peers import Absent, need
from fastfeed.demo.baseline import random_crop_box

Samples = list[tuple[str, int]]  # (path, target) pairs

AHEAD = 3  # batches that wait to be taken: the default of SPDL's own loader

# By default FFmpeg takes one colour for two pixels side by side, where no other loader does.
SCALER = "flags=bilinear+full_chroma_int"


def loader(recipe: Recipe) -> Batches:
    """Return SPDL's batches; on a GPU they are normalised there."""
    io, pipeline = need("spdl.io"), need("spdl.pipeline")
    try:
        need("spdl.io.utils").get_ffmpeg_versions()  # loads FFmpeg, which the imports do not
    except RuntimeError as error:
        raise Absent("SPDL finds no FFmpeg of a version it knows: apt install ffmpeg") from error
    batches = Epochs(io, pipeline, recipe)
    return FinishedOnDevice(batches, recipe.device, normaliser(recipe.device)) if recipe.on_gpu else batches


class Epochs:
    """Batches of a pipeline built anew for each epoch, in which every thread makes a batch of its own.

    Args:
        io: the module spdl.io.
        pipeline: the module spdl.pipeline.
        recipe: what to make.
    """

    def __init__(self, io: Any, pipeline: Any, recipe: Recipe) -> None:
        self._io = io
        self._pipeline = pipeline
        self._recipe = recipe
        self._finish = (lambda images: images) if recipe.on_gpu else normaliser(recipe.device)
        self._copying = ThreadPoolExecutor(1)  # SPDL keeps a CUDA stream for each thread that copies

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        recipe = self._recipe
        builder = self._pipeline.PipelineBuilder().add_source(self._samples())
        order = "completion" if recipe.train else "input"
        builder.pipe(self._load, concurrency=recipe.threads, output_order=order)
        if recipe.on_gpu:
            builder.pipe(self._io.transfer_tensor_h2d, executor=self._copying)
        pipeline = builder.add_sink(AHEAD).build(num_threads=recipe.threads)
        with pipeline.auto_stop():
            yield from pipeline.get_iterator()

    def _samples(self) -> Iterator[Samples]:
        samples, size = self._recipe.source.samples, self._recipe.batch_size
        if self._recipe.train:
            samples = [samples[i] for i in torch.randperm(len(samples)).tolist()]
        return (samples[i : i + size] for i in range(0, len(samples), size))

    def _load(self, samples: Samples) -> tuple[Tensor, Tensor]:
        """Return a batch on the CPU, [N, 3, size, size]: uint8 for a GPU, else normalised."""
        frames = [self._decode(path) for path, _ in samples]
        images = self._io.to_torch(self._io.convert_frames(frames)).permute(0, 3, 1, 2)
        return self._finish(images), torch.tensor([target for _, target in samples])

    def _decode(self, path: str) -> Any:
        packets = self._io.demux_image(path)
        filters = (self._random_crop if self._recipe.train else self._centre_crop)(packets.width, packets.height)
        return self._io.decode_packets(packets, filter_desc=",".join(filters))

    def _random_crop(self, width: int, height: int) -> list[str]:
        left, top, right, bottom = random_crop_box(width, height, SCALE, RATIO)
        size = self._recipe.size
        filters = [f"crop={right - left}:{bottom - top}:{left}:{top}", f"scale={size}:{size}:{SCALER}"]
        return [*filters, *(["hflip"] if torch.rand(1).item() < FLIP else []), "format=rgb24"]

    def _centre_crop(self, width: int, height: int) -> list[str]:
        short, size = self._recipe.resize, self._recipe.size
        long = short * max(width, height) // min(width, height)
        w, h = (short, long) if width < height else (long, short)
        return [f"scale={w}:{h}:{SCALER}", "format=rgb24", f"crop={size}:{size}"]


def normaliser(device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return a function from pixels, [N, 3, H, W], to (pixel / 255 - mean) / std, fp32."""
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (MEAN_255, STD_255))
    return lambda images: images.float().sub_(mean).div_(std)
