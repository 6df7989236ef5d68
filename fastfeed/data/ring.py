"""The ring: batches on their way from a loader to the model, several at a time, each with its own buffers.

A batch is started as soon as the loader gives it, and taken when its turn comes:

- On the CPU the last pass runs in the extension's threads, beside the training.
- To a GPU the bytes go by way of pinned memory, which the extension's threads fill, and are copied on one side stream;
  the last pass runs on the consumer's own stream. So what the consumer gets is an ordinary tensor of that stream,
  which may be kept, and only the ring's own buffers need guarding: a copy into a buffer waits for the pass that read
  it last, the pass waits for the copy, and the host waits for the copy out of a pinned buffer before it fills it again,
  which is also what keeps the host from running more than the ring's length ahead of the GPU. Nothing else waits.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, TypeVar

import torch

from fastfeed._extension import extension
from fastfeed.data.finish import Finish, SampleParameters

_Result = TypeVar("_Result")


@dataclass
class Work:
    """A batch as a loader gives it.

    Attributes:
        images: uint8 [N, H, W, C], for the last pass; or floating point [N, C, H, W] in 0 to 1, to be normalised; or
            None, where the whole batch is to be moved as it is.
        parameters: of the last pass; None without uint8 images.
        rest: the other tensors of the batch.
        tag: anything that is to come out with the batch.
        finish: the last pass, where it is another one than the ring's.
    """

    images: torch.Tensor | None
    parameters: SampleParameters | None
    rest: list[torch.Tensor]
    tag: Any = None
    finish: Finish | None = None


@dataclass
class Done:
    """A finished batch: images [N, C, H, W], if it has some, and the other tensors, on the device."""

    images: torch.Tensor | None
    rest: list[torch.Tensor]
    tag: Any


class StableTensors:
    """The tensors of the first batch, into which all later ones go."""

    def __init__(self) -> None:
        self.images: torch.Tensor | None = None
        self._rest: list[torch.Tensor] | None = None
        self._consumer: torch.cuda.Stream | None = None

    def wait_for_consumer(self, stream: torch.cuda.Stream) -> None:
        """Order what follows on `stream` after all that the last batch's consumer has queued so far."""
        if self._consumer is not None and self._consumer != stream:
            stream.wait_stream(self._consumer)
            for tensor in (self.images, *(self._rest or ())):
                if tensor is not None and tensor.is_cuda:
                    tensor.record_stream(stream)
        self._consumer = stream

    def check(self, images: torch.Tensor | None, rest: list[torch.Tensor]) -> None:
        """Raise ValueError for images [N, C, H, W], or other tensors, that do not fit into the first batch's."""
        if self._rest is None:
            return
        way_out = (
            "stable_addresses=True needs batches of one shape: leave out the last one of an epoch with drop_last=True"
        )
        if images is not None and self.images is not None and images.shape != self.images.shape:
            raise ValueError(
                f"images are [N, C, H, W] = {list(images.shape)}, and in the first batch they were "
                f"{list(self.images.shape)}. {way_out}"
            )
        if len(rest) != len(self._rest):
            raise ValueError(
                f"the batch has {len(rest)} tensors beside the images, and the first one had {len(self._rest)}. "
                "stable_addresses=True needs the same ones in every batch"
            )
        for kept, new in zip(self._rest, rest, strict=True):
            if kept.shape != new.shape or kept.dtype != new.dtype:
                raise ValueError(
                    f"a tensor of the batch is {new.dtype} {list(new.shape)}, and in the first batch it was "
                    f"{kept.dtype} {list(kept.shape)}. {way_out}"
                )

    def keep(self, images: torch.Tensor | None, rest: list[torch.Tensor]) -> list[torch.Tensor]:
        """Return the tensors at the addresses of the first batch, for use in the current stream."""
        self.images = images
        if self._rest is None:
            self._rest = [tensor.clone() for tensor in rest]  # a clone, for the loader's may be its own
        else:
            for kept, new in zip(self._rest, rest, strict=True):
                kept.copy_(new, non_blocking=True)
        return self._rest


class HostRing:
    """The ring for the CPU.

    Args:
        finish: the last pass.
        stable: the tensors to put every batch into. The consumer reads them while it works, so the pass runs when a
            batch is taken, and not beside the training.
    """

    def __init__(self, finish: Finish, stable: StableTensors | None = None) -> None:
        self._finish = finish
        self._stable = stable

    def start(self, work: Work) -> Any:
        """Begin work on a batch, which `take` gives back."""
        images = None if work.images is None else work.images.to("cpu")
        work = Work(images, work.parameters, [tensor.to("cpu") for tensor in work.rest], work.tag, work.finish)
        if self._stable is not None or images is None or images.dtype != torch.uint8:
            return work, None, None
        return (work, *(work.finish or self._finish).submit(images, work.parameters))

    def push(self, started: Any) -> None:
        """Do what can be done without waiting: nothing, it is under way."""

    def take(self, started: Any) -> Done:
        """Wait for a batch that was started."""
        work, images, ticket = started
        if ticket is not None:
            ticket.wait()
            return Done(images, work.rest, work.tag)
        return _finished(self._finish, work.images, work, work.rest, self._stable)


@dataclass
class _Slot:
    """Buffers and events of one batch at a time."""

    pinned: torch.Tensor | None = None  # bytes
    device: torch.Tensor | None = None  # bytes
    source: torch.Tensor | None = None  # the loader's own pinned tensor, while it is copied from
    # Blocking: the host that waits for it sleeps, and leaves the core to the loader's threads.
    copied: torch.cuda.Event = field(default_factory=lambda: torch.cuda.Event(blocking=True))
    consumed: torch.cuda.Event = field(default_factory=torch.cuda.Event)


@dataclass
class _Copy:
    """A batch between start and take."""

    work: Work
    slot: _Slot
    source: torch.Tensor | None = None  # pinned; None for images that are on a GPU already
    ticket: Any = None  # of the copy into pinned memory
    sent: bool = False
    images: torch.Tensor | None = None
    parameters: torch.Tensor | None = None
    rest: list[torch.Tensor] = field(default_factory=list)


class DeviceRing:
    """The ring for a CUDA device: depth + 2 slots.

    Args:
        finish: the last pass.
        device: with its index.
        stream: for the copies; one per loader, for all its rings.
        depth: how many batches are started before the one that is taken.
        stable: the tensors to put every batch into, for CUDA graphs.
    """

    def __init__(
        self,
        finish: Finish,
        device: torch.device,
        stream: torch.cuda.Stream,
        depth: int,
        stable: StableTensors | None = None,
    ) -> None:
        self._finish = finish
        self._device = device
        self._stream = stream
        with torch.cuda.device(device):
            self._slots = [_Slot() for _ in range(depth + 2)]
        self._started = 0
        self._stable = stable

    def start(self, work: Work) -> _Copy:
        """Begin work on a batch, which `take` gives back."""
        slot = self._slots[self._started % len(self._slots)]
        self._started += 1
        slot.copied.synchronize()  # by the batch before the last depth + 1: see the top of the file
        slot.source = None
        copy = _Copy(work, slot)
        if any(tensor is not None and tensor.is_cuda for tensor in (work.images, *work.rest)):
            # Made by the loader on the current stream, which need not be the one they are taken on.
            if work.images is not None and work.images.is_cuda:
                work.images = work.images.to(self._device, non_blocking=True)
            work.rest = [t.to(self._device, non_blocking=True) if t.is_cuda else t for t in work.rest]
            slot.copied.record(torch.cuda.current_stream(self._device))
        if work.images is None or work.images.is_cuda:
            copy.images = work.images
        else:
            images = work.images = _in_one_piece(work.images)
            if images.is_pinned():
                slot.source = copy.source = images
            else:
                slot.pinned = _at_least(slot.pinned, images.nbytes, pin_memory=True)
                copy.source = _like(slot.pinned, images)
                copy.ticket = extension().copy(
                    self._finish.pool, images.data_ptr(), slot.pinned.data_ptr(), images.nbytes, (images, slot.pinned)
                )
        self.push(copy)
        return copy

    def push(self, copy: _Copy) -> None:
        """Do what can be done without waiting: begin the copy to the device, if the pinned buffer is filled."""
        if not copy.sent and (copy.ticket is None or copy.ticket.done()):
            self._send(copy)

    def take(self, copy: _Copy) -> Done:
        """Finish a batch that was started, on the current stream."""
        if copy.ticket is not None:
            copy.ticket.wait()
        if not copy.sent:
            self._send(copy)
        consumer = torch.cuda.current_stream(self._device)
        consumer.wait_event(copy.slot.copied)
        if self._stable is not None:
            self._stable.wait_for_consumer(consumer)
        # Tensors of another stream: their memory may be used again only after what the consumer does with it.
        for tensor in (copy.images, copy.parameters, *copy.rest):
            if tensor is not None and tensor.is_cuda and is_strided(tensor):
                tensor.record_stream(consumer)
        rest = [tensor.to(self._device, non_blocking=True) for tensor in copy.rest]
        try:
            return _finished(self._finish, copy.images, copy.work, rest, self._stable)
        finally:
            copy.slot.consumed.record(consumer)  # though an interrupt may have come between

    def _send(self, copy: _Copy) -> None:
        slot = copy.slot
        with torch.cuda.stream(self._stream):
            if copy.source is not None:
                self._stream.wait_event(slot.consumed)
                slot.device = _at_least(slot.device, copy.source.nbytes, device=self._device)
                copy.images = _like(slot.device, copy.source)
                copy.images.copy_(copy.source, non_blocking=True)
            if copy.work.parameters is not None:
                # Here and not on the consumer's stream: there they would wait behind the copies of later batches.
                copy.parameters = copy.work.parameters.keep_on(self._device)
            # Sparse tensors, which have no record_stream, are copied when they are taken, on the consumer's stream.
            copy.rest = [
                _pinned(tensor).to(self._device, non_blocking=True)
                if not tensor.is_cuda and is_strided(tensor)
                else tensor
                for tensor in copy.work.rest
            ]
            self._stream.wait_event(slot.copied)  # recorded in `start`, if the loader gave tensors on the GPU
            slot.copied.record(self._stream)
        copy.sent = True


class Rings:
    """The rings of one loader. An iterator owns one while it runs: two over one loader do not share buffers.

    Args:
        finish: the last pass.
        device: the CPU, or a CUDA device with its index.
        depth: how many batches are on their way while the consumer works on one.
        stable_addresses: put every batch into the tensors of the first one.
    """

    def __init__(self, finish: Finish, device: torch.device, depth: int, stable_addresses: bool) -> None:
        self._finish = finish
        self._device = device
        self._depth = depth
        # Of the loader, not of a ring: a graph that was captured under one iterator reads what another brings.
        self._stable = StableTensors() if stable_addresses else None
        self._idle: HostRing | DeviceRing | None = None
        self.stream: torch.cuda.Stream | None = None  # one for all rings and epochs: PyTorch has 32 of them

    def run(self, source: Iterator[Work]) -> Generator[Done, None, None]:
        """Run an epoch's batches through a ring; see `overlapped`."""
        ring, self._idle = self._idle or self._new_ring(), None
        try:
            yield from overlapped(source, ring, self._depth)
        finally:
            self._idle = ring

    def close(self) -> None:
        """Give back the buffers of epochs that are over."""
        self._idle = None

    def _new_ring(self) -> HostRing | DeviceRing:
        if self._device.type == "cpu":
            return HostRing(self._finish, self._stable)
        if self.stream is None:
            self.stream = torch.cuda.Stream(self._device)
        return DeviceRing(self._finish, self._device, self.stream, self._depth, self._stable)

    def __getstate__(self) -> dict[str, Any]:
        stable = None if self._stable is None else StableTensors()
        return {**self.__dict__, "_idle": None, "stream": None, "_stable": stable}  # of this process


def overlapped(source: Iterator[Work], ring: HostRing | DeviceRing, depth: int) -> Iterator[Done]:
    """Run batches through a ring; `depth` of them are on their way while the consumer works on one.

    The source runs in the consumer's thread. An error that it raises comes after the batches before it.
    """
    started: deque[Any] = deque()
    error: Exception | None = None
    more = True

    @_outside_inference_mode
    def start_next() -> None:
        nonlocal error, more
        try:
            work = next(source, None)
            if work is not None:
                started.append(ring.start(work))
                return
        except Exception as raised:
            error = raised
        more = False

    def fill(length: int) -> None:
        while more and len(started) < length:
            start_next()

    @_outside_inference_mode
    def take_next() -> Done:
        done = ring.take(started.popleft())
        fill(depth)
        for copy in started:
            ring.push(copy)
        return done

    try:
        fill(max(depth, 1))
        while started:
            yield take_next()  # and keep no reference: the batch is the consumer's
            fill(1)
        if error is not None:
            raise error
    finally:
        started.clear()  # now, though a traceback may hold this frame: buffers that are being filled are waited for
        del error  # it holds this frame by its traceback: do not close the circle


def _outside_inference_mode(function: Callable[[], _Result]) -> Callable[[], _Result]:
    """Leave inference mode in a function, if the consumer is in it: batches drawn ahead may be trained with.

    What a dataset computes is recorded by autograd if the consumer's mode says so: `inference_mode` alone changes that.
    """

    @wraps(function)
    def outside() -> _Result:
        if not torch.is_inference_mode_enabled():
            return function()
        recorded = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.set_grad_enabled(recorded):
            return function()

    return outside


def _finished(
    finish: Finish, images: torch.Tensor | None, work: Work, rest: list[torch.Tensor], stable: StableTensors | None
) -> Done:
    """Run the last pass in the caller's thread and stream."""
    finish = work.finish or finish
    if images is None and not rest:
        return Done(None, [], work.tag)  # an error, or a batch of strings: there is nothing to put anywhere
    out = None if stable is None else stable.images
    if stable is not None:
        nhwc = images is not None and images.dtype == torch.uint8
        stable.check(images.permute(0, 3, 1, 2) if images is not None and nhwc else images, rest)
    if images is None:
        pass
    elif images.dtype == torch.uint8:
        images = finish(images, work.parameters, out=out)
    else:
        images = finish.normalize(images, out=out)
    return Done(images, rest if stable is None else stable.keep(images, rest), work.tag)


def _in_one_piece(images: torch.Tensor) -> torch.Tensor:
    """Return the images with their values side by side in memory, in the order they have there if it is a usual one."""
    if (
        images.is_contiguous()
        or images.permute(0, 3, 1, 2).is_contiguous()
        or images.permute(0, 2, 3, 1).is_contiguous()
    ):
        return images
    return images.contiguous()


def _at_least(
    buffer: torch.Tensor | None, size: int, *, pin_memory: bool = False, device: torch.device | None = None
) -> torch.Tensor:
    """Return `buffer`, or a new one, of at least `size` bytes."""
    if buffer is not None and buffer.numel() >= size:
        return buffer
    return torch.empty(max(size, 1), dtype=torch.uint8, device=device or "cpu", pin_memory=pin_memory)


def _like(buffer: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Return the start of a buffer of bytes as a tensor of the same dtype, shape and strides."""
    return buffer[: images.nbytes].view(images.dtype).as_strided(images.shape, images.stride())


def is_strided(tensor: torch.Tensor) -> bool:
    """Return whether a tensor is an ordinary one, with values at an address: not sparse, not nested."""
    return tensor.layout == torch.strided and not tensor.is_nested


def _pinned(tensor: torch.Tensor) -> torch.Tensor:
    # In one piece: an expanded tensor cannot be pinned, of a slice all that it is taken from would be, and of one with
    # gaps PyTorch would make a copy that is not pinned, and hold up the host.
    return tensor if tensor.is_pinned() and _is_dense(tensor) else tensor.contiguous().pin_memory()


def _is_dense(tensor: torch.Tensor) -> bool:
    sizes = sorted(zip(tensor.stride(), tensor.shape, strict=True))
    expected = 1
    for stride, size in sizes:
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True
