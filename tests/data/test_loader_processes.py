"""The loader in processes of its own: ranks, interrupts, ends in the middle of an epoch, memory."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed
import torch.multiprocessing

from tests.images import write_folder
from tests.loaders import assert_same_samples, by_index, everything, index_of, make_loader

pytestmark = pytest.mark.dali

ROOT = Path(__file__).parents[2]
WORLD_SIZE, SIZE = 4, 23
needs_distributed = pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch without torch.distributed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("processes") / "data", {"cat": 10, "dog": 13})


def make(folder):
    return make_loader(folder, 3, shuffle=True, seed=4, transform=everything())


def share(folder):
    """Return two epochs of this process, the second one resumed in its middle."""
    data = make(folder)
    assert (data.rank, data.world_size) == (torch.distributed.get_rank(), torch.distributed.get_world_size())
    first, second = list(data), [next(iter(data))]
    resumed = make(folder)
    resumed.load_state_dict(data.state_dict())
    return first, second + list(resumed)


def process(rank, folder, out):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{out}/rendezvous", rank=rank, world_size=WORLD_SIZE
    )
    torch.save(share(folder), out / f"{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def assert_together_an_epoch(folder, files):
    one = make(folder)
    for shares in zip(*(torch.load(file, weights_only=False) for file in files), strict=True):
        assert len({len(batches) for batches in shares}) == 1
        batches = [batch for batches in shares for batch in batches]
        assert sorted(index_of(batches)) == list(range(SIZE))
        assert_same_samples(by_index(batches), by_index(one))


@pytest.fixture
def loopback(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@needs_distributed
@pytest.mark.usefixtures("loopback")
def test_ranks_of_torch_distributed_together_give_the_epoch_of_one(folder, tmp_path):
    torch.multiprocessing.spawn(process, (folder, tmp_path), nprocs=WORLD_SIZE)
    assert_together_an_epoch(folder, [tmp_path / f"{rank}.pt" for rank in range(WORLD_SIZE)])


@needs_distributed
@pytest.mark.usefixtures("loopback")
def test_ranks_under_torchrun(folder, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(f"""
import torch
from tests.data.test_loader_processes import share

torch.distributed.init_process_group("gloo")
torch.save(share({str(folder)!r}), f"{tmp_path}/{{torch.distributed.get_rank()}}.pt")
torch.distributed.destroy_process_group()
""")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    result = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert_together_an_epoch(folder, [tmp_path / f"{rank}.pt" for rank in range(2)])


def environment():
    """Return the environment for a script elsewhere that imports the tests."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}


def run(script, folder, **options):
    """Start a script that has `data`, a loader, and `forever`, its batches without an end."""
    head = f"""
from tests.loaders import everything, make_loader

data = make_loader({str(folder)!r}, 2, shuffle=True, transform=everything(), prefetch_factor=4)

def forever():
    while True:
        yield from data
"""
    return subprocess.Popen(
        [sys.executable, "-c", head + script],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.mark.parametrize("training", ["pass", "time.sleep(0.2)"])  # interrupted in the loader, and outside of it
def test_ctrl_c_ends_the_process(folder, training):
    script = f"""
import time

for number, _ in enumerate(forever()):
    if number == 17:
        print("ready", flush=True)
    if number > 17:
        {training}
"""
    process = run(script, folder, start_new_session=True)
    assert process.stdout.readline() == "ready\n", process.stderr.read()
    time.sleep(0.3)
    sent = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)  # to all of the group, as a terminal does
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - sent < 10
    assert process.returncode == -signal.SIGINT
    assert errors.startswith("Traceback (most recent call last):\n")
    assert errors.endswith("\nKeyboardInterrupt\n")
    assert errors.count("Traceback") == 1, errors
    assert "ignored" not in errors


def test_a_session_goes_on_after_ctrl_c(folder):
    # as in a notebook: whatever the interrupt hits, the next epoch is whole, and no threads gather
    script = """
import json, os, signal, sys, threading, time, torch

assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
noise = []
sys.unraisablehook = lambda unraisable: noise.append(repr(unraisable.exc_value))

def epoch():
    data.set_epoch(0)
    return torch.cat([images for images, *_ in data])

def interrupted(delay):
    timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT))
    try:
        timer.start()
        for _ in forever():
            pass
    except KeyboardInterrupt:
        timer.join()
        return True

expected = epoch()
same, threads = [], []
for number in range(30):
    assert interrupted(0.01 + 0.0013 * number)
    same.append(torch.equal(epoch(), expected))
    threads.append(len(os.listdir("/proc/self/task")))
print(json.dumps({"same": same, "threads": threads, "noise": noise}))
"""
    output, errors = run(script, folder).communicate(timeout=120)
    result = json.loads(output or errors)
    assert result["same"] == [True] * 30
    assert result["threads"][-1] <= result["threads"][0]
    assert result["noise"] == []


ENDS = {
    "by sys.exit, with two iterators": ("import sys\nother = iter(data)\nnext(other)\nsys.exit(3)", 3, ""),
    "by an error": ("raise KeyError('of the training step')", 1, "KeyError: 'of the training step'\n"),
}


@pytest.mark.parametrize("how", ENDS)
def test_an_interpreter_that_ends_in_the_middle_of_an_epoch(folder, how):
    end, code, message = ENDS[how]
    process = run("iterator = iter(data)\nnext(iterator)\nprint('given', flush=True)\n" + end, folder)
    output, errors = process.communicate(timeout=60)
    assert (output, process.returncode) == ("given\n", code), errors
    assert errors.endswith(message)
    assert errors.count("Traceback") == bool(message)
    assert errors == "" or message


def test_a_reader_that_dies_ends_the_process(folder):
    script = """
from tests.data.test_loader_threads import Breaking, Stop

data.dataset.__class__ = Breaking
data.dataset.error, data.dataset.at, data.dataset.reads = Stop("of the reader"), 3, 0
for _ in data:
    pass
"""
    process = run(script, folder)
    output, errors = process.communicate(timeout=60)
    assert (output, process.returncode) == ("", 1)
    assert errors.count("Traceback") == 1
    assert errors.endswith("Stop: of the reader\n")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_memory_is_flat_over_twenty_epochs(tmp_path):
    # Batches of 6 MB: if one were left behind in each epoch, memory would grow by a fifth.
    write_folder(tmp_path / "data", {"a": 40}, sizes=((200, 200), (150, 260)))
    script = f"""
import gc, json, os
from fastfeed import Mix
from tests.loaders import everything, make_loader

data = make_loader({str(tmp_path / "data")!r}, 10, shuffle=True, transform=everything(size=224), mix=Mix(0.4, 1.0))
page, resident = os.sysconf("SC_PAGE_SIZE"), []
for _ in range(20):
    next(iter(data))  # one is left early, and one goes to its end
    for _ in data:
        pass
    gc.collect()
    with open("/proc/self/statm") as file:
        resident.append(int(file.read().split()[1]) * page)
print(json.dumps(resident))
"""
    # Memory that is freed goes back at once, so that what is resident is what is held.
    allocator = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "2"}
    process = subprocess.run(
        [sys.executable, "-c", script], env={**environment(), **allocator}, capture_output=True, text=True, timeout=120
    )
    resident = json.loads(process.stdout or process.stderr)
    assert max(resident[2:]) <= 1.01 * resident[1], resident
