import gc
import subprocess
import sys
import threading
import time
import weakref

import pytest

from fastfeed.data.background import ahead


def names():
    return [thread.name for thread in threading.enumerate() if thread.name == "fastfeed-ahead"]


@pytest.mark.parametrize("depth", [1, 2, 5])
@pytest.mark.parametrize("n", [0, 1, 7])
def test_items_in_order(n, depth):
    assert list(ahead(range(n), depth)) == list(range(n))
    assert names() == []


@pytest.mark.parametrize("depth", [1, 3])
def test_runs_so_far_ahead_and_no_farther(depth):
    made = []
    items = ahead((made.append(i) or i for i in range(100)), depth)
    for taken in range(1, 6):
        next(items)
        deadline = time.monotonic() + 5
        while len(made) < taken + depth and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.01)
        assert len(made) == taken + depth
    items.close()
    assert names() == []


class Stop(BaseException):
    pass


@pytest.mark.parametrize("error", [ValueError("bad"), Stop(), KeyboardInterrupt(), SystemExit(3), MemoryError()])
def test_an_error_comes_after_the_items_before_it(error):
    def source():
        yield 1
        yield 2
        raise error

    items = ahead(source(), 4)
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(type(error)) as raised:
        next(items)
    assert raised.value is error
    assert names() == []
    with pytest.raises(StopIteration):
        next(items)


def test_closing_ends_the_thread_and_closes_nothing_else():
    at, go = threading.Event(), threading.Event()

    def source():
        yield 1
        at.set()
        go.wait(5)
        yield 2

    items = ahead(source(), 1)
    next(items)
    at.wait(5)
    threading.Timer(0.05, go.set).start()
    items.close()  # waits for the item that is under way
    assert names() == []


def test_dropping_the_iterator_ends_the_thread():
    items = ahead(iter(range(10)), 2)
    next(items)
    del items
    gc.collect()
    assert names() == []


def test_keeps_no_item_that_was_taken():
    class Item:
        pass

    items = ahead((Item() for _ in range(5)), 1)
    item = next(items)
    held = weakref.ref(item)
    del item
    next(items)
    assert held() is None
    items.close()


def test_never_started_starts_nothing():
    items = ahead(range(3), 1)
    assert names() == []
    items.close()


def test_an_interpreter_that_ends_in_the_middle_ends():
    code = (
        "from itertools import count\n"
        "from fastfeed.data.background import ahead\n"
        "items = ahead(count(), 2)\n"
        "print(next(items), next(items))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (0, "0 1\n", "")
