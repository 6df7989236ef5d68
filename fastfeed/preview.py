"""``fastfeed preview``: a contact sheet of training batches, so that people see what they train on."""

import itertools
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont

from fastfeed.data.arguments import check_whole
from fastfeed.data.loader import DataLoader
from fastfeed.data.mix import MixedTarget
from fastfeed.data.sources import FolderSource, Source, TarSource
from fastfeed.data.sources.shards import names_shards
from fastfeed.data.transforms import Transform

_FONT_SIZE, _LINE, _GAP = 13, 16, 6  # pixels: of the labels' letters, of their lines, and between cells
_NARROWEST = 96  # pixels of a cell, so that there is room for a label: smaller images are enlarged
_INK, _PAPER = (20, 20, 20), (250, 250, 250)


def find_labelled_images(path: str | os.PathLike[str]) -> Source:
    """Return the samples of a folder of class folders, or of tar shards.

    The classes of shards are those of their .cls members; or, where there are none, the folders in them.

    Raises:
        FileNotFoundError, NotADirectoryError, OSError: as `FolderSource` and `TarSource`.
        ValueError: as `TarSource`, and for shards without classes.
    """
    if not names_shards(path):
        return FolderSource(path)
    unlabelled = TarSource(path, target=None)
    return TarSource(path, target="cls" if "cls" in unlabelled.extensions else "folder")


def contact_sheet(loader: DataLoader, count: int = 32, columns: int = 8) -> Image.Image:
    """Draw the first images of a loader's next epoch as the network gets them, each with its label.

    Normalising is undone; what is erased has the colour that it is erased with, by default the mean. A mixed image has
    two labels, with their weights. With `tta` every view of a sample is an image, and its number stands before its
    label.

    Args:
        loader: of images that DALI decodes, with any transform, mix and tta.
        count: images; fewer if the epoch has fewer.
        columns: images side by side.

    Returns:
        An RGB image.

    Raises:
        ValueError: for a count or columns below 1, or a loader that gives no images, or samples instead of batches, or
            batches of PyTorch's workers, in which nobody knows what is an image.
    """
    check_whole("count", count, 1)
    check_whole("columns", columns, 1)
    if loader.backend != "dali":
        raise ValueError("the loader's batches are made by PyTorch's workers; expected images that DALI decodes")
    if loader.batch_size is None and loader.batch_sampler is None:
        raise ValueError("the loader's batch_size is None, and it gives samples; expected one that gives batches")
    pictures: list[npt.NDArray[np.uint8]] = []
    labels: list[list[str]] = []
    for images, target, *_ in loader:
        views = images.shape[1] if images.dim() == 5 else 1  # with tta
        pictures += _levels(images.reshape(-1, *images.shape[-3:]), loader.transform)
        for i in range(len(images)):
            lines = _label(target, i, getattr(loader.dataset, "classes", None))
            labels += [[f"{view}: {lines[0]}", *lines[1:]] for view in range(views)] if views > 1 else [lines]
        if len(pictures) >= count:
            break
    if not pictures:
        raise ValueError("the loader gives no images: `loader.errors` lists those that are bad")
    return _draw(pictures[:count], labels[:count], columns)


def _levels(images: torch.Tensor, transform: Transform) -> list[npt.NDArray[np.uint8]]:
    """Return images as uint8 [H, W, 3]."""
    values = images.float().cpu().permute(0, 2, 3, 1) * torch.tensor(transform.std) + torch.tensor(transform.mean)
    return list((values * (255 / transform.white)).round().clamp(0, 255).to(torch.uint8).numpy())


def _label(target: Any, i: int, classes: list[str] | None) -> list[str]:
    """Return the lines that go below the i-th image of a batch."""
    if not isinstance(target, MixedTarget):
        return [_name(target, i, classes)]
    weights = {_name(target.a, i, classes): float(target.lam[i])}
    other = _name(target.b, i, classes)
    weights[other] = weights.get(other, 0.0) + 1 - float(target.lam[i])
    shares = [(name, weight) for name, weight in weights.items() if weight >= 0.005]
    return [shares[0][0]] if len(shares) == 1 else [f"{weight:.2f} {name}" for name, weight in shares]


def _name(target: Any, i: int, classes: list[str] | None) -> str:
    is_text = isinstance(target, tuple) and isinstance(target[0], str)
    if not isinstance(target, torch.Tensor) and not is_text:
        return ""  # a tree, of which nobody knows what is the label
    value = target[i].tolist() if isinstance(target, torch.Tensor) else target[i]
    if classes is not None and isinstance(value, int) and 0 <= value < len(classes):
        value = classes[value]
    return " ".join(str(value).split())  # in one line


def _draw(pictures: Sequence[npt.NDArray[np.uint8]], labels: Sequence[list[str]], columns: int) -> Image.Image:
    font = ImageFont.load_default(_FONT_SIZE)
    columns = min(columns, len(pictures))
    widest = max(picture.shape[1] for picture in pictures)
    scale = math.ceil(_NARROWEST / widest)
    width = scale * widest + _GAP
    height = scale * max(len(picture) for picture in pictures) + max(map(len, labels)) * _LINE + _GAP
    rows = math.ceil(len(pictures) / columns)
    sheet = Image.new("RGB", (columns * width + _GAP, rows * height + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for (row, column), picture, lines in zip(
        itertools.product(range(rows), range(columns)), pictures, labels, strict=False
    ):
        x, y = _GAP + column * width, _GAP + row * height
        image = Image.fromarray(picture.repeat(scale, axis=0).repeat(scale, axis=1))
        sheet.paste(image, (x, y))
        for number, line in enumerate(lines):
            draw.text((x, y + image.height + number * _LINE), _cut(line, width - _GAP, font), _INK, font)
    return sheet


def _cut(text: str, width: int, font: Any) -> str:
    """Return as much of a text as is no wider, with an ellipsis if that is not all."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text.rstrip()}…"
