"""Decoding alone: DALI is fed as ours feeds it, and nothing is done to the windows that it decodes."""

from collections import deque
from collections.abc import Iterator
from typing import Any

from benchmarks.loaders.fastfeed import transform
from benchmarks.loaders.recipe import Recipe
from benchmarks.peers import Absent, need
from fastfeed.data.background import ahead
from fastfeed.data.dali import dali_install_line
from fastfeed.data.loader import MAX_PIXELS
from fastfeed.data.order import Batches
from fastfeed.data.prepare import Prepared, Preparer
from fastfeed.data.samplers import Shuffled

AHEAD = 2  # batches in flight: DALI's default, and ours
SEED = 0  # our loader's default: these are its windows


def loader(recipe: Recipe) -> "Windows":
    """Return the windows of the recipe's training epochs, decoded on the CPU."""
    if recipe.on_gpu:
        raise Absent("a bound for CPUs: on a GPU decoding, resizing and the last pass overlap")
    dali = need("nvidia.dali", dali_install_line())
    fn, types = need("nvidia.dali.fn"), need("nvidia.dali.types")
    pipeline = dali.Pipeline(recipe.batch_size, num_threads=recipe.threads, device_id=None, prefetch_queue_depth=AHEAD)

    def given(name: str, dtype: Any) -> Any:
        return fn.external_source(name=name, dtype=dtype, ndim=1, no_copy=True)

    with pipeline:
        windows = fn.decoders.image_slice(
            given("encoded", types.UINT8),
            given("start", types.INT32),
            given("shape", types.INT32),
            axes=[0, 1],
            output_type=types.RGB,
            adjust_orientation=False,
            jpeg_fancy_upsampling=True,
        )
        pipeline.set_outputs(windows)
    pipeline.build()
    return Windows(pipeline, recipe)


class Windows:
    """A pipeline's windows, by epochs, as ours reads, plans and decodes them.

    Args:
        pipeline: takes "encoded", "start" and "shape".
        recipe: to train, `AHEAD` or more batches an epoch.

    Yields:
        (windows, batch): DALI's list of N windows, [h, w, 3] uint8, of the sizes that were drawn; what it was fed.
    """

    def __init__(self, pipeline: Any, recipe: Recipe) -> None:
        self._pipeline = pipeline
        self._recipe = recipe
        self._preparer = Preparer(
            recipe.source,
            transform(recipe),
            size=None,
            max_pixels=MAX_PIXELS,
            exif=False,
            threads=recipe.threads,
        )
        self._epoch = 0

    def __iter__(self) -> Iterator[tuple[Any, Prepared]]:
        epoch, self._epoch = self._epoch, self._epoch + 1
        picks = Shuffled().picks(len(self._recipe.source), None, seed=SEED, epoch=epoch)
        steps = Batches(picks, self._recipe.batch_size)
        prepared = ahead((self._preparer.prepare(epoch, step, SEED) for step in steps), depth=1)
        in_flight: deque[Prepared] = deque()

        def submit() -> None:
            batch = next(prepared, None)
            if batch is None:
                return
            in_flight.append(batch)  # keeps what DALI does not copy
            self._pipeline.feed_input("encoded", batch.entry.data)
            self._pipeline.feed_input("start", batch.entry.plan.start)
            self._pipeline.feed_input("shape", batch.entry.plan.shape)
            # A pipeline's first run is as many as its queue is deep.
            if epoch > 0 or len(in_flight) == AHEAD:
                self._pipeline.schedule_run()

        for _ in range(AHEAD):
            submit()
        while in_flight:
            (windows,) = self._pipeline.share_outputs()
            self._pipeline.release_outputs()
            batch = in_flight.popleft()
            submit()
            yield windows, batch
