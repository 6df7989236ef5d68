"""The memory, threads and processes of the last pass, and what it keeps on a GPU."""

import copy
import gc
import pickle
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from fastfeed.data.finish import Finish, SampleParameters
from fastfeed.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from tests.data.test_finish import FORMATS, random_images, random_parameters, same_bits


def test_memory_is_used_again_only_when_nobody_refers_to_it():
    finish, images = Finish(IMAGENET_MEAN, IMAGENET_STD), random_images(2, 16, 16, 3)
    expected = finish(images)
    weight = torch.ones(1, requires_grad=True)
    holders = {
        "view": lambda x: x[0, 0],
        "array": lambda x: x.numpy(),
        "storage": lambda x: x.untyped_storage(),
        "graph": lambda x: (weight * x).sum(),
        "detached": lambda x: x.detach(),
    }
    for name, hold in holders.items():
        output = finish(images)
        address = output.data_ptr()
        held = hold(output)
        del output
        others = [finish(255 - images) for _ in range(4)]
        assert address not in [other.data_ptr() for other in others], name
        if name == "graph":
            held.backward()
            torch.testing.assert_close(weight.grad, expected.sum()[None])
        del held, others


def test_memory_is_used_again():
    finish, images = Finish(IMAGENET_MEAN, IMAGENET_STD, spare_outputs=1), random_images(4, 224, 224, 3)
    output = finish(images)
    address = output.data_ptr()
    del output
    assert finish(images).data_ptr() == address
    assert finish(images[:3]).data_ptr() == address
    assert finish(images[:1, :9]).data_ptr() != address  # which is far too large


def test_no_spare_outputs():
    finish = Finish(IMAGENET_MEAN, IMAGENET_STD, spare_outputs=0)
    for _ in range(3):
        assert finish(random_images(2, 16, 16, 3)).shape == (2, 3, 16, 16)


def test_submit():
    images, parameters = random_images(16, 100, 100, 3), random_parameters("filled", 16, 100, 100)
    finish = Finish(IMAGENET_MEAN, IMAGENET_STD, threads=2)
    expected = finish(images, parameters)
    results = [finish.submit(images, parameters) for _ in range(5)]
    for output, ticket in reversed(results):
        ticket.wait()
        assert ticket.done()
        ticket.wait()
        assert torch.equal(output, expected)
    for shape in ((0, 4, 4, 3), (2, 0, 4, 3), (2, 4, 0, 3)):
        output, ticket = finish.submit(random_images(*shape), SampleParameters(shape[0]))
        ticket.wait()
        assert ticket.done()
        assert output.shape == (shape[0], 3, *shape[1:3])


def test_a_ticket_keeps_the_images_and_waits_when_it_is_dropped():
    finish = Finish(IMAGENET_MEAN, IMAGENET_STD, threads=1)
    source = random_images(32, 100, 100, 3)
    expected = finish(source)
    images = source.clone()
    gone = weakref.ref(images)
    output, ticket = finish.submit(images, SampleParameters(32))
    del images
    gc.collect()
    assert gone() is not None
    del ticket, finish
    assert gone() is None
    assert torch.equal(output, expected)


def test_an_output_may_be_dropped_while_it_is_made():
    finish, source = Finish(IMAGENET_MEAN, IMAGENET_STD, threads=2), random_images(16, 100, 100, 3)
    expected = finish(source)
    for _ in range(10):
        finish.submit(source.clone())
        output, ticket = finish.submit(source.clone())
        del output
        ticket.wait()
        assert torch.equal(finish(source), expected)


def test_many_threads_call_one_pass():
    finish = Finish(IMAGENET_MEAN, IMAGENET_STD, torch.bfloat16, threads=3)
    batches = [random_images(4, 40, 40 + i, 3) for i in range(8)]
    expected = [finish(batch) for batch in batches]

    def work(i):
        for _ in range(20):
            output, ticket = finish.submit(batches[i])
            assert same_bits(finish(batches[i]), expected[i])
            ticket.wait()
            assert same_bits(output, expected[i])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda finish: pickle.loads(pickle.dumps(finish))])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_copies(memory_format, copied):
    images, parameters = random_images(3, 5, 6, 3), random_parameters("filled", 3, 5, 6)
    finish = Finish(IMAGENET_MEAN, IMAGENET_STD, torch.float16, memory_format, fill=2.0, threads=2, spare_outputs=0)
    expected = finish(images, parameters)
    finish._on_gpu[torch.device("cuda", 0)] = finish._mean_std, threading.Lock()  # for an event: neither can be copied
    other = copied(finish)
    del finish
    got = other(images, copied(parameters))
    assert same_bits(got, expected)
    assert got.is_contiguous(memory_format=memory_format)
    assert other.pool.threads == 2
    assert other._on_gpu == {}


# ---- what is kept on a GPU

CPU, FIRST, SECOND = torch.device("cpu"), torch.device("cuda", 0), torch.device("cuda", 1)


class OnDevice:
    """A tensor, a stream or an event, as far as the pass uses them, where there is no GPU."""

    def __init__(self, device=CPU):
        self.device, self.told = device, []

    def pin_memory(self):
        return self

    def to(self, device, non_blocking):
        assert non_blocking
        return OnDevice(device)

    def record_stream(self, stream):
        self.told.append(stream)

    record = wait_event = record_stream


def capture(monkeypatch, capturing):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)


def test_parameters_are_kept_on_a_gpu(monkeypatch):
    parameters = SampleParameters(2, flip=[True, False])
    on_cpu = parameters.on(CPU)
    assert list(on_cpu.shape) == [2, 64]
    assert parameters.on(CPU) is parameters.keep_on(CPU) is on_cpu
    monkeypatch.setattr(parameters, "_bytes", OnDevice())
    capture(monkeypatch, True)
    for call in (parameters.on, parameters.keep_on):
        with pytest.raises(RuntimeError, match=r"call parameters.keep_on\(images.device\) before the capture"):
            call(FIRST)
    capture(monkeypatch, False)
    assert parameters.on(FIRST) is not parameters.on(FIRST)  # only on request
    kept = parameters.keep_on(FIRST)
    assert kept.device == FIRST
    capture(monkeypatch, True)
    assert parameters.on(FIRST) is parameters.keep_on(FIRST) is kept
    with pytest.raises(RuntimeError, match="before the capture"):
        parameters.on(SECOND)
    capture(monkeypatch, False)
    assert parameters.on(SECOND).device == parameters.keep_on(SECOND).device == SECOND
    assert parameters.on(CPU).device == CPU


def test_mean_and_std_are_kept_on_a_gpu(monkeypatch):
    finish = Finish(IMAGENET_MEAN, IMAGENET_STD)
    on_cpu = finish._mean_std_on(CPU)
    assert torch.equal(on_cpu, torch.tensor([IMAGENET_MEAN, IMAGENET_STD])[..., None, None])
    assert finish._mean_std_on(CPU) is on_cpu
    streams = {FIRST: OnDevice(), SECOND: OnDevice()}
    monkeypatch.setattr(torch.cuda, "current_stream", streams.get)
    monkeypatch.setattr(torch.cuda, "Event", OnDevice)
    monkeypatch.setattr(finish, "_mean_std", OnDevice())
    capture(monkeypatch, False)
    kept = finish._mean_std_on(FIRST)
    assert kept.device == FIRST
    copier, streams[FIRST] = streams[FIRST], OnDevice()
    assert finish._mean_std_on(FIRST) is kept
    (event,) = streams[FIRST].told
    assert event.told == [copier]
    assert kept.told[-1] is streams[FIRST]
    assert finish._mean_std_on(SECOND).device == SECOND
    # A graph may wait for nothing outside of it, and could not repeat the copy.
    capture(monkeypatch, True)
    assert finish._mean_std_on(FIRST) is kept
    assert streams[FIRST].told == [event]
    finish._on_gpu.clear()
    with pytest.raises(RuntimeError, match="cannot hold their copy: normalize one batch before the capture"):
        finish._mean_std_on(FIRST)
    assert finish._on_gpu == {}


# ---- processes


def run_script(script):
    start = """
import os, torch
from fastfeed.data.finish import Finish
finish = Finish((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), threads=2)
images = torch.arange(64 * 100 * 100 * 3).to(torch.uint8).reshape(64, 100, 100, 3)
"""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", start + script], capture_output=True, text=True, timeout=120
    )
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def test_a_forked_child_uses_its_parents_pass():
    script = """
expected, (output, ticket) = finish(images).numpy(), finish.submit(images)
child = os.fork()
if child == 0:
    try:
        ticket.wait()
    except RuntimeError as error:
        assert "after a fork" in str(error), error
    assert (finish(images).numpy() == expected).all()
    output, own = finish.submit(images)
    own.wait()
    assert (output.numpy() == expected).all()
    del ticket, own, finish
    os._exit(0)
ticket.wait()
assert (output.numpy() == expected).all()
assert os.waitpid(child, 0)[1] == 0
assert (finish(images).numpy() == expected).all()
print("right")
"""
    assert run_script(script) == "right\n"


@pytest.mark.parametrize("held", ["result", "result[1]", "result[0]", "None"])
def test_exit_with_work_under_way(held):
    assert run_script(f"result = finish.submit(images)\nresult = {held}\nprint('ended')") == "ended\n"


def test_tensors_without_memory_are_refused():
    script = """
from torch._subclasses.fake_tensor import FakeTensorMode
fake = FakeTensorMode().from_tensor(images)
freed = torch.empty(1, 3, 100, 100, memory_format=torch.channels_last)
freed.untyped_storage().resize_(0)
for arguments in ({"images": fake}, {"images": images[:1], "out": freed}):
    try:
        finish(**arguments)
    except ValueError as error:
        print(error)
"""
    assert run_script(script).splitlines() == [
        "images is torch.uint8 [64, 100, 100, 3] without memory: a fake tensor",
        "out is torch.float32 [1, 3, 100, 100], but its storage has been resized and does not hold it",
    ]
