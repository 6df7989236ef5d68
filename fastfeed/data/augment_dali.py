"""The operations of augment.py as DALI operators, for images that DALI has on a GPU; they run on its CPU backend too.

Pixels are Pillow's, by the same formulas and roundings, with four exceptions. Of a rotated image up to two pixels in
ten thousand, as far from the next one as from their own, are the next one's: DALI warps in fp32. Where pixels of
sheared and rotated images are interpolated, six levels in a thousand are the next one (of noise four in a hundred), and
a pixel at the edge may be inside for the one and outside for the other, one of an image's at most. Equalizing follows
OpenCV, DALI's only rule, which spreads the levels differently. And of a blurred image one level in 100,000 is the next
one, not always the same ones in its mirror image: DALI adds in another order than torchvision and augment.py. On a GPU,
where products and sums are fused, the other operations may differ by a level.
"""

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastfeed.data.augment import Operations
from fastfeed.data.dali import import_dali
from fastfeed.data.policies import POLICIES, Kind, trivial_augment_space
from fastfeed.data.steps import (
    FIXED_KINDS,
    AutoAugment,
    ColorJitter,
    GaussianBlur,
    RandAugment,
    Step,
    TrivialAugmentWide,
    single_steps,
)

_LUMA = (19595, 38470, 7471)  # ITU-R 601-2, in 16 bits of fixed point
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13  # Pillow's ImageFilter.SMOOTH
_WHOLE = 2.0**-10  # of a level: more than DALI's fp32 misses a whole one by


def possible_kinds(steps: Sequence[Step]) -> list[frozenset[Kind]]:
    """Return the kinds that each of the K operations of `draw_operations` can have, apart from `Kind.NOTHING`."""
    slots: list[frozenset[Kind]] = []
    for step in single_steps(steps):
        if isinstance(step, ColorJitter):
            slots += [frozenset(step.ranges())] * len(step.ranges())
        elif isinstance(step, TrivialAugmentWide | RandAugment):  # both choose from the same kinds
            kinds = frozenset(map(Kind, trivial_augment_space(2).kind)) - {Kind.NOTHING}
            slots += [kinds] * (step.num_ops if isinstance(step, RandAugment) else 1)
        elif isinstance(step, AutoAugment):
            slots += [frozenset(pair[i][0] for pair in POLICIES[step.policy]) for i in range(2)]
        elif isinstance(step, GaussianBlur):
            slots.append(frozenset({Kind.GAUSSIAN_BLUR}))
        else:
            slots.append(frozenset({FIXED_KINDS[type(step)]}))
    return slots


def pack(operations: Operations) -> npt.NDArray[np.float32]:
    """Return [N, K, 4] float32: of each operation the kind, the magnitude and the kernel size, for `apply_operations`.

    One input and not three, for DALI has no input that no operator needs, and flips need no magnitude.
    """
    parts = operations.kind[..., None], operations.magnitude[..., None], operations.kernel_size
    return np.concatenate(parts, axis=2, dtype=np.float32)


def apply_operations(
    images: Any,
    operations: Any,
    possible: Sequence[Collection[Kind]],
    fill: tuple[int, int, int],
    *,
    bilinear: bool = False,
) -> Any:
    """Add the operations to a pipeline that is being defined, by a function with ``enable_conditionals=True``.

    Args:
        images: DataNode of uint8 [H, W, 3] on either device; to sharpen, of at least 3 x 3 pixels.
        operations: DataNode of float32 [K, 4] on the CPU: what `pack` returns for each sample.
        possible: for each of the K operations the kinds that it can have: `possible_kinds`. Others do nothing.
        fill: `Operations.fill`.
        bilinear: `Operations.bilinear`.

    Returns:
        DataNode of uint8 [H, W, 3], on the images' device.
    """
    between = _BETWEEN_PIXELS if bilinear else frozenset()
    for slot, kinds in enumerate(possible):
        for kind in sorted(kinds):
            if operations[slot, 0] == int(kind):
                magnitude = operations[slot, 1]
                if kind == Kind.GAUSSIAN_BLUR:
                    images = _gaussian_blur(images, magnitude, operations[slot, 2:])
                elif kind in between:
                    images = _warp_bilinear(images, _GEOMETRY[kind](images, magnitude), fill)
                elif kind in _GEOMETRY:
                    images = _warp_nearest(images, _GEOMETRY[kind](images, magnitude), fill)
                else:
                    images = _OPERATORS[kind](images, magnitude)
    return images


def _horizontal_flip(images: Any, magnitude: Any) -> Any:
    return import_dali().fn.flip(images, horizontal=1, vertical=0)


def _vertical_flip(images: Any, magnitude: Any) -> Any:
    return import_dali().fn.flip(images, horizontal=0, vertical=1)


def _luma(images: Any) -> Any:
    """Return [H, W, 1] int32."""
    dali = import_dali()
    weighted = images * dali.types.Constant(np.array(_LUMA, np.int32), device=images.device)
    summed = dali.fn.reductions.sum(weighted, axes=[2], keep_dims=True, dtype=dali.types.INT32)
    return (summed + 0x8000) // 0x10000


def _double(values: Any) -> Any:
    dali = import_dali()
    return dali.fn.cast(values, dtype=dali.types.FLOAT64)


def _bytes(values: Any) -> Any:
    """Cut off what is no byte, and decimals."""
    dali = import_dali()
    return dali.fn.cast(dali.math.floor(dali.math.clamp(values, 0.0, 255.0)), dtype=dali.types.UINT8)


def _blend(start: Any, images: Any, factor: Any) -> Any:
    dali = import_dali()
    start = dali.fn.cast(start, dtype=dali.types.FLOAT)
    return _bytes(start + factor * (dali.fn.cast(images, dtype=dali.types.FLOAT) - start))


def _grayscale(images: Any, magnitude: Any) -> Any:
    dali = import_dali()
    return dali.fn.cast(_luma(images) + images * 0, dtype=dali.types.UINT8)


def _brightness(images: Any, magnitude: Any) -> Any:
    dali = import_dali()
    return _bytes(magnitude * dali.fn.cast(images, dtype=dali.types.FLOAT))


def _contrast(images: Any, magnitude: Any) -> Any:
    dali = import_dali()
    total = dali.fn.reductions.sum(_luma(images), axes=[0, 1], keep_dims=True, dtype=dali.types.INT64)
    height, width = _sides(images)
    mean = _double(total) / (height * width)
    return _blend(dali.math.floor(mean + 0.5), images, magnitude)


def _saturation(images: Any, magnitude: Any) -> Any:
    return _blend(_luma(images), images, magnitude)


def _sharpness(images: Any, magnitude: Any) -> Any:
    dali = import_dali()
    weights = dali.types.Constant(_SMOOTH, device=images.device)
    smooth = dali.fn.filter(images, weights, mode="valid", dtype=dali.types.FLOAT)
    inner = dali.fn.cast(images[1:-1, 1:-1], dtype=dali.types.FLOAT)
    # Pillow copies the border, where the difference is 0 then.
    shape = images.shape(dtype=dali.types.INT32)
    difference = dali.fn.slice(
        inner - dali.math.floor(smooth + 0.5),
        start=(-1, -1),
        shape=shape[:2],
        axes=(0, 1),
        out_of_bounds_policy="pad",
    )
    smooth = dali.fn.cast(images, dtype=dali.types.FLOAT) - difference
    return _bytes(smooth + magnitude * difference)


def _hue(images: Any, magnitude: Any) -> Any:
    """To HSV in bytes and back, by Pillow's formulas; see csrc/augment.cpp."""
    dali = import_dali()

    def single(values: Any) -> Any:
        return dali.fn.cast(values, dtype=dali.types.FLOAT)

    def modulo(values: Any, divisor: float) -> Any:
        return values - divisor * dali.math.floor(values / divisor)

    r, g, b = (single(images[:, :, c : c + 1]) for c in range(3))
    high, low = dali.math.max(dali.math.max(r, g), b), dali.math.min(dali.math.min(r, g), b)
    spread = dali.math.max(high - low, 1.0)
    red, green, blue = (_double((high - channel) / spread) for channel in (r, g, b))
    is_red, is_green = r == high, (g == high) & (r < high)
    is_blue = (r < high) & (g < high)
    hue = single(is_red * (blue - green) + is_green * (2.0 + red - blue) + is_blue * (4.0 + green - red))
    hue = dali.math.floor(255.0 * _double(single(modulo(_double(hue) / 6.0 + 1.0, 1.0)))) * (high > low)
    saturation = dali.math.floor(255.0 * _double((high - low) / dali.math.max(high, 1.0)))

    shift = 255.0 * _double(magnitude)
    sextants = modulo(hue + _whole(shift), 256.0) * 6.0 / 255.0
    place = modulo(sextants + dali.types.Constant(np.array([5, 3, 1], np.float32), device=images.device), 6.0)
    away = dali.math.clamp(dali.math.min(place, 4.0 - place), 0.0, 1.0)
    return _bytes(high * (1.0 - saturation / 255.0 * away) + 0.5)


def _posterize(images: Any, magnitude: Any) -> Any:
    dali = import_dali()
    step = dali.math.pow(2.0, 8.0 - dali.math.floor(magnitude))
    step = dali.fn.cast(step, dtype=dali.types.UINT8)
    return images // step * step


def _solarize(images: Any, magnitude: Any) -> Any:
    return images ^ (images >= magnitude) * import_dali().types.Constant(255, dtype=import_dali().types.UINT8)


def _invert(images: Any, magnitude: Any) -> Any:
    dali = import_dali()
    return images ^ dali.types.Constant(255, dtype=dali.types.UINT8)


def _autocontrast(images: Any, magnitude: Any) -> Any:
    dali = import_dali()
    low, high = (
        _double(reduce(images, axes=[0, 1], keep_dims=True))
        for reduce in (dali.fn.reductions.min, dali.fn.reductions.max)
    )
    # A channel of one level stays as it is.
    scale = 255.0 / (high - low + 255.0 * (high == low))
    return _bytes(_double(images) * scale - low * (high > low) * scale)


def _gaussian_blur(images: Any, sigma: Any, kernel_size: Any) -> Any:
    dali = import_dali()
    return dali.fn.gaussian_blur(
        images,
        sigma=sigma,
        window_size=dali.fn.cast(kernel_size, dtype=dali.types.INT32),
    )


def _equalize(images: Any, magnitude: Any) -> Any:
    return import_dali().fn.equalize(images)


# Matrices of geometry: the pixel at (x, y) comes from (a x + b y + c, d x + e y + f), where ((a, b, c), (d, e, f)) are
# float64 scalars.
_Rows = tuple[tuple[Any, Any, Any], tuple[Any, Any, Any]]


def _warp_nearest(images: Any, rows: _Rows, fill: tuple[int, int, int]) -> Any:
    dali = import_dali()

    def fixed(value: Any) -> Any:
        return dali.math.floor(value * 65536.0 + 0.5) / 65536.0

    # In Pillow's 16.16 fixed point, or other pixels would be nearest here and there. It rounds at a pixel's centre.
    values = []
    for a, b, c in rows:
        centre = fixed(c + a * 0.5 + b * 0.5)
        a, b = fixed(a), fixed(b)
        values += [a, b, centre - (a + b) * 0.5]
    matrix = _matrix(values)

    def warp(values: Any, value: int) -> Any:
        return dali.fn.warp_affine(values, matrix=matrix, fill_value=value, interp_type=dali.types.INTERP_NN)

    if len(set(fill)) == 1:
        return warp(images, fill[0])
    # DALI fills all channels with one value, so that the levels become distances from those of `fill`.
    levels = dali.types.Constant(np.array(fill, np.int16), device=images.device)
    distances = dali.fn.cast(images, dtype=dali.types.INT16) - levels
    return dali.fn.cast(warp(distances, 0) + levels, dtype=dali.types.UINT8)


def _warp_bilinear(images: Any, rows: _Rows, fill: tuple[int, int, int]) -> Any:
    dali = import_dali()
    matrix = _matrix([value for row in rows for value in row])
    # Without a value to fill with DALI goes on beyond the edges as it is there. Of where that is it asks the nearest
    # pixel, as Pillow does.
    levels = dali.fn.warp_affine(images, matrix=matrix, dtype=dali.types.FLOAT, interp_type=dali.types.INTERP_LINEAR)
    ones = dali.fn.cast(images[:, :, :1] * 0 + 1, dtype=dali.types.UINT8)
    inside = dali.fn.warp_affine(ones, matrix=matrix, fill_value=0, interp_type=dali.types.INTERP_NN)
    filled = (1 - inside) * dali.types.Constant(np.array(fill, np.int32), device=images.device)
    # Cut off, as Pillow does, but not where whole levels came out below themselves.
    return _bytes((levels + _WHOLE) * inside + filled)


def _matrix(values: Sequence[Any]) -> Any:
    dali = import_dali()
    return dali.fn.reshape(dali.fn.cast(dali.fn.stack(*values), dtype=dali.types.FLOAT), shape=(2, 3))


def _shear_x(images: Any, magnitude: Any) -> _Rows:
    shear = _double(magnitude)
    zero = shear * 0.0
    return (zero + 1.0, shear, zero), (zero, zero + 1.0, zero)


def _shear_y(images: Any, magnitude: Any) -> _Rows:
    shear = _double(magnitude)
    zero = shear * 0.0
    return (zero + 1.0, zero, zero), (shear, zero + 1.0, zero)


def _whole(value: Any) -> Any:
    """Round towards 0."""
    dali = import_dali()
    return dali.math.floor(dali.math.abs(value)) * ((value > 0.0) * 2.0 - 1.0)


def _translate_x(images: Any, magnitude: Any) -> _Rows:
    offset = _whole(_double(magnitude))
    zero = offset * 0.0
    return (zero + 1.0, zero, zero - offset), (zero, zero + 1.0, zero)


def _translate_y(images: Any, magnitude: Any) -> _Rows:
    offset = _whole(_double(magnitude))
    zero = offset * 0.0
    return (zero + 1.0, zero, zero), (zero, zero + 1.0, zero - offset)


def _rotate(images: Any, magnitude: Any) -> _Rows:
    dali = import_dali()
    height, width = _sides(images)
    x, y = width * 0.5, height * 0.5
    angle = _double(magnitude) * dali.types.Constant(math.pi / 180, dtype=dali.types.FLOAT64)
    cosine, sine = dali.math.cos(angle), dali.math.sin(angle)
    return (cosine, sine * -1.0, x - x * cosine + y * sine), (sine, cosine, y - x * sine - y * cosine)


def _sides(images: Any) -> tuple[Any, Any]:
    """Return height and width as float64 scalars on the CPU."""
    dali = import_dali()
    shape = images.shape(dtype=dali.types.FLOAT64)
    return shape[0], shape[1]


_OPERATORS: dict[Kind, Callable[[Any, Any], Any]] = {
    Kind.HORIZONTAL_FLIP: _horizontal_flip,
    Kind.VERTICAL_FLIP: _vertical_flip,
    Kind.GRAYSCALE: _grayscale,
    Kind.BRIGHTNESS: _brightness,
    Kind.CONTRAST: _contrast,
    Kind.SATURATION: _saturation,
    Kind.HUE: _hue,
    Kind.SHARPNESS: _sharpness,
    Kind.POSTERIZE: _posterize,
    Kind.SOLARIZE: _solarize,
    Kind.AUTOCONTRAST: _autocontrast,
    Kind.EQUALIZE: _equalize,
    Kind.INVERT: _invert,
}

_GEOMETRY: dict[Kind, Callable[[Any, Any], _Rows]] = {
    Kind.SHEAR_X: _shear_x,
    Kind.SHEAR_Y: _shear_y,
    Kind.TRANSLATE_X: _translate_x,
    Kind.TRANSLATE_Y: _translate_y,
    Kind.ROTATE: _rotate,
}

# Translations are by whole pixels.
_BETWEEN_PIXELS = frozenset({Kind.SHEAR_X, Kind.SHEAR_Y, Kind.ROTATE})
