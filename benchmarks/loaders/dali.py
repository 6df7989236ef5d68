"""DALI alone: the pipeline of its ImageNet examples."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.loaders.recipe import FLIP, MEAN_255, RATIO, SCALE, STD_255, Batches, Recipe
from benchmarks.peers import need
from fastfeed.data.dali import dali_install_line

AHEAD = 2  # batches in flight: DALI's default


def loader(recipe: Recipe) -> Batches:
    """Return DALI's batches, decoded on the recipe's device."""
    dali = need("nvidia.dali", dali_install_line())
    fn, types = need("nvidia.dali.fn"), need("nvidia.dali.types")
    device = "gpu" if recipe.on_gpu else "cpu"
    decoder = "mixed" if recipe.on_gpu else "cpu"
    paths, targets = map(list, zip(*recipe.source.samples, strict=True))
    pipeline = dali.Pipeline(
        recipe.batch_size,
        num_threads=recipe.threads,
        device_id=torch.cuda.current_device() if recipe.on_gpu else None,
        prefetch_queue_depth=AHEAD,
    )
    with pipeline:
        encoded, labels = fn.readers.file(files=paths, labels=targets, random_shuffle=recipe.train)
        # Rotation by EXIF tags is DALI's default, and nobody else's.
        decoding = {"device": decoder, "output_type": types.RGB, "adjust_orientation": False}
        if recipe.train:
            images = fn.decoders.image_random_crop(
                encoded, random_area=SCALE, random_aspect_ratio=RATIO, num_attempts=10, **decoding
            )
            resizing = {"size": [recipe.size, recipe.size]}
            mirror = fn.random.coin_flip(probability=FLIP)
        else:
            images = fn.decoders.image(encoded, **decoding)
            resizing = {"size": recipe.resize, "mode": "not_smaller"}
            mirror = 0
        images = fn.resize(images, device=device, interp_type=types.INTERP_TRIANGULAR, **resizing)
        images = fn.crop_mirror_normalize(
            images,
            device=device,
            dtype=types.FLOAT,
            output_layout="CHW",
            crop=(recipe.size, recipe.size),
            mean=MEAN_255,
            std=STD_255,
            mirror=mirror,
        )
        pipeline.set_outputs(images, labels.gpu() if recipe.on_gpu else labels)
    pipeline.build()
    return Epochs(pipeline, len(recipe.source) // recipe.batch_size, recipe.device)


class Epochs:
    """A pipeline's batches, by epochs.

    DALI's own iterator begins the next epoch at the end of each: in time of whoever is measured next, and to its own
    advantage when its turn comes. This one leaves the pipeline idle, and otherwise keeps as much in flight.

    Args:
        pipeline: with images and labels, [N, 1], for outputs.
        batches: per epoch; `AHEAD` or more.
        device: of the outputs.
    """

    def __init__(self, pipeline: Any, batches: int, device: torch.device) -> None:
        self._pipeline = pipeline
        self._batches = batches
        self._device = device
        self._started = False

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        # A pipeline's first run is as many as its queue is deep.
        for _ in range(AHEAD if self._started else 1):
            self._pipeline.schedule_run()
        self._started = True
        stream = torch.cuda.current_stream(self._device) if self._device.type == "cuda" else None
        for i in range(self._batches):
            outputs = self._pipeline.share_outputs(cuda_stream=stream)
            images, labels = (torch.from_dlpack(output.as_tensor()) for output in outputs)
            self._pipeline.release_outputs()
            if i + AHEAD < self._batches:
                self._pipeline.schedule_run()
            yield images, labels.squeeze(1).long()
