"""The DALI pipelines that the graph runs: windows alone, or whole images."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL.Image import Resampling

from fastfeed.data.augment import Operations
from fastfeed.data.augment_dali import apply_operations, pack, possible_kinds
from fastfeed.data.dali import import_dali
from fastfeed.data.plan import Plan
from fastfeed.data.policies import Kind
from fastfeed.data.steps import common_fill, common_interpolation, mirrors_alike
from fastfeed.data.transforms import Transform, padding_fill

# One grey pixel, as a BMP file: it stands in for an image that cannot be read.
BLANK = np.frombuffer(
    b"BM\x3a\0\0\0\0\0\0\0\x36\0\0\0"  # 58 bytes, the pixels from byte 54
    b"\x28\0\0\0\1\0\0\0\1\0\0\0\1\0\x18\0\0\0\0\0\4\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"  # 1 x 1, 24 bits
    b"\x80\x80\x80\0",
    np.uint8,
)


class Entry:
    """A batch in the graph: what it was given, and which samples turned out to be bad.

    N samples, and V views of each: the plan and the operations have N * V rows, those of a sample together. All views
    of a sample come from the same window of its image.
    """

    def __init__(
        self,
        data: list[npt.NDArray[np.uint8]],
        plan: Plan,
        size: tuple[int, int],
        operations: Operations | None = None,
    ) -> None:
        self.data = data
        self.plan = plan
        self.size = size
        self.operations = operations
        self.failed: dict[int, str] = {}  # position in the batch -> reason
        self.unreadable: dict[int, int] = {}  # position of one that fails in any window -> CRC-32 of its bytes
        self.inputs: dict[str, npt.NDArray[Any]] = {}  # what DALI was given besides

    def one(self, i: int) -> "Entry":
        """Return a batch of one of the samples."""
        rows = self.rows([i])
        operations = None if self.operations is None else self.operations.at(rows)
        return Entry([self.data[i]], self.plan.at(rows), self.size, operations)

    @property
    def views(self) -> int:
        """V."""
        return len(self.plan.start) // len(self.data)

    def rows(self, samples: Sequence[int]) -> npt.NDArray[np.int64]:
        """Return which rows of the plan are those samples' views."""
        return (np.array(samples, np.int64)[:, None] * self.views + np.arange(self.views)).reshape(-1)


def build_pipeline(
    transform: Transform,
    max_batch_size: int,
    threads: int,
    depth: int,
    *,
    device_id: int | None,
    whole: bool,
    exif: bool,
) -> Any:
    """Build a pipeline that decodes windows, and, if it does the whole, resizes and augments them.

    Args:
        transform: whose crop and augmentations decide what there is to be done.
        max_batch_size: of any batch that is fed.
        threads: CPU threads.
        depth: batches in flight.
        device_id: of a GPU, or None for the CPU.
        whole: whether images come out as [H, W, 3] of one size, or windows of theirs.
        exif: rotate images by their EXIF orientation before anything else.

    Raises:
        ImportError: if DALI is not installed.
    """
    dali = import_dali()
    fn, types = dali.fn, dali.types
    on_gpu = device_id is not None
    steps = transform.steps
    kinds, fill = possible_kinds(steps), common_fill(steps)
    bilinear = common_interpolation(steps) == "bilinear"
    if not mirrors_alike(steps):  # see draw_augmentations
        kinds = [frozenset({Kind.HORIZONTAL_FLIP}), frozenset({Kind.VERTICAL_FLIP}), *kinds]

    def given(name: str, dtype: Any, ndim: int = 1) -> Any:
        # Not copied on the CPU: `Entry` keeps the arrays for as long as the batch is in flight.
        return fn.external_source(name=name, dtype=dtype, ndim=ndim, no_copy=not on_gpu)

    def define() -> Any:
        images = fn.decoders.image_slice(
            given("encoded", types.UINT8),
            given("start", types.INT32),
            given("shape", types.INT32),
            axes=[0, 1],
            device="mixed" if on_gpu else "cpu",
            output_type=types.RGB,
            # As torchvision (Pillow) does; DALI's defaults differ.
            adjust_orientation=exif,
            jpeg_fancy_upsampling=True,
        )
        if whole:
            images = _resized(dali, transform, images, given)
        if whole and len(kinds) > 0:
            operations = given("operations", types.FLOAT, 2)
            images = apply_operations(images, operations, kinds, fill, bilinear=bilinear)
        return images

    pipeline = dali.pipeline_def(define, enable_conditionals=whole and len(kinds) > 0)(
        batch_size=max_batch_size, num_threads=threads, device_id=device_id, prefetch_queue_depth=depth
    )
    pipeline.build()
    return pipeline


def _resized(dali: Any, transform: Transform, images: Any, given: Any) -> Any:
    crop = transform.crop
    if (fill := padding_fill(crop)) is not None:
        return dali.fn.slice(
            images,
            given("corner", dali.types.INT32),
            given("size", dali.types.INT32),
            axes=[0, 1],
            out_of_bounds_policy="pad",
            fill_values=[float(level) for level in fill],
        )
    if crop.interpolation == "random":
        interpolation = dali.fn.reinterpret(given("filter", dali.types.INT32, 0), dtype=dali.types.INTERP_TYPE)
    else:
        interpolation = _dali_filter(Resampling[crop.interpolation.upper()])
    return dali.fn.resize(
        images,
        size=given("size", dali.types.FLOAT),
        roi_start=given("roi_start", dali.types.FLOAT),
        roi_end=given("roi_end", dali.types.FLOAT),
        interp_type=interpolation,
        antialias=True,
    )


def _dali_filter(number: int) -> Any:
    types = import_dali().types
    return {
        Resampling.BILINEAR: types.INTERP_LINEAR,
        Resampling.BICUBIC: types.INTERP_CUBIC,
        Resampling.LANCZOS: types.INTERP_LANCZOS3,
    }[Resampling(number)]


def feed(pipeline: Any, transform: Transform, entry: Entry, *, whole: bool) -> None:
    """Give a batch to a pipeline; `whole` as it was built."""
    plan, views = entry.plan, entry.views
    inputs: dict[str, npt.NDArray[Any]]
    if not whole:
        pipeline.feed_input("encoded", entry.data)
        inputs = {name: np.ascontiguousarray(getattr(plan, name)[::views]) for name in ("start", "shape")}
        _feed(pipeline, entry, inputs)
        return
    pipeline.feed_input("encoded", [data for data in entry.data for _ in range(views)])
    size = np.tile(np.array(entry.size), (len(plan.start), 1))
    if padding_fill(transform.crop) is not None:
        # From beyond the pixel that is decoded, where none of it is placed.
        corner = np.where(plan.place[:, 2:3] == 0, np.int32(1), -plan.place[:, :2])
        inputs = {"corner": corner, "size": size.astype(np.int32)}
    else:
        inputs = {
            "size": size.astype(np.float32),
            "roi_start": plan.box[:, :2].astype(np.float32),
            "roi_end": plan.box[:, 2:].astype(np.float32),
        }
        if transform.crop.interpolation == "random":
            inputs["filter"] = np.array([int(_dali_filter(number)) for number in plan.filter.tolist()], np.int32)
    if entry.operations is not None:
        inputs["operations"] = pack(entry.operations)
    _feed(pipeline, entry, {"start": plan.start, "shape": plan.shape, **inputs})


def _feed(pipeline: Any, entry: Entry, inputs: dict[str, npt.NDArray[Any]]) -> None:
    entry.inputs = inputs  # kept: they are not copied
    for name, values in inputs.items():
        pipeline.feed_input(name, values)
