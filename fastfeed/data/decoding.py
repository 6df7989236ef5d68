"""Decoding: batches of a source's images, by DALI and the last pass."""

import os
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastfeed.data.background import ahead
from fastfeed.data.epoch import Epochs, Given, SampleInfo, beginning
from fastfeed.data.errors import BadSample, Report, SampleError
from fastfeed.data.finish import Finish, SampleParameters
from fastfeed.data.graph import Graph, Images
from fastfeed.data.mix import Mix, as_declared, draw_mix, mix_target
from fastfeed.data.prepare import Prepared, Preparer
from fastfeed.data.ring import Done, Rings, Work
from fastfeed.data.schedule import SizeSchedule
from fastfeed.data.sources import Source
from fastfeed.data.sources.targets import select
from fastfeed.data.transforms import RandomErasing, Transform
from fastfeed.data.tree import leaves, replace_leaves
from fastfeed.data.views import TTA


class Decoding:
    """What a `DataLoader` does with files: the rooms of the pipeline in a line.

    The arguments are those of `DataLoader`, checked; `batched` is whether batches are given, or their samples.

    Attributes:
        mixing: whether batches are mixed, if there is a mix.
    """

    def __init__(
        self,
        source: Source,
        transform: Transform,
        epochs: Epochs,
        *,
        batched: bool,
        threads: int,
        depth: int,
        size: SizeSchedule | None,
        device: torch.device,
        dtype: torch.dtype,
        memory_format: torch.memory_format,
        mix: Mix | None,
        stable_addresses: bool,
        on_error: str,
        max_errors: float | None,
        max_pixels: int,
        info: bool,
        exif: bool,
        tta: TTA | None,
    ) -> None:
        self.mixing = mix is not None
        self._source = source
        self._transform = transform
        self._batched = batched
        self._threads = threads
        self._depth = depth
        self._device = device
        self._mix = mix
        self._info = info
        self._exif = exif
        self._views = 1 if tta is None else tta.views
        self._grouped = tta is not None
        self._report = Report(on_error, max_errors)
        self._preparer = Preparer(
            source, transform, size=size, max_pixels=max_pixels, exif=exif, threads=threads, tta=tta
        )
        # On a GPU the pass is queued on the consumer's stream as soon as DALI's work is: nothing is gained by waiting.
        self._lag = 0 if device.type == "cuda" else 1
        erase = transform.erase
        self._noise = isinstance(erase, RandomErasing) and erase.value == "random"
        self._finish = Finish(
            transform.mean,
            transform.std,
            dtype,
            memory_format,
            factor=transform.factor,
            fill=erase.value if isinstance(erase, RandomErasing) and not isinstance(erase.value, str) else 0.0,
            threads=threads,
            spare_outputs=self._lag + 2,
        )
        self._rings = Rings(self._finish, device, self._lag, stable_addresses)
        self._pid = os.getpid()
        self._idle_graph: Graph | None = self._new_graph(beginning(0), epochs)  # now: what is missing shows here

    @property
    def errors(self) -> list[BadSample]:
        """The bad samples that were met so far."""
        return self._report.samples

    def batches_left(self, start: dict[str, Any], epochs: Epochs) -> int:
        """Return how many batches `run` gives."""
        return epochs.batches_left(start)

    def run(self, start: dict[str, Any], epochs: Epochs) -> Generator[Given, None, None]:
        """Give an epoch's batches from a place on."""
        # `map`, which keeps no reference to what it gives: the batch is the consumer's.
        yield from map(self._given, self._rings.run(self._decoded(start, epochs)))

    def close(self) -> None:
        """Give back threads and memory; what is running goes on, and the next epoch takes new ones."""
        self._idle_graph = None
        self._rings.close()
        self._preparer.close()
        self._finish.close()
        self._source.close()

    def _given(self, done: Done) -> Given:
        targets, info, progress = done.tag
        rest = iter(done.rest)
        targets = replace_leaves(targets, lambda _, leaf: next(rest) if isinstance(leaf, torch.Tensor) else leaf)
        images = done.images
        assert images is not None
        if self._grouped:
            images = images.unflatten(0, (-1, self._views))
        batch: Any = [images, as_declared(targets, self._mix)]
        if self._info:
            batch.append(replace(info, index=next(rest), valid=next(rest)))
        if not self._batched:
            batch = [images[0], _first(batch[1]), *batch[2:]]
        return Given(batch, progress)

    def _decoded(self, start: dict[str, Any], epochs: Epochs) -> Iterator[Work]:
        # An iterator owns a graph while it runs: two over one loader do not mix their batches.
        graph, epoch, count = self._take_graph(start, epochs), start["epoch"], start["bad"]
        prepared = ahead((self._preparer.prepare(epoch, picks, epochs.seed) for picks in epochs.steps(start)), depth=1)
        pending: deque[Prepared] = deque()
        begun: deque[tuple[Prepared, Images]] = deque()
        lag = 0
        error: Exception | None = None

        def submit_next() -> None:
            nonlocal error
            try:
                batch = None if error is not None else next(prepared, None)
            except Exception as raised:
                error = raised  # its turn comes after the batches before it
                return
            if batch is not None:
                pending.append(batch)
                graph.submit(batch.entry)

        try:
            for _ in range(graph.depth):
                submit_next()
            while pending or begun:
                if pending:
                    begun.append((pending.popleft(), graph.result()))
                    self._preparer.remember(begun[-1][0])
                    submit_next()
                if len(begun) > lag or not pending:
                    lag = self._lag  # but the first batch at once: somebody waits for it
                    count += len(begun[0][0].all_bad)
                    work = self._work(*begun.popleft(), epochs, epoch, count)
                    if work is not None:
                        yield work
            if error is not None:
                raise error
            self._idle_graph = graph
        except (GeneratorExit, SampleError):
            self._idle_graph = graph
            raise  # anything else, an interrupt say, may have come in the middle of a call of the graph: not kept
        finally:
            prepared.close()
            begun.clear()
            del error  # it holds this frame by its traceback: do not close the circle

    def _work(self, batch: Prepared, images: Images, epochs: Epochs, epoch: int, count: int) -> Work | None:
        """Return what the last pass is to do, or None for a batch of which nothing is left.

        `count` is how many positions of the epoch had a bad sample so far, with those of this batch.
        """
        pixels = images.wait()
        picks, plan, targets, names = batch.picks, batch.entry.plan, batch.targets, batch.names
        index, valid = torch.from_numpy(picks.index), torch.from_numpy(picks.valid)
        bad = batch.all_bad
        if bad:
            reasons = {int(index[i]): (names[i], reason) for i, reason in bad.items()}
            self._report.add(reasons, epoch, count, epochs.size())
            taken = self._report.select(len(index), bad)
            if not taken:
                return None
            rows = batch.entry.rows(taken)
            pixels, plan = _rows(pixels, rows), plan.at(rows)
            targets = select(targets, taken)
            valid = valid.clone()
            valid[list(bad)] = False
            if self._report.mode == "drop":
                index, valid, names = index[taken], valid[taken], [names[i] for i in taken]
        n, height, width, _ = pixels.shape
        mixing: dict[str, Any] = {}
        if self._mix is not None:
            position = int(picks.position[0])
            # Targets are of one kind, whether or not anything is mixed: the loss is for that kind.
            declared = self._mix if self.mixing else replace(self._mix, probability=0.0)
            mix = draw_mix(declared, n, height, width, seed=epochs.seed, epoch=epoch, batch=position)
            mixing = {"partner": mix.partner, "weight": mix.weight, "cut": mix.box}
            targets = mix_target(targets, mix)
        noise = plan.noise_key if self._noise else None
        parameters = SampleParameters(
            n,
            flip=(plan.flip & 1) > 0,
            vertical_flip=(plan.flip & 2) > 0,
            erase=plan.erase,
            noise_key=noise,
            **mixing,
        )
        rest = [leaf for _, leaf in leaves(targets) if isinstance(leaf, torch.Tensor)]
        if self._info:
            rest += [index, valid]
        progress = {**picks.progress(epoch), "bad": count}
        return Work(pixels, parameters, rest, (targets, SampleInfo(index, valid, names), progress))

    def _new_graph(self, start: dict[str, Any], epochs: Epochs) -> Graph:
        try:
            depth = max(1, min(self._depth, epochs.batches_left(start)))
        except TypeError:  # of a sampler without a length
            depth = self._depth
        largest = epochs.largest_batch(start)
        return Graph(self._transform, largest, self._device, self._threads, depth, exif=self._exif, views=self._views)

    def _take_graph(self, start: dict[str, Any], epochs: Epochs) -> Graph:
        graph, self._idle_graph = self._idle_graph, None
        if graph is not None and self._pid != os.getpid():  # a fork copies DALI without its threads
            graph, self._pid = None, os.getpid()
        if graph is None or graph.max_batch_size < epochs.largest_batch(start):
            return self._new_graph(start, epochs)
        graph.drain()  # of what an epoch that was left early did not take
        return graph

    def __getstate__(self) -> dict[str, Any]:
        # Threads and GPU memory, which no copy can share.
        return {**self.__dict__, "_idle_graph": None}


def _first(targets: Any) -> Any:
    """Return the first row of a batch's targets."""
    one = select(targets, [0])
    if isinstance(one, list) and all(isinstance(leaf, str | bytes) for leaf in one):
        return one[0]
    return replace_leaves(one, lambda _, leaf: leaf[0])


def _rows(pixels: torch.Tensor, rows: npt.NDArray[np.int64]) -> torch.Tensor:
    # NumPy on the CPU: PyTorch's threads do not outlive a fork, and a child would wait for them for ever.
    if pixels.is_cuda:
        return pixels[torch.from_numpy(rows).to(pixels.device)]
    return torch.from_numpy(pixels.numpy()[rows])
