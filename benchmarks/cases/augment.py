"""Colour and geometry of bytes, between the resize and the last pass."""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from benchmarks.case import Case, Options, largest_error
from benchmarks.peers import Absent
from benchmarks.timing import Run
from fastfeed._extension import extension
from fastfeed.data.augment import augment_, draw_operations
from fastfeed.data.policies import Kind
from fastfeed.data.steps import ColorJitter, GaussianBlur, Step, TrivialAugmentWide
from fastfeed.demo.draw import CLASSES, draw_image

BLUR = 23  # pixels, the kernel's side: a tenth of an image's, as in SimCLR (Chen et al., ICML 2020)

STEPS: dict[str, Step] = {
    "trivial": TrivialAugmentWide(),
    "bilinear": TrivialAugmentWide(interpolation="bilinear"),
    "jitter": ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
    "blur": GaussianBlur(BLUR),
}


def geometry(resample: Image.Resampling) -> dict[Kind, Callable[[Image.Image, float], Image.Image]]:
    """Return what torchvision's transforms call to shear, translate and rotate."""

    def affine(image: Image.Image, *matrix: float) -> Image.Image:  # the pixel at matrix (x, y, 1) goes to (x, y)
        return image.transform(image.size, Image.Transform.AFFINE, matrix, resample)

    def angle(shear: float) -> float:  # by way of degrees, whose roundings are torchvision's
        return math.radians(math.degrees(math.atan(shear)))

    def shear_y(image: Image.Image, rows: float) -> Image.Image:
        return affine(image, 1, 0, 0, math.sin(angle(rows)) / math.cos(angle(rows)), 1, 0)

    return {
        Kind.SHEAR_X: lambda image, columns: affine(image, 1, math.tan(angle(columns)), 0, 0, 1, 0),
        Kind.SHEAR_Y: shear_y,
        Kind.TRANSLATE_X: lambda image, pixels: affine(image, 1, 0, -int(pixels), 0, 1, 0),
        Kind.TRANSLATE_Y: lambda image, pixels: affine(image, 1, 0, 0, 0, 1, -int(pixels)),
        Kind.ROTATE: lambda image, degrees: image.rotate(degrees, resample),
    }


def shift_hue(image: Image.Image, turns: float) -> Image.Image:
    """Return the image with its colours moved around the wheel, as torchvision does it."""
    hue, saturation, value = image.convert("HSV").split()
    shifted = np.array(hue) + np.int32(255 * turns).astype(np.uint8)
    return Image.merge("HSV", (Image.fromarray(shifted), saturation, value)).convert("RGB")


def blur(image: Image.Image, sigma: float) -> Image.Image:
    """Return the image blurred by PyTorch's convolution, as torchvision blurs Pillow's images."""
    offsets = torch.arange(BLUR) - BLUR // 2
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    weights /= weights.sum()
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
    padded = F.pad(pixels, [BLUR // 2] * 4, mode="reflect")
    blurred = F.conv2d(padded, torch.outer(weights, weights).expand(3, 1, BLUR, BLUR), groups=3)
    return Image.fromarray(blurred[0].round().byte().permute(1, 2, 0).numpy())


# What torchvision's transforms call for each operation that these steps draw.
PILLOW: dict[Kind, Callable[[Image.Image, float], Image.Image]] = {
    Kind.NOTHING: lambda image, _: image,
    Kind.BRIGHTNESS: lambda image, factor: ImageEnhance.Brightness(image).enhance(factor),
    Kind.CONTRAST: lambda image, factor: ImageEnhance.Contrast(image).enhance(factor),
    Kind.SATURATION: lambda image, factor: ImageEnhance.Color(image).enhance(factor),
    Kind.HUE: shift_hue,
    Kind.SHARPNESS: lambda image, factor: ImageEnhance.Sharpness(image).enhance(factor),
    Kind.POSTERIZE: lambda image, bits: ImageOps.posterize(image, int(bits)),
    Kind.SOLARIZE: ImageOps.solarize,
    Kind.AUTOCONTRAST: lambda image, _: ImageOps.autocontrast(image),
    Kind.EQUALIZE: lambda image, _: ImageOps.equalize(image),
    **geometry(Image.Resampling.NEAREST),
    Kind.GAUSSIAN_BLUR: blur,
}


class AugmentCase(Case):
    """TrivialAugment, one operation an image, also bilinear, ColorJitter, four, and GaussianBlur: ours and Pillow's.

    Blurs, which Pillow has none of, are PyTorch's convolution in two dimensions, as in torchvision. Pillow takes one
    image at a time, in each of as many threads as ours has, and its results are copied into a batch. Ours works in
    place, on a copy of the images that it makes first. On a GPU DALI does the operations.
    """

    name = "augment"
    direction = "forward"
    baseline = "pillow"
    packages: ClassVar = {"pillow": "pillow"}

    @classmethod
    def parameters(cls, options: Options) -> list[dict[str, Any]]:
        """A batch of ImageNet's usual size, with each of the steps; in a quick run with the first."""
        steps = list(STEPS)[: 1 if options.quick else None]
        return [{"shape": f"{step}-64x224x224x3", "dtype": torch.uint8} for step in steps]

    def __init__(self, options: Options, shape: str, dtype: torch.dtype) -> None:
        if options.device.type == "cuda":
            raise Absent("for CPUs: on a GPU DALI does this, in the graph that decodes")
        step, sides = shape.split("-")
        batch, height, width, _ = map(int, sides.split("x"))
        rng = np.random.default_rng(0)
        drawn = (draw_image(CLASSES[i % len(CLASSES)], rng).resize((width, height)) for i in range(batch))
        self.images = torch.from_numpy(np.stack([np.asarray(image.convert("RGB")) for image in drawn]))
        self.out = torch.empty_like(self.images)
        samples = np.arange(batch)
        self.operations = draw_operations(
            [STEPS[step]], samples, np.zeros_like(samples), seed=0, epoch=0, height=height, width=width
        )
        self.threads = options.threads
        self._executor = ThreadPoolExecutor(options.threads)
        # Reads and writes every value once, if all operations on an image could be done in one pass.
        self.bytes_per_run = 2 * self.images.numel()

    def close(self) -> None:
        """End the threads."""
        self._executor.shutdown()

    def check(self, provider: str) -> float:
        """Compare with Pillow's results, bit for bit; of blurred levels one in a thousand may be the next one.

        Returns:
            The largest difference, in levels of 255.
        """
        expected = self.providers[self.baseline](self)().clone()
        self.out.zero_()
        actual = self.providers[provider](self)()
        blurred = bool((self.operations.kind == Kind.GAUSSIAN_BLUR).any())
        torch.testing.assert_close(actual, expected, rtol=0, atol=1 if blurred else 0)
        different = (actual != expected).double().mean().item()
        if different > 1e-3:
            raise AssertionError(f"{100 * different:.2f}% of the levels differ by one; expected 0.1% at most")
        return largest_error(actual, expected)

    def _pillow(self) -> Run:
        images = [Image.fromarray(image.numpy()) for image in self.images]
        kinds, magnitudes = self.operations.kind.tolist(), self.operations.magnitude.tolist()
        functions = PILLOW | geometry(Image.Resampling.BILINEAR) if self.operations.bilinear else PILLOW

        def augment(image: Image.Image, kinds: list[int], magnitudes: list[float], out: Tensor) -> None:
            for kind, magnitude in zip(kinds, magnitudes, strict=True):
                image = functions[Kind(kind)](image, magnitude)
            out.copy_(torch.from_numpy(np.array(image)))

        def run() -> Tensor:
            list(self._executor.map(augment, images, kinds, magnitudes, self.out))
            return self.out

        return run

    def _fastfeed(self) -> Run:
        pool = extension().Pool(self.threads)

        def run() -> Tensor:
            return augment_(self.out.copy_(self.images), self.operations, pool)

        return run

    providers: ClassVar = {"pillow": _pillow, "fastfeed": _fastfeed}
