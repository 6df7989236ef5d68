"""The ring's protocol, without a GPU: on a machine of vector clocks, which knows what is ordered after what.

Each stream, the host and each filling of a pinned buffer is an actor with a clock; an event is a copy of a clock, and
to wait for it is to take it in. Of two uses of one buffer, one of them a write, the first must be known to the second.
"""

import contextlib
import ctypes
import itertools
import random
import types
import weakref

import pytest
import torch
from torch.overrides import TorchFunctionMode

from fastfeed.data import ring
from fastfeed.data.finish import Finish, SampleParameters, finish_reference
from fastfeed.data.ring import DeviceRing, HostRing, StableTensors, Work, overlapped

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
GPU = torch.device("cuda", 0)  # the one that the machine plays


def random_images(seed, *shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def address(tensor):
    return tensor.untyped_storage().data_ptr()


class Machine(TorchFunctionMode):
    """Runs PyTorch's calls at once, on the CPU, and logs in which streams a GPU would have run them."""

    def __init__(self, seed=0):
        super().__init__()
        self.random = random.Random(seed)
        self.clocks = {"host": {}}
        self.uses = {}  # by address: (actor, its time, what it knows, whether it writes, what for)
        self.place = {}  # "device" or "pinned"; all else is pageable
        self.owner = {}  # the stream that a device buffer was allocated on
        self.recorded = {}  # by address: other streams that the allocator knows of
        self.storages = []  # kept, so that no address is used twice
        self.fills = itertools.count()
        self.side, self.a, self.b = (Stream(self, name) for name in ("side", "a", "b"))
        self.current = self.a
        self.enabled = True

    def learn(self, actor, clock):
        own = self.clocks.setdefault(actor, {})
        for name, time in clock.items():
            own[name] = max(own.get(name, 0), time)

    def queue(self, stream):
        """What a stream is given now it runs after what the host knows now."""
        self.learn(stream.name, self.clocks["host"])
        return stream.name

    def use(self, actor, tensor, what, *, write):
        clock = self.clocks.setdefault(actor, {})
        clock[actor] = clock.get(actor, 0) + 1
        self.uses.setdefault(address(tensor), []).append((actor, clock[actor], dict(clock), write, what))
        self.storages.append(tensor.untyped_storage())

    def on_stream(self, what, *, reads=(), writes=()):
        actor = self.queue(self.current)
        for tensor, write in [*((tensor, False) for tensor in reads), *((tensor, True) for tensor in writes)]:
            self.use(actor, tensor, what, write=write)

    def allocate(self, tensor):
        self.storages.append(tensor.untyped_storage())
        self.place[address(tensor)], self.owner[address(tensor)] = "device", self.current.name
        return tensor

    def is_at(self, tensor, place):
        return self.place.get(address(tensor)) == place

    def freed(self, where):
        clock = self.clocks["host"]
        clock["host"] = clock.get("host", 0) + 1
        self.uses.setdefault(where, []).append(("host", clock["host"], dict(clock), True, "free"))

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if not self.enabled:
            return func(*args, **kwargs)
        if func == torch.Tensor.is_cuda.__get__:
            return self.is_at(args[0], "device")
        if func == torch.Tensor.device.__get__:
            return GPU if self.is_at(args[0], "device") else torch.device("cpu")
        handler = getattr(self, f"_{getattr(func, '__name__', '')}", None)
        return func(*args, **kwargs) if handler is None else handler(*args, **kwargs)

    def _empty(self, *args, pin_memory=False, device=None, **kwargs):
        tensor = torch.empty(*args, **kwargs)
        if pin_memory:
            self.storages.append(tensor.untyped_storage())
            self.place[address(tensor)] = "pinned"
        return self.allocate(tensor) if device == GPU else tensor

    def _is_pinned(self, tensor):
        return self.is_at(tensor, "pinned")

    def _pin_memory(self, tensor):
        if self.is_at(tensor, "pinned"):
            return tensor
        pinned = torch.empty_like(tensor).copy_(tensor)
        self.place[address(pinned)] = "pinned"
        self.use("host", pinned, "pin_memory", write=True)
        return pinned

    def record_stream(self, tensor, stream):
        self.recorded.setdefault(address(tensor), set()).add(stream.name)

    def _to(self, tensor, device, non_blocking=False):
        assert device == GPU
        if self.is_at(tensor, "device"):
            return tensor
        assert non_blocking, "holds up the host"
        assert self.is_at(tensor, "pinned"), "holds up the host"
        moved = self.allocate(tensor.clone())
        self.on_stream("to", reads=[tensor], writes=[moved])
        return moved

    def _copy_(self, target, source, non_blocking=False):
        assert non_blocking, "holds up the host"
        self.on_stream("copy", reads=[source], writes=[target])
        return target.copy_(source)

    def _clone(self, tensor):
        new = self.allocate(tensor.clone())
        self.on_stream("clone", reads=[tensor], writes=[new])
        return new

    def races(self):
        """Return pairs of uses without order, and uses of which the allocator does not know."""
        found = []
        for where, uses in self.uses.items():
            for (one, time, _, wrote, first), (other, _, known, writes, second) in itertools.combinations(uses, 2):
                if (wrote or writes) and known.get(one, 0) < time:
                    found.append(f"{second} on {other} does not wait for {first} on {one}")
            if where in self.owner:
                unknown = {use[0] for use in uses} - {self.owner[where], "host"} - self.recorded.get(where, set())
                found += [f"memory of {self.owner[where]} may be used again before {name} is done" for name in unknown]
        return found


class Stream:
    def __init__(self, machine, name):
        self.machine, self.name = machine, name

    def wait_event(self, event):
        self.machine.learn(self.machine.queue(self), event.clock)

    def wait_stream(self, stream):
        self.machine.learn(self.machine.queue(self), dict(self.machine.clocks[self.machine.queue(stream)]))


class Event:
    def __init__(self, machine):
        self.machine, self.clock = machine, {}

    def record(self, stream):
        self.clock = dict(self.machine.clocks[self.machine.queue(stream)])

    def synchronize(self):
        self.machine.learn("host", self.clock)


class Ticket:
    """The filling of a pinned buffer, which is done as late as it may be."""

    def __init__(self, machine, source, target, size):
        self.machine, self.name = machine, f"fill {next(machine.fills)}"
        self.keep, self.todo = (source, target), (target.data_ptr(), source.data_ptr(), size)
        machine.learn(self.name, machine.clocks["host"])
        machine.use(self.name, source, "fill", write=False)
        machine.use(self.name, target, "fill", write=True)

    def done(self):
        if self.machine.random.random() < 0.5:
            self.finish()
            return True
        return False

    def wait(self):
        self.finish()

    def finish(self):
        if self.todo is not None:
            ctypes.memmove(*self.todo)
            self.todo = None
        self.machine.learn("host", self.machine.clocks[self.name])

    def __del__(self):
        self.finish()  # as the extension's waits in its destructor


class StreamFinish:
    """The last pass as the machine sees it."""

    def __init__(self, machine):
        self.machine, self.pool, self.finish = machine, None, Finish(MEAN, STD, threads=1)

    def _run(self, function, images, *arguments, out, constants):
        self.machine.enabled = False
        new = function(images, *arguments, out=out)
        self.machine.enabled = True
        if out is None:
            self.machine.allocate(new)
        self.machine.on_stream("pass", reads=[images, constants], writes=[new])
        return new

    def __call__(self, images, parameters, *, out=None):
        return self._run(self.finish, images, parameters, out=out, constants=parameters.on(GPU))

    def normalize(self, images, *, out=None):
        return self._run(self.finish.normalize, images, out=out, constants=self.finish._mean_std_on(GPU))


@pytest.fixture
def machine(monkeypatch):
    machine = Machine()

    @contextlib.contextmanager
    def stream(new):
        before, machine.current = machine.current, new
        yield
        machine.current = before

    def copy(pool, source, target, size, keep):
        assert (source, target) == tuple(tensor.data_ptr() for tensor in keep)
        return Ticket(machine, *keep, size)

    slot = ring._Slot
    monkeypatch.setattr(ring, "_Slot", lambda: slot(copied=Event(machine), consumed=Event(machine)))
    monkeypatch.setattr(ring, "extension", lambda: types.SimpleNamespace(copy=copy))
    # Not by the mode, which comes after the arguments are read: a stream must be PyTorch's own.
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda *arguments: machine.record_stream(*arguments))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: machine.current)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "Event", lambda: Event(machine))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return machine


def new_ring(machine, depth, stable_addresses=False):
    return DeviceRing(StreamFinish(machine), GPU, machine.side, depth, StableTensors() if stable_addresses else None)


def batch(number, grow):
    n = 3 + (number % 5 if grow else 0)
    return random_images(number, n, 4, 5, 3), torch.arange(n) + number


def loader(machine, source, count, grow):
    """Yield works of which it keeps nothing; the memory of pinned images is used for something else once it is free."""
    for number in range(count):
        images, target = batch(number, grow)
        if number % 3 == 1:
            images = images.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
        if source == "floating":
            images = images.permute(0, 3, 1, 2).float() / 255
        if source in ("pinned", "device"):
            images = images.pin_memory()
        if source == "pinned":
            weakref.finalize(images, machine.freed, address(images)).atexit = False
        if source == "device":
            images = images.to(GPU, non_blocking=True)
        if source in ("device", "target on the device"):
            target = target.pin_memory().to(GPU, non_blocking=True)
        work = Work(images, SampleParameters(len(target)) if source != "floating" else None, [target])
        del images, target
        yield work
        del work


def run(machine, device_ring, depth, source, streams, count, taken=None, grow=True):
    """Iterate as a training would, and check the values; return the given tensors' addresses."""
    places = []
    with machine:
        iterator = overlapped(loader(machine, source, count, grow), device_ring, depth)
        for number in range(count if taken is None else taken):
            with torch.cuda.stream(streams[number % len(streams)]):
                done = next(iterator)
                machine.on_stream("training", reads=[done.images, *done.rest])
            machine.enabled = False
            images, target = batch(number, grow)
            torch.testing.assert_close(done.images, finish_reference(images, None, MEAN, STD), rtol=1e-5, atol=1e-5)
            assert torch.equal(done.rest[0], target)
            places.append((done.images.data_ptr(), done.rest[0].data_ptr()))
            machine.enabled = True
            del done
        if taken is None:
            assert next(iterator, None) is None
        del iterator
    return places


SOURCES = ("pageable", "pinned", "device", "floating", "target on the device")


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("depth", [0, 1, 2, 3, 4])
def test_every_use_of_a_buffer_waits_for_the_one_before_it(machine, depth, source):
    a, b = machine.a, machine.b
    device_ring = new_ring(machine, depth)
    run(machine, device_ring, depth, source, [a, b, b], 3 * depth + 5)  # a consumer that switches its stream
    run(machine, device_ring, depth, source, [a], 3 * depth + 5)
    for taken in (0, 1, depth, depth + 2):  # and one that leaves
        run(machine, device_ring, depth, source, [b, a], 3 * depth + 5, taken)
    run(machine, device_ring, depth, source, [b], 2 * depth + 3)
    assert machine.races() == []
    assert all(machine.place[where] == "device" for where in machine.owner)
    uses = [use for uses in machine.uses.values() for use in uses]
    streams = {use[0] for use in uses}
    assert {"a", "b"} <= streams
    # A copy on the consumer's stream would wait behind those of later batches. These loaders make none of their own.
    if source in ("pageable", "pinned"):
        assert {use[0] for use in uses if use[4] in ("copy", "to")} == {"side"}
    assert source == "device" or "side" in streams
    assert (source in ("pageable", "floating", "target on the device")) == ("fill 0" in streams)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("depth", [1, 3])
def test_stable_addresses_wait_too(machine, depth, source):
    device_ring = new_ring(machine, depth, stable_addresses=True)
    places = run(machine, device_ring, depth, source, [machine.a], 3 * depth + 5, grow=False)
    places += run(machine, device_ring, depth, source, [machine.a], 3 * depth + 5, taken=2, grow=False)
    places += run(machine, device_ring, depth, source, [machine.a], 3 * depth + 5, grow=False)
    # Warmed up on another stream, as before the capture of a graph.
    places += run(machine, device_ring, depth, source, [machine.b, machine.b, machine.a], 9, grow=False)
    assert len(set(places)) == 1
    assert machine.races() == []


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_two_iterators_with_a_ring_each_share_a_stream(machine, depth):
    rings = [new_ring(machine, depth) for _ in range(2)]
    with machine:
        iterators = [overlapped(loader(machine, "pageable", 9, True), one, depth) for one in rings]
        for number in range(9):
            for iterator, stream in zip(iterators, (machine.a, machine.b), strict=True):
                with torch.cuda.stream(stream):
                    done = next(iterator)
                    machine.on_stream("training", reads=[done.images, *done.rest])
                machine.enabled = False
                assert torch.equal(done.rest[0], batch(number, True)[1])
                machine.enabled = True
    assert machine.races() == []


def nothing(*args):
    return None


# What is taken out, the sources that it matters to, and what must then be seen.
MISSING = {
    "the host waits for the copy": (
        lambda machine, patch: patch.setattr(Event, "synchronize", nothing),
        {"pageable": "fill on fill", "floating": "fill on fill", "pinned": "free on host"},
    ),
    "the copy waits for the pass": (
        lambda machine, patch: patch.setattr(machine.side, "wait_event", nothing, raising=False),
        {"pageable": "copy on side does not wait for pass", "pinned": "copy on side does not wait for pass",
         "device": "pass on b does not wait for to on a", "target on the device": "training on b does not wait for to"},
    ),
    "the pass waits for the copy": (
        lambda machine, patch: patch.setattr(machine.a, "wait_event", nothing, raising=False),
        {"pageable": "pass on a does not wait for copy on side", "pinned": "pass on a does not wait for copy on side",
         "device": "pass on a does not wait for to on b"},
    ),
    "the copy waits for the fill": (
        lambda machine, patch: patch.setattr(Ticket, "finish", nothing), {"pageable": "copy on side does not wait for"},
    ),
    "the allocator is told of the consumer's stream": (
        lambda machine, patch: patch.setattr(machine, "record_stream", nothing, raising=False),
        {"pageable": "memory of side may be used again", "pinned": "memory of side may be used again",
         "device": "memory of a may be used again"},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("what", "source"), [(what, source) for what in MISSING for source in MISSING[what][1]])
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_a_missing_wait_is_seen(machine, monkeypatch, depth, what, source):
    take_out, expected = MISSING[what]
    take_out(machine, monkeypatch)
    with contextlib.suppress(AssertionError):  # of the values, which may be wrong then
        run(machine, new_ring(machine, depth), depth, source, [machine.a, machine.b, machine.b], 3 * depth + 8)
    assert any(expected[source] in race for race in machine.races()), set(machine.races())


def copies(machine):
    """Return when the images of each batch were copied, by the copying stream's clock."""
    return sorted(use[1] for uses in machine.uses.values() for use in uses if use[3:] == (True, "copy"))


@pytest.mark.parametrize("depth", [0, 1, 2, 5])
def test_the_host_waits_for_the_copy_of_two_batches_ago(machine, depth):
    machine.random.random = lambda: 0.0  # all fills are done at once, so that copies are in the batches' order
    with machine:
        iterator = overlapped(loader(machine, "pageable", 12, False), new_ring(machine, depth), depth)
        for number in range(12 - depth):
            next(iterator)
            known = machine.clocks["host"].get("side", 0)
            # With a later one it would wait for a copy that goes on beside the last pass; with an earlier one pin more.
            assert sum(time <= known for time in copies(machine)) == max(number - 1, 0)


def test_a_pinned_buffer_is_copied_once_it_is_filled_though_other_batches_come_first(machine):
    machine.random.random = lambda: 1.0  # no fill is done before it is waited for
    with machine:
        iterator = overlapped(loader(machine, "pageable", 9, False), new_ring(machine, 4), 4)
        next(iterator)
        assert len(copies(machine)) == 1
        machine.random.random = lambda: 0.0  # all are done
        next(iterator)
    assert len(copies(machine)) == 6


def test_what_is_pinned_is_copied_from_where_it_is(machine):
    with machine:
        target = torch.arange(6).view(2, 3).pin_memory().t()  # in another order than its memory's
        device_ring = new_ring(machine, 1)
        done = device_ring.take(device_ring.start(Work(random_images(0, 3, 4, 5, 3), SampleParameters(3), [target])))
    assert [use[::4] for use in machine.uses[address(target)]] == [("host", "pin_memory"), ("side", "to")]
    assert torch.equal(done.rest[0], target)


@pytest.mark.parametrize("depth", [1, 3])
def test_a_failure_whose_traceback_is_kept_leaves_no_buffer_being_filled(machine, depth):
    device_ring = new_ring(machine, depth, stable_addresses=True)
    machine.random.random = lambda: 1.0  # no fill is done before it is waited for
    with machine:  # the second batch is a larger one
        iterator = overlapped(loader(machine, "pageable", 8, True), device_ring, depth)
        with pytest.raises(ValueError, match="stable_addresses=True needs batches of one shape") as kept:
            list(iterator)
    run(machine, device_ring, depth, "pageable", [machine.a], 2 * depth + 5, grow=False)
    assert machine.races() == []
    assert kept.traceback


@pytest.mark.parametrize("depth", [0, 1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 4])
def test_what_is_drawn_ahead(depth, count):
    drawn = []

    def source():
        for number in range(count):
            drawn.append(number)
            yield Work(random_images(number, 2, 3, 4, 3), None, [torch.tensor(number)])

    host_ring = HostRing(Finish(MEAN, STD))
    given = 0
    for done in overlapped(source(), host_ring, depth):
        assert done.rest[0] == given
        given += 1
        assert len(drawn) == min(given + depth, count)
    assert given == len(drawn) == count


@pytest.mark.parametrize(("change", "message"), [
    (lambda images, rest: (images[:2], rest), r"images are \[N, C, H, W\] = \[2, 3, 4, 5\], and in the first batch "
     r"they were \[3, 3, 4, 5\]. stable_addresses=True needs batches of one shape.*drop_last=True"),
    (lambda images, rest: (images, [rest[0][:2]]), r"is torch.int64 \[2\], and in the first batch it was torch.int64 "
     r"\[3\]. stable_addresses=True needs"),
    (lambda images, rest: (images, [rest[0].float()]), r"is torch.float32 \[3\], and in the first batch"),
    (lambda images, rest: (images, []), "has 0 tensors beside the images, and the first one had 1"),
    (lambda images, rest: (images, rest * 2), "has 2 tensors beside the images, and the first one had 1"),
])  # fmt: skip
def test_stable_addresses_refuse_other_shapes(change, message):
    images, rest = random_images(0, 3, 4, 5, 3), [torch.arange(3)]

    def source():
        yield Work(images, None, rest)
        new_images, new_rest = change(images, rest)
        yield Work(new_images, None, new_rest)

    iterator = overlapped(source(), HostRing(Finish(MEAN, STD), StableTensors()), 2)
    first = next(iterator)
    with pytest.raises(ValueError, match=message):
        next(iterator)
    assert torch.equal(first.images, finish_reference(images, None, MEAN, STD))  # not overwritten
