"""How close the loader's pixels are to torchvision's, for every transform of torchvision's that it can do instead.

The same files go through the loader and through torchvision, with the random decisions that the loader drew: which
window, which flips, which operations of what strength, which rectangle. So what is left is arithmetic. And the same
files go through the loader on a GPU and on the CPU, where DALI's kernels and nvJPEG stand against the extension's and
libjpeg-turbo.
"""

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.peers import Absent, version
from benchmarks.torchvision_ops import import_torchvision
from fastfeed import DataLoader, ListSource
from fastfeed.data.plan import Plan, draw_augmentations, make_plan
from fastfeed.data.policies import Kind
from fastfeed.data.reading import read_transform
from fastfeed.data.sources import FolderSource
from fastfeed.data.transforms import Transform
from fastfeed.demo.draw import CLASSES, draw_jpeg

SEED = 0
FORMS = ("PIL", "uint8 tensor")  # that torchvision's transforms work on

Transforms = Callable[[Any], list[Any]]  # of the module that they are taken from


@dataclass(frozen=True)
class Row:
    """Transforms that are compared.

    Attributes:
        name: what the row shows.
        before: the transforms of images and bytes.
        after: those of floats in 0 to 1.
        dtype: what is converted to.
        forms: of images, in which torchvision has the transforms.
    """

    name: str
    before: Transforms
    after: Transforms = field(default=lambda t: [])
    dtype: torch.dtype = torch.float32
    forms: tuple[str, ...] = FORMS


@dataclass(frozen=True)
class Difference:
    """Of two ways to the same images, over all pixels and channels, in levels of 255.

    Attributes:
        mean: of the absolute differences.
        bias: mean of the differences.
        largest: absolute difference.
        beyond: share of the values that differ by more than a level.
    """

    mean: float
    bias: float
    largest: float
    beyond: float


def rows(size: int = 96) -> list[Row]:
    """Return every row; images come out `size` pixels high and wide."""

    def window(t: Any) -> Any:
        return t.RandomCrop(size, pad_if_needed=True)  # which leaves pixels as they are

    def step(name: str, make: Transforms, **options: Any) -> Row:
        return Row(name, lambda t: [window(t), *make(t)], **options)

    def bilinear(t: Any) -> Any:
        return t.InterpolationMode.BILINEAR

    def bicubic(t: Any) -> Any:
        return t.InterpolationMode.BICUBIC

    def lanczos(t: Any) -> Any:
        return t.InterpolationMode.LANCZOS

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    sides = (size, size + 8)
    crops = [
        Row("RandomResizedCrop", lambda t: [t.RandomResizedCrop(sides)]),
        Row("RandomResizedCrop, bicubic", lambda t: [t.RandomResizedCrop(size, interpolation=bicubic(t))]),
        Row(
            "RandomResizedCrop, lanczos",
            lambda t: [t.RandomResizedCrop(size, interpolation=lanczos(t))],
            forms=FORMS if _resizes_tensors_by_lanczos() else FORMS[:1],
        ),
        Row("Resize((h, w))", lambda t: [t.Resize(sides)]),
        Row("Resize((h, w)), bicubic", lambda t: [t.Resize(sides, interpolation=bicubic(t))]),
        Row("Resize, CenterCrop", lambda t: [t.Resize(size * 8 // 7), t.CenterCrop(size)]),
        Row("Resize, CenterCrop, bicubic", lambda t: [t.Resize(size, interpolation=bicubic(t)), t.CenterCrop(size)]),
        Row("Resize((h, w)), CenterCrop", lambda t: [t.Resize((size + 9, size + 30)), t.CenterCrop(size)]),
        Row("CenterCrop", lambda t: [t.CenterCrop((size, 2 * size))]),  # of images that are wide enough, and others
        Row("Resize, RandomCrop", lambda t: [t.Resize(size * 8 // 7), t.RandomCrop(size)]),
        Row("Resize((h, w)), RandomCrop", lambda t: [t.Resize((size + 9, size + 30)), t.RandomCrop(size)]),
        Row("RandomCrop, padded", lambda t: [t.RandomCrop(size, padding=4, pad_if_needed=True, fill=128)]),
        Row(
            "flip before Resize((h, w))", lambda t: [t.RandomHorizontalFlip(), t.RandomVerticalFlip(), t.Resize(sides)]
        ),
    ]
    steps = [
        step("RandomHorizontalFlip, RandomVerticalFlip", lambda t: [t.RandomHorizontalFlip(), t.RandomVerticalFlip()]),
        step("Grayscale(3)", lambda t: [t.Grayscale(3)]),
        step("RandomGrayscale", lambda t: [t.RandomGrayscale(0.5)]),
        step("ColorJitter(brightness)", lambda t: [t.ColorJitter(brightness=0.8)]),
        step("ColorJitter(contrast)", lambda t: [t.ColorJitter(contrast=0.8)]),
        step("ColorJitter(saturation)", lambda t: [t.ColorJitter(saturation=0.8)]),
        step("ColorJitter(hue)", lambda t: [t.ColorJitter(hue=0.5)]),
        step("ColorJitter(0.4, 0.4, 0.4, 0.1)", lambda t: [t.ColorJitter(0.4, 0.4, 0.4, 0.1)]),
        step("GaussianBlur", lambda t: [t.GaussianBlur((5, 9), (0.1, 3.0))]),
        step("RandomInvert", lambda t: [t.RandomInvert()]),
        step("RandomPosterize", lambda t: [t.RandomPosterize(3)]),
        step("RandomSolarize", lambda t: [t.RandomSolarize(127.5)]),
        step("RandomAdjustSharpness", lambda t: [t.RandomAdjustSharpness(2.5)]),
        step("RandomAutocontrast", lambda t: [t.RandomAutocontrast()]),
        step("RandomEqualize", lambda t: [t.RandomEqualize()]),
        step("RandomApply", lambda t: [t.RandomApply([t.ColorJitter(0.4), t.GaussianBlur(7), t.RandomInvert()])]),
        step("AutoAugment", lambda t: [t.AutoAugment(fill=[10, 200, 33])]),
        step("RandAugment", lambda t: [t.RandAugment()]),
        step("TrivialAugmentWide", lambda t: [t.TrivialAugmentWide()]),
        step("AutoAugment, bilinear", lambda t: [t.AutoAugment(interpolation=bilinear(t), fill=[10, 200, 33])]),
        step("RandAugment, bilinear", lambda t: [t.RandAugment(interpolation=bilinear(t))]),
        step("TrivialAugmentWide, bilinear", lambda t: [t.TrivialAugmentWide(interpolation=bilinear(t))]),
    ]
    floats = [
        step("ToTensor", lambda t: []),
        step("Normalize", lambda t: [], after=lambda t: [t.Normalize(mean, std)]),
        step("Normalize, float16", lambda t: [], after=lambda t: [t.Normalize(mean, std)], dtype=torch.float16),
        step("Normalize, bfloat16", lambda t: [], after=lambda t: [t.Normalize(mean, std)], dtype=torch.bfloat16),
        step("RandomErasing", lambda t: [], after=lambda t: [t.RandomErasing(1.0, value=(0.1, 0.5, 1))]),
        step(
            "RandomErasing, Normalize",
            lambda t: [],
            after=lambda t: [t.RandomErasing(1.0, value=0.5), t.Normalize(mean, std)],
        ),
        Row("ToTensor, RandomCrop", lambda t: [], lambda t: [window(t)]),
    ]
    return crops + steps + floats


def _resizes_tensors_by_lanczos() -> bool:
    """Whether torchvision's tensors can be: it asks PyTorch, which learnt to after 2.11, and names its modes there."""
    return "lanczos" in (torch.nn.functional.interpolate.__doc__ or "")


def measure(row: Row, paths: Sequence[str]) -> dict[str, Difference]:
    """Return how the loader's images differ from torchvision's, for each form that its transforms work on.

    Raises:
        ModuleNotFoundError: where torchvision is not installed.
        Unreadable: for a row that cannot be done.
    """
    return {form: _measure(row, paths, form) for form in row.forms}


def _measure(row: Row, paths: Sequence[str], form: str) -> Difference:
    pipeline, module, functional = _pipeline(row, form)
    transform, dtype = read_transform(module.Compose(pipeline))
    ours = _load(transform, dtype, paths, torch.device("cpu"))
    images = [Image.open(path).convert("RGB") for path in paths]
    sizes = np.array([(image.height, image.width) for image in images], np.int64)
    index, copies = np.arange(len(paths)), np.zeros(len(paths), np.int64)
    plan = make_plan(transform, sizes, index, copies, seed=SEED, epoch=0)
    drawn = draw_augmentations(transform, plan, index, copies, seed=SEED, epoch=0, size=transform.size)
    is_resized = getattr(transform.crop, "resize", None) is not None
    theirs = []
    for i, image in enumerate(images):
        operations = []
        if drawn is not None:
            operations = list(zip(drawn.kind[i], drawn.magnitude[i], drawn.kernel_size[i], strict=True))
        decisions = _Decisions(plan.at(np.array([i])), operations, tuple(sizes[i]), is_resized)
        theirs.append(_replay(pipeline, functional, image, decisions))
    return _difference(ours, torch.stack(theirs), transform)


def measure_on(device: torch.device, row: Row, paths: Sequence[str]) -> Difference:
    """Return how the loader's images on a device differ from those on the CPU.

    Raises:
        ModuleNotFoundError, Unreadable: as `measure`.
    """
    pipeline, module, _ = _pipeline(row, row.forms[0])
    transform, dtype = read_transform(module.Compose(pipeline))
    there, here = (_load(transform, dtype, paths, where) for where in (device, torch.device("cpu")))
    return _difference(there.cpu(), here, transform)


def _load(transform: Transform, dtype: torch.dtype, paths: Sequence[str], device: torch.device) -> torch.Tensor:
    source = ListSource(paths, [0] * len(paths))
    ((images, _),) = DataLoader(source, len(paths), transform=transform, dtype=dtype, device=device, seed=SEED)
    return images


def _difference(ours: torch.Tensor, theirs: torch.Tensor, transform: Transform) -> Difference:
    levels = 255 / transform.white * torch.tensor(transform.std)[:, None, None]
    difference = ((ours.float() - theirs.float()) * levels).double()
    return Difference(
        difference.abs().mean().item(),
        difference.mean().item(),
        difference.abs().max().item(),
        (difference.abs() > 1.001).double().mean().item(),
    )


def _pipeline(row: Row, form: str) -> tuple[list[Any], Any, Any]:
    """Return the transforms of a row, the module that they are of, and its functions."""
    if form == "PIL":
        t = import_torchvision("torchvision.transforms")
        convert = [] if row.dtype == torch.float32 else [t.ConvertImageDtype(row.dtype)]
        pipeline = [*row.before(t), t.ToTensor(), *convert, *row.after(t)]
    else:
        t = import_torchvision("torchvision.transforms.v2")
        pipeline = [t.ToImage(), *row.before(t), t.ToDtype(row.dtype, scale=True), *row.after(t)]
    return pipeline, t, t.functional


@dataclass
class _Decisions:
    """What the loader drew for an image.

    Attributes:
        plan: of N = 1.
        operations: kinds, magnitudes and kernel sizes, of which those that are done are taken away.
        stored: height and width of the image in its file.
        is_resized: whether a window is one of the resized image.
    """

    plan: Plan
    operations: list[tuple[int, float, Any]]
    stored: tuple[int, int]
    is_resized: bool


def _replay(pipeline: Sequence[Any], functional: Any, image: Any, decisions: _Decisions) -> torch.Tensor:
    """Do what a pipeline of torchvision's does, with the loader's decisions."""
    for transform in pipeline:
        random = _RANDOM.get(type(transform).__name__)
        image = transform(image) if random is None else random(transform, functional, image, decisions)
    return image


def _random_resized_crop(crop: Any, functional: Any, image: Any, decisions: _Decisions) -> Any:
    (top, left), (height, width) = decisions.plan.start[0].tolist(), decisions.plan.shape[0].tolist()
    size = list(crop.size)
    return functional.resized_crop(image, top, left, height, width, size, crop.interpolation, antialias=crop.antialias)


def _random_crop(crop: Any, functional: Any, image: Any, decisions: _Decisions) -> Any:
    plan, stored, now = decisions.plan, np.array(decisions.stored), np.array(functional.get_dimensions(image)[1:])
    corner = plan.start[0] - plan.place[0, :2]
    if decisions.is_resized:  # before, in which case the plan has what of the stored image is needed
        corner = np.rint((plan.start[0] + plan.box[0, :2]) * now / stored).astype(int)
    (top, left), (height, width) = corner.tolist(), crop.size
    around = max(height, width)
    padded = functional.pad(image, [around], crop.fill)
    return functional.crop(padded, top + around, left + around, height, width)


def _flip(transform: Any, functional: Any, image: Any, decisions: _Decisions) -> Any:
    """Do one flip: that of the plan, or, where flips are operations, the next of these."""
    across = type(transform).__name__ == "RandomHorizontalFlip"
    flipped = bool(decisions.plan.flip[0] & (1 if across else 2))
    return (functional.hflip if across else functional.vflip)(image) if flipped else image


def _steps(transform: Any, functional: Any, image: Any, decisions: _Decisions) -> Any:
    """Do all operations, where the first step stands."""
    options = {name: getattr(transform, name) for name in ("fill", "interpolation") if hasattr(transform, name)}
    while decisions.operations:
        kind, magnitude, kernel_size = decisions.operations.pop(0)
        if kind == Kind.GAUSSIAN_BLUR:
            image = functional.gaussian_blur(image, kernel_size[::-1].tolist(), [float(magnitude)] * 2)
        else:
            image = _operate(functional, image, Kind(kind), float(magnitude), options)
    return image


def _erase(erasing: Any, functional: Any, image: Any, decisions: _Decisions) -> Any:
    top, left, height, width = decisions.plan.erase[0].tolist()
    value = torch.tensor(erasing.value, dtype=image.dtype).reshape(-1, 1, 1)
    return functional.erase(image, top, left, height, width, value)


_RANDOM = {
    "RandomResizedCrop": _random_resized_crop,
    "RandomCrop": _random_crop,
    "RandomHorizontalFlip": _flip,
    "RandomVerticalFlip": _flip,
    "RandomErasing": _erase,
    **dict.fromkeys(
        (
            *("RandomGrayscale", "ColorJitter", "GaussianBlur", "RandomInvert", "RandomPosterize", "RandomSolarize"),
            *("RandomAdjustSharpness", "RandomAutocontrast", "RandomEqualize", "RandomApply"),
            *("AutoAugment", "RandAugment", "TrivialAugmentWide"),
        ),
        _steps,
    ),
}

_FACTORS = {
    Kind.BRIGHTNESS: "adjust_brightness",
    Kind.CONTRAST: "adjust_contrast",
    Kind.SATURATION: "adjust_saturation",
    Kind.HUE: "adjust_hue",
    Kind.SHARPNESS: "adjust_sharpness",
    Kind.SOLARIZE: "solarize",
}
_PLAIN = {
    Kind.HORIZONTAL_FLIP: "hflip",
    Kind.VERTICAL_FLIP: "vflip",
    Kind.AUTOCONTRAST: "autocontrast",
    Kind.EQUALIZE: "equalize",
    Kind.INVERT: "invert",
}


def _operate(functional: Any, image: Any, kind: Kind, magnitude: float, options: dict[str, Any]) -> Any:
    """Do one operation as torchvision's transforms do it; `options` are those of geometry."""
    if kind == Kind.NOTHING:
        return image
    if kind in _FACTORS:
        return getattr(functional, _FACTORS[kind])(image, magnitude)
    if kind in _PLAIN:
        return getattr(functional, _PLAIN[kind])(image)
    if kind == Kind.GRAYSCALE:
        return functional.rgb_to_grayscale(image, 3)
    if kind == Kind.POSTERIZE:
        return functional.posterize(image, int(magnitude))
    if kind == Kind.ROTATE:
        return functional.rotate(image, magnitude, **options)
    still = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0], **options}
    changed: dict[Kind, Callable[[], dict[str, Any]]] = {
        Kind.SHEAR_X: lambda: {"shear": [math.degrees(math.atan(magnitude)), 0.0], "center": [0, 0]},
        Kind.SHEAR_Y: lambda: {"shear": [0.0, math.degrees(math.atan(magnitude))], "center": [0, 0]},
        Kind.TRANSLATE_X: lambda: {"translate": [int(magnitude), 0]},
        Kind.TRANSLATE_Y: lambda: {"translate": [0, int(magnitude)]},
    }
    return functional.affine(image, **{**still, **changed[kind]()})


def draw_images(folder: Path, count: int) -> list[str]:
    """Draw JPEG files, and return their paths."""
    paths = []
    for i in range(count):
        path = folder / f"{i:03}.jpg"
        path.write_bytes(draw_jpeg(0, "train", CLASSES[i % len(CLASSES)], i // len(CLASSES)))
        paths.append(str(path))
    return paths


def table(data: Path | None = None, count: int = 64, device: torch.device | None = None) -> str:
    """Measure every row, and return a table in Markdown.

    Args:
        data: a folder of class folders, whose first files are taken; by default, drawn ones.
        count: of the images.
        device: the CPU, to compare with torchvision; a GPU, to compare with the CPU.

    Raises:
        Absent: where torchvision is not installed.
    """
    try:
        import_torchvision()
    except ModuleNotFoundError:
        raise Absent('torchvision is not installed: pip install ".[peers]"') from None
    on_gpu = device is not None and device.type == "cuda"
    with tempfile.TemporaryDirectory() as scratch:
        paths = draw_images(Path(scratch), count) if data is None else _some_of(data, count)
        if on_gpu:
            found = {row.name: [measure_on(device, row, paths)] for row in rows()}
        else:
            found = {row.name: [measure(row, paths).get(form) for form in FORMS] for row in rows()}
    images = f"{len(paths)} {'drawn images' if data is None else 'photographs'}"
    versions = f"PyTorch {torch.__version__}, "
    if on_gpu:
        what = f"On {torch.cuda.get_device_name(device)} minus on the CPU"
        versions += f"DALI {version('nvidia-dali-cuda130', 'nvidia-dali-cuda120')}"
        heads = ["mean"]
    else:
        what = "Ours minus torchvision's"
        versions = f"torchvision {version('torchvision')}, {versions}Pillow {version('pillow')}"
        heads = [f"{form}: mean" for form in FORMS]
    return "\n".join(
        [
            f"{what}, in levels of 255, of {images}. {versions}.",
            "",
            "| | " + " | ".join(f"{head} | bias | largest | beyond 1" for head in heads) + " |",
            "|---|" + "--:|--:|--:|--:|" * len(heads),
            *(_line(name, differences) for name, differences in found.items()),
            "",
        ]
    )


def _some_of(folder: Path, count: int) -> list[str]:
    samples = FolderSource(folder).samples
    return [path for path, _ in samples[:: max(1, len(samples) // count)][:count]]


def _line(name: str, differences: Sequence[Difference | None]) -> str:
    cells = [
        "- | - | - | -" if d is None else f"{d.mean:.3f} | {d.bias:+.3f} | {d.largest:.1f} | {d.beyond:.2%}"
        for d in differences
    ]
    return f"| {name} | {' | '.join(cells)} |"
