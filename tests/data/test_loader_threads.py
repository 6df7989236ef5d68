"""Iterators that come and go, and what they leave behind: nothing."""

import gc
import itertools
import os
import threading
import time
import weakref

import pytest

from fastfeed.data.errors import SampleError
from fastfeed.data.sources import FolderSource
from tests.images import write_folder
from tests.loaders import assert_same_batches, assert_same_samples, by_index, everything, make_loader

pytestmark = pytest.mark.dali

SIZE = 22


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("threads") / "data", {"cat": 9, "dog": 13})


@pytest.fixture(scope="module")
def epochs(folder):
    data = make_loader(folder, shuffle=True, transform=everything())
    return [list(data) for _ in range(4)]


def make(folder, **options):
    return make_loader(folder, **{"shuffle": True, "transform": everything(), **options})


def threads():
    return len(os.listdir("/proc/self/task"))


def assert_no_more_threads_than(before):
    # those that were joined may be in the list for a moment yet
    deadline = time.monotonic() + 5
    while threads() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threads() <= before
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("fastfeed")] == []


@pytest.fixture
def nothing_left(folder):
    """Assert that a test leaves as many threads as it found."""
    list(make(folder))  # the first pipeline of a process starts threads that DALI keeps for all
    gc.collect()
    before = threads()
    yield
    gc.collect()
    assert_no_more_threads_than(before)


def test_one_after_the_other(folder, epochs):
    data = make(folder)
    for expected in epochs:
        assert_same_batches(list(data), expected)


@pytest.mark.parametrize("count", [0, 1, 3, 6])
def test_a_break_and_then_a_whole_epoch(folder, epochs, count):
    data = make(folder, prefetch_factor=4)
    for expected in epochs[:3]:
        assert_same_batches(list(itertools.islice(data, count)), expected[:count])
    assert_same_batches(list(data), epochs[3 if count else 0])  # an epoch begins with its first batch


def test_two_at_once(folder, epochs):
    data = make(folder)
    first, second = iter(data), iter(data)
    got = [(next(first), next(second)) for _ in range(6)]
    assert_same_batches([batch for batch, _ in got], epochs[0])
    assert_same_batches([batch for _, batch in got], epochs[1])
    assert next(first, None) is next(second, None) is None
    assert_same_batches(list(data), epochs[2])


def test_two_at_once_of_which_one_is_left(folder, epochs):
    data = make(folder)
    first, second = iter(data), iter(data)
    next(first)
    got = [next(second)]
    del first
    third = iter(data)
    assert_same_batches([*got, *second], epochs[1])
    assert_same_batches(list(third), epochs[2])


def test_two_at_once_in_two_threads(folder, epochs):
    data, got = make(folder), {}
    iterators = [iter(data), iter(data)]
    workers = [threading.Thread(target=lambda i=i: got.update({i: list(iterators[i])})) for i in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for i in range(2):
        assert_same_batches(got[i], epochs[i])


def test_the_last_of_an_iterator_is_the_last(folder):
    iterator = iter(make(folder))
    assert len(list(iterator)) == 6
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(iterator)


@pytest.mark.usefixtures("nothing_left")
def test_no_thread_after_del(folder):
    data = make(folder)
    list(data)
    next(iter(data))


@pytest.mark.usefixtures("nothing_left")
def test_no_thread_after_an_iterator_that_outlives_its_loader(folder, epochs):
    iterator = iter(make(folder))
    gc.collect()
    assert_same_batches(list(iterator), epochs[0])


@pytest.mark.usefixtures("nothing_left")
def test_no_thread_after_a_loader_that_was_not_used(folder):
    iter(make(folder))


def test_no_thread_after_close(folder, epochs):
    data = make(folder)
    list(data)
    data.close()
    assert data._engine._idle_graph is None
    gc.collect()
    before = threads()
    data.set_epoch(0)
    assert_same_batches(list(data), epochs[0])  # it can be used again
    assert threads() > before
    data.close()
    assert_no_more_threads_than(before)
    data.close()
    next(iter(data))
    data.close()
    assert_no_more_threads_than(before)


@pytest.mark.parametrize("leave", ["end", "break", "error"])
def test_no_thread_after_with(folder, leave):
    list(make(folder))
    gc.collect()
    before = threads()

    def use(data):
        with data as entered:
            assert entered is data
            for _ in data:
                if leave == "break":
                    break
                if leave == "error":
                    raise KeyError("of the training step")

    data = make(folder)
    if leave == "error":
        with pytest.raises(KeyError, match="of the training step"):
            use(data)
    else:
        use(data)
    assert_no_more_threads_than(before)  # though the loader is there yet
    assert len(list(data)) == 6


def test_close_while_an_epoch_runs_lets_it_end(folder, epochs):
    data = make(folder)
    iterator = iter(data)
    got = [next(iterator)]
    data.close()
    assert_same_batches([*got, *iterator], epochs[0])
    assert_same_batches(list(data), epochs[1])


@pytest.mark.parametrize("leave", ["end", "close", "error"])
def test_an_iterator_that_outlives_close_leaves_no_threads(folder, leave):
    list(make(folder))  # the first pipeline of a process starts threads that DALI keeps for all
    gc.collect()
    before = threads()
    error = OSError(5, "Input/output error")
    data = make(Breaking(folder, error, 4 if leave == "error" else 0))
    iterator = iter(data)
    next(iterator)
    data.close()
    if leave == "end":
        assert len(list(iterator)) == 5
    elif leave == "close":
        iterator.close()
    else:
        with pytest.raises(OSError, match="Input/output error"):
            list(iterator)
        error.__traceback__ = None  # which holds the graph
    assert data._engine._idle_graph is None
    assert data._engine._rings._idle is None
    assert_no_more_threads_than(before)


def test_an_iterator_that_outlives_close_leaves_a_loader_in_use_alone(folder, epochs):
    data = make(folder)
    first = iter(data)
    next(first)
    data.close()
    second = iter(data)
    got = [next(second)]
    list(first)
    graph = data._engine._idle_graph
    assert graph is not None
    assert_same_batches([*got, *second], epochs[1])
    assert_same_batches(list(data), epochs[2])


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_close_gives_back_what_files_were_read_into(tmp_path):
    write_folder(tmp_path, {"a": 4})
    for path in (tmp_path / "a").iterdir():
        # After the image's end, where nobody looks. What is larger than 32 MiB the C library gives back when it is
        # freed; of smaller pieces it keeps as many as the process has had before.
        os.truncate(path, 2**25 + 2**20)
    data = make_loader(tmp_path, shuffle=True, on_error="drop")
    list(data)
    before = resident()
    data.close()
    assert before - resident() > 2**25
    assert len(list(data)) == 1


def test_leaving_an_epoch_ends_the_thread_that_reads_ahead(folder):
    data = make(folder)
    for _ in data:
        assert [thread.name for thread in threading.enumerate()].count("fastfeed-ahead") == 1
        break
    assert "fastfeed-ahead" not in [thread.name for thread in threading.enumerate()]


class Stop(BaseException):
    pass


class Breaking(FolderSource):
    """A source whose reader dies at one batch."""

    def __init__(self, root, error, at):
        super().__init__(root)
        self.error, self.at, self.reads = error, at, 0

    def read(self, indices, pool):
        self.reads += 1
        if self.reads == self.at:
            raise self.error
        return super().read(indices, pool)


ERRORS = [OSError(24, "Too many open files"), MemoryError("of the reader"), Stop("of the reader"), SystemExit(3)]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("at", [1, 2, 4, 6])
@pytest.mark.usefixtures("nothing_left")
def test_a_reader_that_dies(folder, epochs, at, error):
    source = Breaking(folder, error, at)
    data, got = make(source), []
    with pytest.raises(type(error)) as raised:
        for batch in data:
            got.append(batch)
    assert raised.value is error
    assert_same_batches(got, epochs[0][: len(got)])
    if isinstance(error, Exception):
        assert len(got) == at - 1  # its turn comes after the batches before it
    assert_no_ahead()
    assert_same_batches(list(data), epochs[1])  # and the loader goes on
    error.__traceback__ = None  # which holds this frame


def assert_no_ahead():
    assert "fastfeed-ahead" not in [thread.name for thread in threading.enumerate()]


def test_resuming_after_a_reader_that_died(folder, epochs):
    data, got = make(Breaking(folder, OSError(5, "Input/output error"), 4)), []
    with pytest.raises(OSError, match="Input/output error"):
        for batch in data:
            got.append(batch)
    data.load_state_dict(data.state_dict())
    assert_same_batches(got + list(data), epochs[0])


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.usefixtures("nothing_left")
def test_a_training_step_that_raises(folder, epochs, error):
    data = make(folder)

    def train():
        for _ in data:
            raise error

    with pytest.raises(type(error)):
        train()
    error.__traceback__ = None
    assert_no_ahead()
    assert_same_batches(list(data), epochs[1])


@pytest.mark.parametrize("call", ["feed_input", "schedule_run", "share_outputs", "release_outputs"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.usefixtures("nothing_left")
def test_an_interrupt_in_the_middle_of_a_call_of_dali(folder, epochs, call, when, number):
    # which leaves the pipeline in a state that nobody knows, so it must not be used again
    data = make(folder)
    pipeline, calls = data._engine._idle_graph.pipeline, itertools.count(1)
    whole = getattr(pipeline, call)

    def interrupted(*arguments, **options):
        this = next(calls)
        if this == number and when == "before":
            raise KeyboardInterrupt
        result = whole(*arguments, **options)
        if this == number:
            raise KeyboardInterrupt
        return result

    setattr(pipeline, call, interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(data)
    assert_no_ahead()
    assert_same_batches(list(data), epochs[1])


def test_a_graph_is_kept_through_bad_samples(tmp_path):
    # to build one takes a while on a GPU
    write_folder(tmp_path, {"a": 6})
    (tmp_path / "a" / "003.jpg").write_bytes(b"")
    data = make_loader(tmp_path, 2)
    graph = data._engine._idle_graph
    for _ in range(2):
        with pytest.raises(SampleError, match=r"003\.jpg"):
            list(data)
    assert data._engine._idle_graph is graph


def test_batches_are_let_go(folder):
    data = make(folder)
    held = []
    for images, _, _ in data:
        held.append(weakref.ref(images))
    del images
    gc.collect()
    assert [ref() for ref in held] == [None] * 6


def test_batches_that_are_kept_stay_as_they_were(folder, epochs):
    data = make(folder)
    kept = [batch for _ in range(4) for batch in data]
    assert_same_batches(kept, [batch for epoch in epochs for batch in epoch])
    assert len({images.data_ptr() for images, _, _ in kept}) == len(kept)


def test_changing_a_batch_changes_no_other(folder, epochs):
    data = make(folder)
    expected = [by_index(epoch) for epoch in epochs]
    for epoch in expected:
        for batch in data:
            images, target, info = batch
            assert_same_samples(by_index([batch]), {i: epoch[i] for i in info.index.tolist()})
            for tensor in (images, target, info.index, info.valid):
                tensor.zero_()
