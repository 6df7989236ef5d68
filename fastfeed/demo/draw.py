"""A small labelled set of JPEG files, drawn on the spot, so that the demo needs no download.

Eight shapes, one to an image. Only the shape tells the classes apart: foreground and background take their
colours from one distribution, the foreground covers the same share of the image in every class, and every
angle is equally likely. So neither colour nor brightness nor the direction of edges gives the label away,
and a mirrored or quarter-turned image keeps it.

The files are as mixed as a scraped folder: size, quality, chroma subsampling, progressive scans, greyscale,
and EXIF orientation tags, which a reader may obey or ignore.
"""

import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

Points = npt.NDArray[np.float64]  # [V, 2] corners of a polygon, x then y
Part = tuple[Points, int]  # a polygon and what it does to the mask: 255 adds it, 0 cuts it out

FORMAT = 1  # to be raised when the same parameters come to mean other images
MARKER = ".fastfeed-demo.json"
SPLITS = ("train", "val")

_ORIENTATION = 0x0112  # the EXIF tag
_SUPERSAMPLING = 2
_MIN_CONTRAST = 80.0  # in luma, 0..255, between the two colours: a greyscale image keeps it
_LUMA = np.array([0.299, 0.587, 0.114])


# Shapes: the parts of one, around the origin, in units of its own.


def _on_circle(corners: int) -> Points:
    angle = np.arange(corners) * (2 * np.pi / corners)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _box(x0: float, y0: float, x1: float, y1: float) -> Points:
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])


def _checkerboard(rng: np.random.Generator) -> list[Part]:
    n = int(rng.integers(3, 5))
    cells = [(x - n / 2, y - n / 2) for y in range(n) for x in range(n) if (x + y) % 2 == 0]
    return [(_box(x, y, x + 1, y + 1), 255) for x, y in cells]


def _cross(rng: np.random.Generator) -> list[Part]:
    arm = rng.uniform(0.26, 0.4)
    # Three boxes side by side rather than two that overlap, because `_place` adds their areas up.
    return [(_box(-arm, -1, arm, 1), 255), (_box(-1, -arm, -arm, arm), 255), (_box(arm, -arm, 1, arm), 255)]


def _ring(rng: np.random.Generator) -> list[Part]:
    return [(_on_circle(48), 255), (_on_circle(48) * rng.uniform(0.5, 0.75), 0)]


def _star(rng: np.random.Generator) -> list[Part]:
    radius = np.where(np.arange(10) % 2, rng.uniform(0.4, 0.5), 1.0)
    return [(_on_circle(10) * radius[:, None], 255)]


def _stripes(rng: np.random.Generator) -> list[Part]:
    n = int(rng.integers(3, 5))
    pitch = 2 / (n - 0.5)  # n bars and the n - 1 gaps between them, from -1 to 1
    return [(_box(-1, y, 1, y + pitch / 2), 255) for y in -1 + pitch * np.arange(n)]


_SHAPES: dict[str, Callable[[np.random.Generator], list[Part]]] = {
    "checkerboard": _checkerboard,
    "cross": _cross,
    "disc": lambda rng: [(_on_circle(48), 255)],
    "ring": _ring,
    "square": lambda rng: [(_box(-1, -1, 1, 1), 255)],
    "star": _star,
    "stripes": _stripes,
    "triangle": lambda rng: [(_on_circle(3), 255)],
}
CLASSES = tuple(sorted(_SHAPES))  # in the order in which a reader of class folders numbers them


# One image: a foreground surface over a background surface, through a mask.


def _area(polygon: Points) -> float:
    x, y = polygon.T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)


def _place(shape: list[Part], width: int, height: int, rng: np.random.Generator) -> list[Part]:
    """Give a shape its size, stretch, angle and position, in pixels; a large one may stick out a little."""
    # The same area whatever the shape, not the same outline: else a disc would show more foreground than a ring.
    area = sum(_area(polygon) if fill else -_area(polygon) for polygon, fill in shape)
    scale = min(width, height) * np.sqrt(rng.uniform(0.16, 0.28) / area)
    stretch = np.exp(rng.uniform(-0.12, 0.12))
    angle = rng.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    placed = [(polygon * (scale * stretch, scale / stretch) @ turn, fill) for polygon, fill in shape]

    corners = np.concatenate([polygon for polygon, _ in placed])
    first, last = -corners.min(axis=0), (width, height) - corners.max(axis=0)
    position = first + rng.random(2) * (last - first)
    return [(polygon + position, fill) for polygon, fill in placed]


def _strokes(width: int, height: int, rng: np.random.Generator) -> list[Part]:
    """Clutter: up to six straight strokes, in the shape's own two colours, so that colour does not part them."""
    parts: list[Part] = []
    for _ in range(int(rng.integers(0, 7))):
        angle = rng.uniform(0, 2 * np.pi)
        along, across = np.array([(np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))])
        length, thickness = min(width, height) * rng.uniform((0.05, 0.024), (0.3, 0.06))
        start = rng.random(2) * (width, height)
        corners = [start, start + length * along, start + length * along + thickness * across]
        parts.append((np.array([*corners, start + thickness * across]), 255 if rng.random() < 0.6 else 0))
    return parts


def _mask(parts: list[Part], width: int, height: int) -> Image.Image:
    mask = Image.new("L", (width * _SUPERSAMPLING, height * _SUPERSAMPLING))
    pen = ImageDraw.Draw(mask)
    for polygon, fill in parts:
        pen.polygon((polygon * _SUPERSAMPLING).ravel().tolist(), fill=fill)
    return mask.reduce(_SUPERSAMPLING)


def _surface(colour: Points, width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """An uneven surface: a coarse grid of colours around `colour`, enlarged; one of 2x2 is a plain gradient."""
    grid = colour + rng.normal(scale=rng.uniform(4, 22), size=(*rng.integers(2, 9, size=2), 3))
    coarse = Image.fromarray(np.clip(grid, 0, 255).astype(np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def _two_colours(rng: np.random.Generator) -> tuple[Points, Points]:
    while True:
        a, b = rng.uniform(0, 255, size=(2, 3))
        if abs((a - b) @ _LUMA) >= _MIN_CONTRAST:
            return a, b


def draw_image(shape: str, rng: np.random.Generator) -> Image.Image:
    """Draw one RGB image of `shape`, one of ``CLASSES``; its sides are between 72 and 240 pixels."""
    short = rng.uniform(72, 160)
    sides = round(short), round(short * rng.uniform(1, 1.5))
    width, height = sides if rng.random() < 0.5 else sides[::-1]

    front, back = _two_colours(rng)
    foreground, background = _surface(front, width, height, rng), _surface(back, width, height, rng)
    parts = _place(_SHAPES[shape](rng), width, height, rng) + _strokes(width, height, rng)
    image = Image.composite(foreground, background, _mask(parts, width, height))
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.012) * short))

    grain = rng.standard_normal((height, width, 3), dtype=np.float32) * np.float32(rng.uniform(0, 14))
    return Image.fromarray(np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8))


def draw_jpeg(seed: int, split: str, shape: str, number: int) -> bytes:
    """Draw one file of the set; it depends on these four alone, and on the versions of Pillow and NumPy."""
    rng = np.random.default_rng((seed, SPLITS.index(split), CLASSES.index(shape), number))
    image = draw_image(shape, rng)
    if rng.random() < 0.1:
        image = image.convert("L")
    exif = Image.Exif()
    if rng.random() < 0.15:
        exif[_ORIENTATION] = int(rng.integers(1, 9))
    file = io.BytesIO()
    image.save(
        file,
        "JPEG",
        quality=int(rng.integers(60, 96)),
        subsampling=int(rng.integers(0, 3)) if image.mode == "RGB" else -1,
        progressive=bool(rng.random() < 0.25),
        exif=exif.tobytes() if exif else b"",
    )
    return file.getvalue()


# The set.


def _is_drawn(root: Path, parameters: dict[str, int]) -> bool:
    """Whether `root` holds this very set; False if nothing is in its place, FileExistsError if anything else is."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        found = json.loads((root / MARKER).read_text())
    except (OSError, ValueError):
        found = None
    expected = len(CLASSES) * (parameters["train"] + parameters["val"])
    if found == parameters and sum(1 for _ in root.glob("*/*/*.jpg")) == expected:
        return True
    if found is None:
        what = "is not a set drawn by fastfeed"
    elif found == parameters:
        what = "is a set drawn by fastfeed with files missing"
    else:
        what = f"is a set drawn by fastfeed with other parameters: {found}, not {parameters}"
    raise FileExistsError(
        f"{root} {what}. It was left as it is: name a folder that does not exist yet, or remove this one yourself"
    )


def draw_dataset(root: Path, *, train_per_class: int = 256, val_per_class: int = 48, seed: int = 0) -> None:
    """Draw ``root/train/<class>/<number>.jpg`` and ``root/val/<class>/<number>.jpg``, or reuse the set there.

    The same arguments give the same bytes. All files appear at once or, if drawing is interrupted, none.

    Args:
        root: folder to make; its parents are made too.
        train_per_class: training images of each of the eight ``CLASSES``.
        val_per_class: validation images of each.
        seed: 0 or more; another one gives other images.

    Raises:
        FileExistsError: `root` holds anything but a complete set drawn with these arguments. It is left as it is.
        ValueError: `seed` is negative.
    """
    root = Path(root).resolve()
    parameters = {"format": FORMAT, "train": train_per_class, "val": val_per_class, "seed": seed}
    if _is_drawn(root, parameters):
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}-") as scratch:
        staging = Path(scratch, root.name)
        for split in SPLITS:
            for shape in CLASSES:
                folder = staging / split / shape
                folder.mkdir(parents=True)
                for number in range(parameters[split]):
                    (folder / f"{number:04d}.jpg").write_bytes(draw_jpeg(seed, split, shape, number))
        (staging / MARKER).write_text(json.dumps(parameters) + "\n")
        try:
            staging.rename(root)
        except OSError:
            # Another process may have drawn the same set meanwhile, which is as good.
            if not _is_drawn(root, parameters):
                raise
