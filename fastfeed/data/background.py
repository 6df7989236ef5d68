"""Work that is done ahead, in a thread beside the consumer's."""

import sys
import threading
from collections.abc import Generator, Iterable, Iterator
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")


def ahead(source: Iterable[T], depth: int) -> Generator[T, None, None]:
    """Yield what `source` yields, which runs in a thread of its own, up to `depth` items ahead.

    What it raises is raised here, after the items before it. When this generator is closed or dropped, the thread ends
    with the item that it is at, and is waited for. It is a daemon, for an interpreter that ends without closing
    generators.
    """
    items: SimpleQueue[tuple[T | None, BaseException | None, bool]] = SimpleQueue()
    room, closed = threading.Semaphore(depth), threading.Event()
    thread = threading.Thread(target=_run, args=(iter(source), items, room, closed), name="fastfeed-ahead", daemon=True)
    try:
        thread.start()
        while True:
            item, error, more = items.get()
            if error is not None:
                try:
                    raise error
                finally:
                    del error  # it holds this frame by its traceback: do not close the circle
            if not more:
                return
            room.release()
            yield item  # type: ignore[misc]  # an item, since there is more
            del item
    finally:
        closed.set()
        room.release()
        # An interrupt may come before it is alive; and one that the interpreter's end has stopped never ends.
        if thread.is_alive() and not sys.is_finalizing():
            thread.join()


def _run(
    source: Iterator[T],
    items: "SimpleQueue[tuple[T | None, BaseException | None, bool]]",
    room: threading.Semaphore,
    closed: threading.Event,
) -> None:
    try:
        while True:
            room.acquire()
            if closed.is_set():
                return
            try:
                items.put((next(source), None, True))
            except StopIteration:
                items.put((None, None, False))
                return
    except BaseException as error:  # also one that would end the thread and leave the consumer waiting
        items.put((None, error, False))
