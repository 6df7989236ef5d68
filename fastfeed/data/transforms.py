"""What the user asks for: declarations only. The plan draws from them, the graph and the last pass obey them."""

from collections.abc import Sequence
from dataclasses import dataclass

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class RandomResizedCrop:
    """A window of random area and aspect ratio, resized to `size` x `size`.

    The rule of ``torchvision.transforms.RandomResizedCrop`` with antialiased bilinear resampling: ten attempts
    to place a window whose area is uniform in `scale` (as a share of the image) and whose width / height is
    log-uniform in `ratio`; if none fits, the largest central window with a ratio in the range. Where the filter
    reaches over the window's edge, DALI repeats the edge pixel and torchvision shortens the filter: the outermost
    output pixels differ, by a few levels on photographs.

    Raises:
        ValueError: for a size, scale or ratio that is not positive, or a range given high end first.
    """

    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        _check_size("size", self.size)
        for name, bounds in (("scale", self.scale), ("ratio", self.ratio)):
            if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1]:
                raise ValueError(f"RandomResizedCrop: {name} is {bounds!r}; expected (low, high) with 0 < low <= high")


@dataclass(frozen=True)
class CenterCrop:
    """The short side resized to `resize` pixels, then the central `size` x `size` window.

    As ``torchvision.transforms``' ``Resize(resize)`` and ``CenterCrop(size)``, antialiased and bilinear, but
    resampled only where the window lies.

    Raises:
        ValueError: for a size that is not positive, or larger than `resize`.
    """

    size: int
    resize: int

    def __post_init__(self) -> None:
        _check_size("size", self.size)
        _check_size("resize", self.resize)
        if self.size > self.resize:
            raise ValueError(
                f"CenterCrop: size is {self.size}, larger than resize, {self.resize}: the window would stick out of "
                "the image. Make resize at least as large as size"
            )


@dataclass(frozen=True)
class Transform:
    """What happens to an image between its file and the batch.

    Args:
        crop: which part of the image, and the output size.
        horizontal_flip: probability, 0 to 1, of mirroring left to right.
        mean: per channel, in units of pixel / 255.
        std: per channel, in units of pixel / 255. Output: (pixel / 255 - mean) / std.

    Raises:
        ValueError: for a probability outside 0 to 1, a mean or std that has not three values, or a zero std.
    """

    crop: RandomResizedCrop | CenterCrop
    horizontal_flip: float = 0.0
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD

    def __post_init__(self) -> None:
        if not 0 <= self.horizontal_flip <= 1:
            raise ValueError(f"Transform: horizontal_flip is {self.horizontal_flip!r}; expected a probability, 0 to 1")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != 3:
                raise ValueError(f"Transform: {name} has {len(values)} values; expected one each for R, G and B")
        if not all(s > 0 for s in self.std):
            raise ValueError(f"Transform: std is {tuple(self.std)}; every value must be positive")


def train(
    size: int = 224,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    horizontal_flip: float = 0.5,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Transform:
    """Random resized crop to [3, size, size], horizontal flip, normalise: the usual ImageNet training recipe."""
    return Transform(RandomResizedCrop(size, scale, ratio), horizontal_flip, mean, std)


def eval(
    size: int = 224,
    *,
    resize: int | None = None,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Transform:
    """Resize the short side to `resize` (default size * 256 / 224), centre crop to [3, size, size], normalise."""
    _check_size("size", size)
    return Transform(CenterCrop(size, resize if resize is not None else round(size * 256 / 224)), 0.0, mean, std)


def _check_size(name: str, value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} is {value!r}; expected a positive whole number of pixels")
