"""PyTorch's worker processes under DataLoader: what they are told, how long they live, and what ends them."""

import contextlib
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest
import torch
from torch.utils.data import get_worker_info

from tests.torch_loaders import PYTORCHS, DataLoader, Mapped, Stream, assert_same

ROOT = Path(__file__).parents[2]


class Processes(Mapped):
    """Samples (index, process, worker)."""

    def __init__(self, n=8):
        super().__init__(n, None)
        self.wait = 0

    def __getitem__(self, i):
        time.sleep(self.wait * (i == 1))
        return i, os.getpid(), getattr(get_worker_info(), "id", -1)


def processes(loader):
    """Return the workers that make an epoch's batches."""
    return {int(process) for _, process, _ in loader if process is not None}


def alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def assert_gone(processes, seconds=5):
    """Assert that processes end; PyTorch gives them a moment."""
    until = time.monotonic() + seconds
    while any(map(alive, processes)):
        multiprocessing.active_children()  # which waits for those that have ended
        assert time.monotonic() < until, "workers are left over"
        time.sleep(0.01)


def error_of(function):
    """Return what a call raises, and let go of its frames: PyTorch's own that raises holds the error, and so itself."""
    try:
        function()
    except Exception as error:
        traceback.clear_frames(error.__traceback__)
        return f"{type(error).__name__}: {error}"


@pytest.fixture(autouse=True)
def no_workers_left():
    yield
    assert_gone({child.pid for child in multiprocessing.active_children()})


def test_samples_come_from_the_workers_in_turn():
    here = {int(process) for _, process, _ in DataLoader(Processes(), None)}
    assert here == {os.getpid()}
    batches = list(DataLoader(Processes(), 2, num_workers=2))
    assert [worker.tolist() for *_, worker in batches] == [[0, 0], [1, 1], [0, 0], [1, 1]]
    assert len({int(p) for _, process, _ in batches for p in process} - here) == 2


def seen_by_a_worker(i):
    info = get_worker_info()
    return info.id, info.num_workers, info.seed, type(info.dataset), torch.initial_seed(), torch.get_num_threads()


def test_worker_info_and_seeds_are_pytorchs():
    seen = []
    for loader in (DataLoader, PYTORCHS):
        generator = torch.Generator().manual_seed(42)
        data = loader(Mapped(4, seen_by_a_worker), None, num_workers=2, generator=generator)
        seen.append([list(data) for _ in range(2)])
    assert seen[0] == seen[1]
    assert get_worker_info() is None
    first, second = seen[0]
    assert [row[:2] for row in first] == [[0, 2], [1, 2], [0, 2], [1, 2]]
    assert {row[3] for row in first} == {Mapped}
    assert len({row[4] for row in first + second}) == 4  # a seed for each worker and epoch


def test_the_global_generator_is_used_as_by_pytorchs():
    states = []
    for loader in (DataLoader, PYTORCHS):
        torch.manual_seed(7)
        batches = list(loader(Mapped(3, lambda i: torch.rand(1))))
        states.append((batches, torch.rand(1)))
    assert_same(*states)


def note(worker):
    get_worker_info().dataset.function = lambda i: (i, worker, torch.utils.data.get_worker_info().id)


def test_worker_init_fn():
    assert [*DataLoader(Mapped(3, None), None, num_workers=2, worker_init_fn=note)] == [[0, 0, 0], [1, 1, 1], [2, 0, 0]]

    def broken(worker):
        raise OSError("of worker_init_fn")

    error = error_of(lambda: list(DataLoader(range(3), num_workers=1, worker_init_fn=broken)))
    assert error.startswith("OSError: Caught OSError in DataLoader worker process 0.")
    assert error.endswith("OSError: of worker_init_fn\n")


def test_persistent_workers_stay():
    data = DataLoader(Processes(), None, num_workers=2, persistent_workers=True)
    first = processes(data)
    assert len(first) == 2
    for _ in data:  # left early
        break
    iterator = iter(data)
    next(iterator)
    epoch = list(data)  # while another one runs
    assert [i for i, *_ in epoch] == [*range(8)]
    assert {process for _, process, _ in epoch} == first
    with pytest.raises(RuntimeError, match="persistent workers make the batches of one iterator at a time"):
        next(iterator)
    data.close()
    assert_gone(first)
    assert len(processes(data) - first) == 2  # and it can be used again


def test_workers_that_do_not_stay():
    data = DataLoader(Processes(), None, num_workers=1)
    first, second = processes(data), processes(data)
    assert len(first | second) == 2
    assert_gone(first | second)


def leave_early(data):
    for batch in data:
        return {int(batch[1])}


def drop_the_iterator(data):
    iterator = iter(data)
    return {int(next(iterator)[1])}


def close_the_iterator(data):
    with data:
        iterator = iter(data)
        workers = {int(next(iterator)[1])}
        iterator.close()
    assert_gone(workers)
    return workers


def fail(data):
    workers = set()
    with pytest.raises(ZeroDivisionError):
        for _, process, _ in data:
            workers.add(int(process))
            raise ZeroDivisionError
    return workers


def time_out(data):
    workers = set()
    data.dataset.wait = 1.5
    try:
        for _, process, _ in DataLoader(data.dataset, None, num_workers=1, timeout=0.3):
            workers.add(int(process))
    except RuntimeError:
        return workers


def fail_in_the_sampler(data):
    def indices():
        yield 0
        raise ZeroDivisionError

    workers = set()
    try:
        for _, process, _ in DataLoader(data.dataset, None, sampler=indices(), num_workers=1):
            workers.add(int(process))
    except ZeroDivisionError:
        return workers


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize(
    "end", [leave_early, drop_the_iterator, close_the_iterator, fail, time_out, fail_in_the_sampler]
)
def test_workers_end(end, persistent):
    gc.disable()
    try:
        data = DataLoader(Processes(), None, num_workers=1, persistent_workers=persistent)
        workers = end(data)
        assert len(workers) == 1
        if persistent and end in (leave_early, drop_the_iterator, fail):
            assert all(map(alive, workers))
        del data
        assert_gone(workers)
    finally:
        gc.enable()


def test_workers_of_an_epoch_that_runs_end_with_it():
    data = DataLoader(Processes(), None, num_workers=1, persistent_workers=True)
    iterator = iter(data)
    workers = {next(iterator)[1]}
    data.close()
    assert [i for i, *_ in iterator] == [*range(1, 8)]
    assert_gone(workers)


@pytest.mark.parametrize("context", ["fork", multiprocessing.get_context("fork")], ids=["name", "context"])
def test_multiprocessing_context(context):
    options = {"batch_size": 2, "num_workers": 1, "multiprocessing_context": context}
    data = DataLoader(torch.arange(5), **options)
    assert data.multiprocessing_context is context
    assert [batch.tolist() for batch in data] == [[0, 1], [2, 3], [4]]


def slow(i):
    if i == 1:
        time.sleep(1.5)
    return i


def test_timeout():
    for loader in (DataLoader, PYTORCHS):
        waited_for_long_enough = multiprocessing.Event()

        def waiting(i, end=waited_for_long_enough):
            if i == 1:
                end.wait(60)
            return i

        iterator = iter(loader(Mapped(3, waiting), num_workers=1, timeout=0.3))
        for _ in range(2):  # it may be tried again
            assert error_of(lambda: list(iterator)) == "RuntimeError: DataLoader timed out after 0.3 seconds"  # noqa: B023
        waited_for_long_enough.set()


def test_batches_after_a_timeout_are_the_right_ones():
    iterator = iter(DataLoader(Mapped(3, slow), num_workers=1, timeout=0.6, info=True))
    given, until = [], time.monotonic() + 20
    while len(given) < 3 and time.monotonic() < until:
        with contextlib.suppress(RuntimeError):
            given += [next(iterator)]
    assert [(batch.item(), info.index.item()) for batch, info in given] == [(0, 0), (1, 1), (2, 2)]


def killed(i):
    if i == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return i


def test_a_worker_that_is_killed():
    iterator = iter(DataLoader(Mapped(4, killed), num_workers=1))
    with pytest.raises(
        RuntimeError, match=r"DataLoader worker \(pid.*\d+\).* (killed by signal: Killed|exited unexpectedly)"
    ):
        list(iterator)


class Count(Mapped):
    """Samples that count in shared memory how many were made."""

    def __init__(self, n):
        super().__init__(n, None)
        self.made = torch.zeros((), dtype=torch.int64).share_memory_()

    def __getitem__(self, i):
        self.made += 1
        return i


@pytest.mark.parametrize(("factor", "expected"), [(None, 3), (1, 2), (4, 5)])
def test_prefetch_factor(factor, expected):
    dataset = Count(20)
    iterator = iter(DataLoader(dataset, num_workers=1, prefetch_factor=factor))
    next(iterator)
    until = time.monotonic() + 10
    while dataset.made < expected and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.05)
    assert dataset.made == expected  # one was taken
    del iterator


def test_nothing_is_made_ahead_without_workers():
    dataset = Count(20)
    iterator = iter(DataLoader(dataset, 2))
    assert [int(dataset.made), len(next(iterator)), int(dataset.made)] == [0, 2, 2]


SCRIPT = """
import time
import torch
import fastfeed

class Slow(torch.utils.data.Dataset):
    def __len__(self):
        return 1000

    def __getitem__(self, i):
        time.sleep(0.01)
        return i

if __name__ == "__main__":
    for number, _ in enumerate(fastfeed.DataLoader(Slow(), num_workers=2, device="cpu")):
        if number == 3:
            print("ready", flush=True)
"""


def test_ctrl_c_ends_the_process_and_its_workers():
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == "ready\n", process.stderr.read()
    os.killpg(process.pid, signal.SIGINT)  # to all of the group, as a terminal does
    _, errors = process.communicate(timeout=30)  # which the workers would hold up: they have its pipes
    assert process.returncode == -signal.SIGINT
    assert errors.endswith("\nKeyboardInterrupt\n")
    assert errors.count("Traceback") == 1, errors


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_ends_its_workers_too(workers):
    iterator = iter(DataLoader(Stream(10**9), num_workers=workers))
    assert [next(iterator).item() for _ in range(4)] == [0, 1, 2, 3]
    children = {child.pid for child in multiprocessing.active_children()}
    assert len(children) == workers
    del iterator
    assert_gone(children)
