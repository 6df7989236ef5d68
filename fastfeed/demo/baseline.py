"""What people use today, to compare with: Pillow in PyTorch's workers, step for step as torchvision does it.

The steps are those of torchvision's ImageFolder with RandomResizedCrop, RandomHorizontalFlip, ToTensor and
Normalize, in the same order and at the same cost, written here so that the demo does not need torchvision.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def _uniform(low: float, high: float) -> float:
    # PyTorch's generator, not Python's or NumPy's: it is the one a DataLoader seeds anew in each worker.
    return torch.empty(1).uniform_(low, high).item()


def random_crop_box(
    width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Draw the window of RandomResizedCrop: (left, upper, right, lower), in pixels, inside the image.

    Ten windows are tried, of `scale` of the image's area and `ratio` of width to height. If none fits, the
    largest centred window is taken whose ratio is in range.
    """
    for _ in range(10):
        area = width * height * _uniform(*scale)
        aspect = math.exp(_uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = int(torch.randint(0, height - h + 1, (1,)).item())
            left = int(torch.randint(0, width - w + 1, (1,)).item())
            return left, top, left + w, top + h
    w, h = min(width, round(height * ratio[1])), min(height, round(width / ratio[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


class PillowFolder(Dataset[tuple[Tensor, int]]):
    """Images decoded, cropped, resized and normalised one by one, in fp32, on the CPU.

    Args:
        samples: (path, target) pairs.
        size: height and width of what comes out, pixels.
        scale: share of the image's area that a training crop covers, lowest and highest.
        ratio: a training crop's width by its height, lowest and highest.
        flip: probability of mirroring a training image left to right.
        mean: subtracted from each channel, in units of 0..1.
        std: what each channel is divided by after that.
        train: a random crop, perhaps mirrored; else the short side is resized to ``size * 256 / 224`` and the
            centre cut out.
    """

    def __init__(
        self,
        samples: Sequence[tuple[str, int]],
        size: int,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        train: bool = True,
    ) -> None:
        self.samples = samples
        self.size = size
        self.scale = scale
        self.ratio = ratio
        self.flip = flip
        self.mean = torch.tensor(mean).view(3, 1, 1)
        self.std = torch.tensor(std).view(3, 1, 1)
        self.train = train

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return one sample: [3, size, size] float32, normalised, and its target."""
        path, target = self.samples[index]
        with Image.open(path) as file:
            image = file.convert("RGB")
        image = self._random_crop(image) if self.train else self._centre_crop(image)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        return pixels.to(torch.float32).div_(255).sub_(self.mean).div_(self.std), target

    def _random_crop(self, image: Image.Image) -> Image.Image:
        # Crop, then resize: resize(box=...) in one go would let pixels from outside the window bleed in.
        window = image.crop(random_crop_box(image.width, image.height, self.scale, self.ratio))
        window = window.resize((self.size, self.size), Image.Resampling.BILINEAR)
        if torch.rand(1).item() < self.flip:
            window = window.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return window

    def _centre_crop(self, image: Image.Image) -> Image.Image:
        short = round(self.size * 256 / 224)
        long = short * max(image.size) // min(image.size)
        image = image.resize((short, long) if image.width < image.height else (long, short), Image.Resampling.BILINEAR)
        left, top = round((image.width - self.size) / 2), round((image.height - self.size) / 2)
        return image.crop((left, top, left + self.size, top + self.size))
