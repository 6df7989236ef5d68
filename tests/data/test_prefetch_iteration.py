"""Prefetcher as an iterable: loaders of all kinds, leaving early, errors, memory, processes, resuming."""

import copy
import gc
import os
import pickle
import subprocess
import sys
import traceback
import weakref
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from fastfeed import Mix, Prefetcher
from fastfeed.data import collate_uint8, prefetch, ring
from fastfeed.data.ring import HostRing
from tests.data.test_prefetch import CPU, assert_same, pairs, random_images


def threads():
    return len(os.listdir("/proc/self/task"))


class Pictures(torch.utils.data.Dataset):
    """Map-style, (image [H, W, 3], label) or (image [3, H, W], label)."""

    def __init__(self, length=11, chw=False):
        self.length, self.chw = length, chw

    def __len__(self):
        return self.length

    def __getitem__(self, i):
        image = random_images(6, 5, 3, seed=i)
        return (image.permute(2, 0, 1).contiguous() if self.chw else image), i


class Stream(IterableDataset):
    def __iter__(self):
        return iter(Pictures()[i] for i in range(5))


# ---- loaders


@pytest.mark.parametrize("collate", [collate_uint8, torch.utils.data.default_collate])
@pytest.mark.parametrize(("num_workers", "chw"), [(0, False), (0, True), (2, True)])
def test_with_a_dataloader_of_pytorch(num_workers, chw, collate):
    def loader():
        return DataLoader(Pictures(chw=chw), 4, shuffle=True, num_workers=num_workers, collate_fn=collate,
                          generator=torch.Generator().manual_seed(0))  # fmt: skip

    plain, data = loader(), Prefetcher(loader(), **CPU)
    assert len(data) == 3
    for _ in range(2):
        batches = [(images.permute(0, 2, 3, 1) if chw else images, target) for images, target in plain]
        assert [len(target) for _, target in batches] == [4, 4, 3]  # the last one is not full
        assert_same(list(data), batches)


def test_the_loaders_attributes():
    loader = DataLoader(Pictures(), 4)
    data = Prefetcher(loader, **CPU)
    assert data.loader is loader
    assert (data.dataset, data.sampler, data.batch_size) == (loader.dataset, loader.sampler, 4)
    assert not hasattr(data, "state_dict")
    assert not hasattr(data, "load_state_dict")
    with pytest.raises(AttributeError, match="no attribute 'batchsize'"):
        _ = data.batchsize


def test_set_epoch():
    sampler = DistributedSampler(Pictures(), num_replicas=2, rank=1, shuffle=True)
    own = SimpleNamespace(__iter__=None, set_epoch=lambda epoch: own.__dict__.update(epoch=epoch))
    inner = DistributedSampler(Pictures(), num_replicas=2, rank=0)
    batch_sampler = torch.utils.data.BatchSampler(inner, 2, False)
    data = Prefetcher(DataLoader(Pictures(), 2, sampler=sampler), mix=Mix(mixup=1.0), **CPU)
    orders = []
    for epoch in (0, 1, 0):
        data.set_epoch(epoch)
        assert (data.epoch, sampler.epoch) == (epoch, epoch)
        orders.append([(target.a.tolist(), target.lam.tolist()) for _, target in data])
    assert orders[0] == orders[2] != orders[1]
    Prefetcher(own, **CPU).set_epoch(7)
    Prefetcher(DataLoader(Pictures(), batch_sampler=batch_sampler), **CPU).set_epoch(8)
    assert (own.epoch, inner.epoch) == (7, 8)
    plain = Prefetcher(pairs(1), **CPU)
    plain.set_epoch(3)
    assert plain.epoch == 3
    dataset = Pictures()
    dataset.set_epoch = lambda epoch: setattr(dataset, "epoch", epoch)
    Prefetcher(DataLoader(dataset, sampler=sampler), **CPU).set_epoch(4)
    assert (dataset.epoch, sampler.epoch) == (4, 4)


@pytest.mark.parametrize("loader", [lambda: (x for x in pairs(3)), lambda: DataLoader(Stream(), 2)])
def test_loaders_without_a_length(loader):
    data = Prefetcher(loader(), **CPU)
    with pytest.raises(TypeError, match="has no len"):
        len(data)
    assert len(list(data)) == 3


def test_a_generator_is_one_epoch():
    data = Prefetcher((batch for batch in pairs(5)), **CPU)
    assert_same(list(data), pairs(5))
    assert list(data) == []


def test_two_iterators_at_once():
    data = Prefetcher(pairs(5), **CPU)
    both = [(a, b) for a, b in zip(data, data, strict=True)]
    assert_same([a for a, _ in both], pairs(5))
    assert_same([b for _, b in both], pairs(5))


@pytest.mark.parametrize("depth", [1, 2, 4, 20])
@pytest.mark.parametrize("taken", [0, 1, 3, 6])
def test_leaving_early_and_starting_again(taken, depth):
    data = Prefetcher(pairs(6), depth=depth, **CPU)
    for _ in range(3):
        assert_same([batch for batch, _ in zip(data, range(taken), strict=False)], pairs(6)[:taken])
    assert_same(list(data), pairs(6))


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("good", [0, 1, 5])
def test_an_error_of_the_loader_comes_after_the_batches_before_it(good, depth):
    class Failing:
        def __iter__(self):
            yield from pairs(good)
            self.fail()

        def fail(self):
            raise LookupError("no batch today")

    data, got = Prefetcher(Failing(), depth=depth, **CPU), []
    for _ in range(2):
        got.clear()
        with pytest.raises(LookupError, match="no batch today") as caught:
            for batch in data:
                got.append(batch)
        assert "fail" in [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
        assert_same(got, pairs(good))


def test_a_bad_batch_is_an_error_after_the_good_ones():
    got = []
    with pytest.raises(ValueError, match="no image in the batch, which has batch: NoneType"):
        for batch in Prefetcher([*pairs(3), None, *pairs(3)], **CPU):
            got.append(batch)
    assert_same(got, pairs(3))


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_interrupt_in_the_loader_is_not_kept_waiting(kind):
    interrupt = [True]

    class Interrupted:
        def __iter__(self):
            for position, batch in enumerate(pairs(6)):
                if position == 3 and interrupt[0]:
                    raise kind
                yield batch

    data = Prefetcher(Interrupted(), **CPU)
    with pytest.raises(kind):
        list(data)
    interrupt[0] = False
    assert_same(list(data), pairs(6))


def test_an_error_of_the_consumer():
    data = Prefetcher(pairs(6), **CPU)
    kept = []
    for _ in range(3):
        try:
            for _ in data:
                raise ZeroDivisionError
        except ZeroDivisionError as error:
            kept.append(error)
    assert_same(list(data), pairs(6))


@pytest.mark.parametrize("loader", [[], (), iter(()), {}, DataLoader([], 4)])
def test_an_empty_loader(loader):
    data = Prefetcher(loader, **CPU)
    assert list(data) == list(data) == []


@pytest.mark.parametrize("depth", [1, 3])
def test_batches_of_changing_size(depth):
    sizes = [(4, 6, 5), (1, 9, 9), (7, 2, 64), (4, 6, 5), (0, 4, 4), (2, 33, 1)]
    batches = [(random_images(*size, 3), torch.arange(size[0])) for size in sizes]
    assert_same(list(Prefetcher(batches, depth=depth, **CPU)), batches)


def test_batches_are_the_consumers_to_keep():
    kept = []
    iterator = iter(Prefetcher(pairs(12), **CPU))
    for position in range(12):
        kept.append(next(iterator))
        if position >= 11:
            assert_same(kept, pairs(12))
    kept[0][0].zero_()
    assert_same(kept[1:], pairs(12)[1:])


def test_one_stream_for_all_epochs(monkeypatch):
    streams, used = [], []

    def new_ring(finish, device, stream, depth, stable_addresses):
        used.append(stream)
        return HostRing(finish, stable_addresses)

    monkeypatch.setattr(prefetch, "choose_device", lambda device: torch.device("cuda", 0))
    monkeypatch.setattr(ring, "DeviceRing", new_ring)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: streams.append(device) or object())
    data = Prefetcher(pairs(4))
    assert not streams  # a loader that is only made, or sent to another process, has none
    for _ in range(3):
        assert_same(list(data), pairs(4))
        next(iter(data))
    list(zip(data, data, strict=True))
    assert streams == [torch.device("cuda", 0)]
    assert len(used) == 2
    assert len(set(used)) == 1


# ---- memory, threads, processes


@pytest.mark.parametrize("mix", [None, Mix(mixup=1.0)])
def test_nothing_keeps_a_batch_that_the_consumer_drops(mix):
    sources = []

    def loader():
        for number in range(6):
            images, target = random_images(4, 6, 5, 3, seed=number), torch.arange(4)
            sources.append(weakref.ref(images))
            yield images, target
            del images, target

    gc.collect()
    gc.disable()
    try:
        iterator = iter(Prefetcher(loader(), mix=mix, **CPU))
        for number in range(6):
            batch = next(iterator)
            given, target = weakref.ref(batch[0]), weakref.ref(batch[1] if mix is None else batch[1].a)
            del batch
            assert given() is None, number
            assert mix is not None or target() is None, number
            assert sources[number]() is None, number
        with pytest.raises(StopIteration):
            next(iterator)
    finally:
        gc.enable()


def test_memory_does_not_grow():
    batch = random_images(8, 96, 96, 3), torch.arange(8)  # 0.9 MB when finished
    resident = []
    for _ in Prefetcher((batch for _ in range(220)), **CPU):
        with open("/proc/self/statm") as file:
            resident.append(int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6)
    assert resident[-1] - resident[20] < 30


@pytest.mark.parametrize("depth", [1, 3])
def test_the_memory_of_dropped_batches_is_used_again(depth):
    data = Prefetcher([random_images(8, 96, 96, 3)] * 20, depth=depth, **CPU)
    addresses, others = set(), []
    for _ in range(3):
        for number, images in enumerate(data):  # which holds the last batch while the next one is drawn
            addresses.add(images.data_ptr())
            # What the system is given back it gives to these, and not to a later batch.
            others.append(torch.empty_like(images))
            if number == 9:
                break
        del images
        others += [torch.empty_like(others[0]) for _ in range(depth + 2)]
    assert len(addresses) == depth + 2


def test_no_threads_are_left():
    before = threads()
    data = Prefetcher([random_images(8, 64, 64, 3) for _ in range(6)], num_threads=3, **CPU)
    iterator = iter(data)
    next(iterator)
    assert before < threads() <= before + 3
    del iterator
    for _ in range(10):
        next(iter(data))
    assert threads() <= before + 3
    del data
    assert threads() == before


def test_copies_give_the_same_batches():
    data = Prefetcher(DataLoader(Pictures(), 4), mix=Mix(mixup=1.0), **CPU)
    started = iter(data)
    next(started)
    expected = None
    for copied in (data, copy.deepcopy(data), pickle.loads(pickle.dumps(data))):
        copied.epoch = 4
        got = [images for images, _ in copied]
        expected = expected or got
        assert all(map(torch.equal, got, expected))
    assert len(list(started)) == 2


def python(script):
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)


def test_a_forked_child_can_iterate():
    result = python("""
import os, torch
from fastfeed import Prefetcher
torch.set_num_threads(1)  # PyTorch's own threads do not survive a fork
batches = [torch.full((8, 64, 64, 3), i, dtype=torch.uint8) for i in range(5)]
data = Prefetcher(batches, device="cpu", mean=(0, 0, 0), std=(1 / 255,) * 3)
list(data)
iterator = iter(data)  # under way, and left to the parent
next(iterator)
child = os.fork()
values = [round(images.mean().item()) for images in data]
if child == 0:
    del iterator
    os._exit(42 if values == [0, 1, 2, 3, 4] else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), values, len(list(iterator)))
""")
    assert (result.returncode, result.stdout.strip()) == (0, "42 [0, 1, 2, 3, 4] 4"), result.stderr


@pytest.mark.parametrize("workers", [0, 1])
def test_interpreter_exit_with_work_under_way(workers):
    result = python(f"""
import torch
from fastfeed import Prefetcher
images = torch.zeros(64, 128, 128, 3, dtype=torch.uint8)
loader = torch.utils.data.DataLoader([images] * 50, batch_size=None, num_workers={workers})
iterator = iter(Prefetcher(loader, device="cpu", depth=4))
print(next(iterator).shape[0])
""")
    assert (result.returncode, result.stdout.strip(), result.stderr) == (0, "64", "")


# ---- state


class Stateful:
    """In the style of torchdata's StatefulDataLoader. What it gives as its state is its own, and changes."""

    def __init__(self, length=5):
        self.length = length
        self.state = {"epoch": 0, "given": 0, "order": []}
        self.loaded = False

    def __iter__(self):
        if not self.loaded:
            self.state["given"] = 0
            generator = torch.Generator().manual_seed(self.state["epoch"])
            self.state["order"] = torch.randperm(self.length, generator=generator).tolist()
        self.loaded = False
        return self.batches()

    def batches(self):
        while self.state["given"] < len(self.state["order"]):
            number = self.state["order"][self.state["given"]]
            self.state["given"] += 1
            yield random_images(3, 4, 5, 3, seed=100 * self.state["epoch"] + number), torch.arange(3) + number
        self.state.update(epoch=self.state["epoch"] + 1, given=0, order=[])

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = copy.deepcopy(state)
        self.loaded = bool(state["order"])


def as_lists(batch):
    images, target = batch
    return images.tolist(), [part.tolist() for part in target] if isinstance(target, tuple) else target.tolist()


def epochs(data, count):
    """Return the batches of so many epochs, each ended by None."""
    return [item for _ in range(count) for item in (*(as_lists(batch) for batch in data), None)]


@pytest.mark.parametrize("mix", [None, Mix(0.3, 1.0, per="sample")])
@pytest.mark.parametrize("depth", [1, 2, 4, 9])
def test_resuming_gives_the_batches_of_an_uninterrupted_run(depth, mix):
    def new():
        return Prefetcher(Stateful(), mix=mix, depth=depth, seed=3, **CPU)

    whole = epochs(new(), 3)
    assert len(whole) == 18
    for steps in range(13):  # batches and ends of epochs before the interruption
        data, seen, iterator = new(), [], None
        while len(seen) < steps:
            iterator = iterator or iter(data)
            batch = next(iterator, None)
            seen.append(batch and as_lists(batch))
            iterator = None if batch is None else iterator
        for start_next in (False, True) if iterator is None else (False,):
            if start_next:
                iterator = iter(data)  # an epoch has begun, but has given nothing
            state = pickle.loads(pickle.dumps(data.state_dict()))
            resumed = new()
            resumed.load_state_dict(state)
            assert resumed.state_dict() == state  # saved again at once
            assert seen + epochs(resumed, 3)[: 18 - steps] == whole, (steps, start_next)
            assert data.state_dict() == state


def test_the_state_is_of_the_batch_that_was_given_last():
    loader = Stateful()
    data = Prefetcher(loader, depth=3, **CPU)
    assert data.state_dict() == {"loader": {"epoch": 0, "given": 0, "order": []}, "epoch": 0, "batch": 0}
    for number, _ in enumerate(data, 1):
        state = data.state_dict()
        assert (state["loader"]["given"], state["batch"], state["epoch"]) == (number, number, 0)
        if number < 2:
            assert loader.state["given"] == 4  # drawn ahead
    assert data.state_dict() == {"loader": {"epoch": 1, "given": 0, "order": []}, "epoch": 1, "batch": 0}


def test_state_after_leaving_early_and_starting_again():
    data = Prefetcher(Stateful(), **CPU)
    next(iter(data))
    assert (data.state_dict()["epoch"], data.state_dict()["batch"]) == (0, 1)
    data.set_epoch(5)
    assert (data.state_dict()["epoch"], data.state_dict()["batch"]) == (0, 1)  # the last one that was given
    iterator = iter(data)
    state = data.state_dict()
    assert (state["epoch"], state["batch"], state["loader"]["given"]) == (5, 0, 0)
    next(iterator)
    assert (data.state_dict()["epoch"], data.state_dict()["batch"]) == (5, 1)


def test_state_after_an_error():
    class Failing(Stateful):
        def batches(self):
            for number, batch in enumerate(super().batches()):
                if number == 3:
                    raise OSError("the disk")
                yield batch

    data = Prefetcher(Failing(), **CPU)
    with pytest.raises(OSError, match="the disk"):
        list(data)
    resumed = Prefetcher(Stateful(), **CPU)
    resumed.load_state_dict(data.state_dict())
    assert epochs(resumed, 1) == epochs(Prefetcher(Stateful(), **CPU), 1)[3:]
