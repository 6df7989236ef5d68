"""FFCV, from a file of its own format that holds the JPEG files as they are."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.loaders.recipe import FLIP, MEAN_255, RATIO, SCALE, STD_255, Batches, Recipe
from benchmarks.peers import need

INSTALL = 'pip install ".[ffcv]", for which pkg-config must find OpenCV and libturbojpeg'


def loader(recipe: Recipe) -> Batches:
    """Return FFCV's batches, of which each lies in the memory of one some batches before it."""
    threads = torch.get_num_threads()
    try:
        ffcv = need("ffcv", INSTALL)
    finally:
        torch.set_num_threads(threads)  # which the import sets to 1
    decoders, transforms = need("ffcv.fields.decoders"), need("ffcv.transforms")
    if recipe.on_gpu:
        need("cupy", "FFCV normalises with it on a GPU: pip install cupy-cuda13x, or cupy-cuda12x")
    targets = dict(recipe.source.samples)  # of each file, once
    file = recipe.scratch / ("train.beton" if recipe.train else "evaluation.beton")
    if not file.exists():
        write(file, list(targets.items()), recipe.threads)

    size = (recipe.size, recipe.size)
    images = (
        [decoders.RandomResizedCropRGBImageDecoder(size, SCALE, RATIO), transforms.RandomHorizontalFlip(FLIP)]
        if recipe.train
        else [decoders.CenterCropRGBImageDecoder(size, recipe.size / recipe.resize)]
    )
    labels = [decoders.IntDecoder(), transforms.ToTensor(), transforms.Squeeze(1)]
    normalise = transforms.NormalizeImage(np.array(MEAN_255), np.array(STD_255), np.float32)
    if recipe.on_gpu:
        device = torch.device("cuda", torch.cuda.current_device())
        images += [transforms.ToTensor(), transforms.ToDevice(device), transforms.ToTorchImage(), normalise]
        labels += [transforms.ToDevice(device)]
    else:
        images += [normalise, transforms.ToTensor(), transforms.ToTorchImage()]
    position = {path: i for i, path in enumerate(targets)}
    order = ffcv.loader.OrderOption
    return ffcv.Loader(
        str(file),
        recipe.batch_size,
        num_workers=recipe.threads,
        order=order.RANDOM if recipe.train else order.SEQUENTIAL,
        indices=[position[path] for path, _ in recipe.source.samples],
        pipelines={"image": images, "label": labels},
        custom_fields={"image": need("ffcv.fields").RGBImageField},
    )


def write(file: Path, samples: list[tuple[str, int]], workers: int) -> None:
    """Write a file of FFCV's format.

    Args:
        file: where.
        samples: (path, target) pairs.
        workers: processes that write.
    """
    writer, fields = need("ffcv.writer"), need("ffcv.fields")
    jpeg = int(need("ffcv.fields.rgb_image").IMAGE_MODES["jpg"])
    partial = file.with_suffix(".part")
    columns = {"image": UnchangedJPEG(fields.RGBImageField("jpg"), jpeg), "label": fields.IntField()}
    writer.DatasetWriter(str(partial), columns, num_workers=workers).from_indexed_dataset(samples)
    partial.rename(file)


class UnchangedJPEG:
    """Writes what FFCV reads as its `RGBImageField`, from paths: that field would encode every image anew.

    Args:
        field: a `RGBImageField`, for files that FFCV's decoder does not read.
        mode: what that field calls JPEG.
    """

    def __init__(self, field: Any, mode: int) -> None:
        self._field = field
        self._mode = mode
        self.metadata_type = field.metadata_type
        self.to_binary = field.to_binary

    def encode(self, destination: Any, path: str, malloc: Callable[[int], tuple[int, Any]]) -> None:
        """Write one file into memory that `malloc` gives, and what is known of it to `destination`."""
        with Image.open(path) as image:
            if image.format != "JPEG" or image.mode not in ("RGB", "L"):
                self._field.encode(destination, image.convert("RGB"), malloc)
                return
            destination["width"], destination["height"] = image.size
        data = np.fromfile(path, np.uint8)
        destination["mode"] = self._mode
        destination["data_ptr"], storage = malloc(len(data))
        storage[:] = data
