"""Prefetcher and its ring on a GPU, where work is stretched with torch.cuda._sleep so that a missing wait shows."""

import subprocess
import sys

import pytest
import torch

from fastfeed import Mix, Prefetcher
from fastfeed.data.finish import finish_reference
from fastfeed.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from tests.data.test_prefetch import pairs

pytestmark = pytest.mark.gpu

CYCLES = 20_000_000  # about 10 ms
SOURCES = ("pageable", "pinned", "device", "floating", "target on the device")
SIZE = {"n": 16, "h": 64, "w": 56}


def two_gpus():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")


class Loader:
    """Makes its batches anew in every epoch, after a pause if they are made on the GPU, and keeps none."""

    def __init__(self, source, count, device="cuda", **size):
        self.source, self.count, self.device = source, count, device
        self.batches = pairs(count, **{**SIZE, **size})

    def __iter__(self):
        for images, target in self.batches:
            if self.source == "pinned":
                yield images.pin_memory(), target.pin_memory()
            elif self.source == "device":
                yield self.on_gpu(images), self.on_gpu(target)
            elif self.source == "target on the device":
                yield images.clone(), self.on_gpu(target)
            elif self.source == "floating":
                yield images.permute(0, 3, 1, 2).float() / 255, target.clone()
            else:
                yield images.clone(), target.clone()

    def on_gpu(self, tensor):
        with torch.cuda.device(self.device):
            pinned = tensor.pin_memory()
            torch.cuda._sleep(CYCLES // 4)
            return pinned.to(self.device, non_blocking=True)


def sleep(stream):
    with torch.cuda.stream(stream):
        torch.cuda._sleep(CYCLES)


def check(got, batches, dtype=torch.float32):
    """Compare what was given, or copies of it, with the reference."""
    torch.cuda.synchronize()
    assert len(got) == len(batches)
    for (images, target), (expected, expected_target) in zip(got, batches, strict=True):
        expected = finish_reference(expected, None, IMAGENET_MEAN, IMAGENET_STD, dtype)
        torch.testing.assert_close(images.cpu(), expected, rtol=1e-6, atol=1e-6)
        assert torch.equal(target.cpu(), expected_target)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_batches(source, depth):
    loader = Loader(source, 9)
    data = Prefetcher(loader, "cuda", depth=depth)
    for _ in range(3):
        got = list(data)
        for images, target in got:
            assert images.is_cuda
            assert target.is_cuda
            assert images.is_contiguous(memory_format=torch.channels_last)
        check(got, loader.batches)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mix", [None, Mix(0.5, 1.0, per="sample")])
def test_batches_are_those_of_the_cpu(dtype, mix):
    batches = pairs(5, **SIZE)
    for gpu, cpu in zip(*(Prefetcher(batches, d, dtype=dtype, mix=mix) for d in ("cuda", "cpu")), strict=True):
        assert torch.equal(gpu[0].cpu(), cpu[0])
        for one, other in zip(gpu[1], cpu[1], strict=True):
            assert torch.equal(one.cpu(), other)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("depth", [1, 3])
def test_a_slow_consumer(source, depth):
    # The pass stands behind the pause, so that a copy that does not wait for it would overwrite what it has yet to
    # read; and what is dropped is still to be read, so that its memory may not be used again.
    loader, got = Loader(source, 12), []
    for images, target in Prefetcher(loader, "cuda", depth=depth):
        torch.cuda._sleep(CYCLES)
        got.append((images.clone(), target.clone()))
        del images, target
    check(got, loader.batches)


@pytest.mark.parametrize("source", SOURCES)
def test_a_slow_copy(source):
    loader, got = Loader(source, 8), []
    data = Prefetcher(loader, "cuda")
    iterator = iter(data)
    got.append(next(iterator))
    for _ in range(7):
        sleep(data._rings.stream)
        got.append(next(iterator))
    check(got, loader.batches)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("depth", [1, 2])
def test_a_consumer_that_switches_its_stream(source, depth):
    loader, got = Loader(source, 12), []
    streams = [torch.cuda.Stream() for _ in range(3)]
    iterator = iter(Prefetcher(loader, "cuda", depth=depth))
    for number in range(12):
        stream = streams[number % 3]
        if number % 2 == 0:
            sleep(stream)
        with torch.cuda.stream(stream):
            images, target = next(iterator)
            got.append((images.clone(), target.clone()))
            del images, target
    check(got, loader.batches)


def test_a_batch_kept_while_ten_more_are_drawn():
    loader = Loader("pageable", 14)
    iterator = iter(Prefetcher(loader, "cuda"))
    kept = [next(iterator) for _ in range(2)]
    for _ in range(10):
        torch.cuda._sleep(CYCLES // 4)
        images, _ = next(iterator)
        images.zero_()
    check(kept, loader.batches[:2])


@pytest.mark.parametrize("source", SOURCES)
def test_leaving_with_copies_under_way(source):
    loader = Loader(source, 6)
    data = Prefetcher(loader, "cuda", depth=3)
    for taken in (0, 1, 2, 4):
        iterator = iter(data)
        if taken:
            next(iterator)
            sleep(data._rings.stream)
        for _ in range(1, taken):
            next(iterator)
        del iterator
    check(list(data), loader.batches)


def test_an_error_with_copies_under_way():
    class Failing(Loader):
        def __iter__(self):
            yield from super().__iter__()
            raise LookupError("no batch today")

    loader = Failing("pageable", 5)
    data = Prefetcher(loader, "cuda", depth=3)
    for _ in range(3):
        got = []
        with pytest.raises(LookupError, match="no batch today"):
            for batch in data:
                torch.cuda._sleep(CYCLES // 4)
                got.append(batch)
        check(got, loader.batches)


def test_interpreter_exit_with_copies_under_way():
    script = """
import torch
from fastfeed import Prefetcher
data = Prefetcher([torch.zeros(64, 128, 128, 3, dtype=torch.uint8)] * 20, device="cuda", depth=4)
iterator = iter(data)
print(len(next(iterator)))
with torch.cuda.stream(data._rings.stream):
    torch.cuda._sleep(100_000_000)
next(iterator)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stdout.strip(), result.stderr) == (0, "64", "")


def test_changing_sizes_with_a_slow_consumer():
    batches = [pair for n in (2, 16, 1, 9, 24, 3) for pair in pairs(2, n=n, h=40, w=30 + n)]
    got = []
    for images, target in Prefetcher(batches, "cuda", depth=1):
        torch.cuda._sleep(CYCLES // 2)
        got.append((images.clone(), target.clone()))
        del images, target
    check(got, batches)


def test_a_training_step_in_a_cuda_graph():
    loader = Loader("pageable", 10)
    data = Prefetcher(loader, "cuda", stable_addresses=True)
    iterator = iter(data)
    images, target = next(iterator)

    def step():
        return images.double().sum((1, 2, 3)) + target

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph, results = torch.cuda.CUDAGraph(), []
    with torch.cuda.graph(graph):
        result = step()
    for epoch in range(2):
        for number in range(0 if epoch else 1, 10):
            new_images, new_target = next(iterator)
            assert (new_images.data_ptr(), new_target.data_ptr()) == (images.data_ptr(), target.data_ptr())
            torch.cuda._sleep(CYCLES // 4)
            graph.replay()
            results.append((number, result.clone()))
        iterator = iter(data)
    torch.cuda.synchronize()
    for number, result in results:
        pixels, labels = loader.batches[number]
        expected = finish_reference(pixels, None, IMAGENET_MEAN, IMAGENET_STD).double().sum((1, 2, 3)) + labels
        torch.testing.assert_close(result.cpu(), expected, rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("source", ["pageable", "pinned", "floating"])
@pytest.mark.parametrize("mix", [None, Mix(mixup=1.0)])
def test_the_host_is_not_held_up(source, mix):
    if source == "floating" and mix is not None:
        pytest.skip("mix is for uint8 images")
    data = Prefetcher(Loader(source, 8), "cuda", mix=mix)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(2):
            for _ in data:
                pass
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("source", ["pageable", "pinned"])
def test_no_new_memory_per_batch(source):
    data = Prefetcher(Loader(source, 10), "cuda", mix=Mix(mixup=1.0))

    def epoch():
        for images, _ in data:
            images.sum()
        torch.cuda.synchronize()

    for _ in range(3):
        epoch()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    for _ in range(5):
        epoch()
    image_bytes = SIZE["n"] * SIZE["h"] * SIZE["w"] * 3 * 4
    assert torch.cuda.memory_reserved() <= before[1]
    # Memory that was used on two streams counts as allocated until the allocator looks at it again.
    assert abs(torch.cuda.memory_allocated() - before[0]) < image_bytes
    assert torch.cuda.max_memory_allocated() - before[0] <= 6 * image_bytes


def test_sparse_tensors_are_moved():
    batches = [(images, torch.eye(5).to_sparse() * number) for number, (images, _) in enumerate(pairs(4, **SIZE))]
    for number, (_, sparse) in enumerate(Prefetcher(batches, "cuda")):
        assert sparse.is_sparse
        assert sparse.is_cuda
        assert torch.equal(sparse.to_dense().cpu(), torch.eye(5) * number)


@pytest.mark.parametrize("source", SOURCES)
def test_another_device_than_the_current_one(source):
    two_gpus()
    loader = Loader(source, 8, device="cuda:1")
    got = []
    for images, target in Prefetcher(loader, "cuda:1"):
        assert (images.device.index, target.device.index, torch.cuda.current_device()) == (1, 1, 0)
        with torch.cuda.device(1):
            torch.cuda._sleep(CYCLES // 2)
            got.append((images.clone(), target.clone()))
        del images, target
    for device in range(2):
        torch.cuda.synchronize(device)
    check(got, loader.batches)


def test_images_on_another_gpu():
    two_gpus()
    loader = Loader("device", 8, device="cuda:1")
    got = list(Prefetcher(loader, "cuda:0"))
    assert all(tensor.device.index == 0 for batch in got for tensor in batch)
    torch.cuda.synchronize(1)
    check(got, loader.batches)
