"""Runs an iterator in a thread of its own, a bounded number of items ahead."""

import queue
import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from typing import Generic, TypeVar

Item = TypeVar("Item")


class _Failure:
    """What the iterator raised; None at its end."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class _Ahead(Generic[Item]):
    """The queue between the two threads."""

    def __init__(self, items: Iterable[Item], depth: int) -> None:
        self._items = items
        self._queue: queue.Queue[Item | _Failure] = queue.Queue(depth)
        self._is_stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lmcleaner-prefetch", daemon=True)

    def __iter__(self) -> Iterator[Item]:
        self._thread.start()
        try:
            while True:
                item = self._queue.get()
                if isinstance(item, _Failure):
                    if item.error is not None:
                        raise item.error
                    return
                yield item
        finally:
            self._is_stopped.set()
            with suppress(queue.Empty):
                self._queue.get_nowait()  # wakes a thread that waits for room
            self._thread.join()

    def _run(self) -> None:
        try:
            for item in self._items:
                if not self._put(item):
                    return
            self._put(_Failure(None))
        except BaseException as error:
            self._put(_Failure(error))

    def _put(self, item: Item | _Failure) -> bool:
        while not self._is_stopped.is_set():
            try:
                self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False


def ahead(items: Iterable[Item], depth: int) -> Generator[Item, None, None]:
    """The same items, made in another thread before they are asked for.

    Args:
        items: where they come from; is only used in that thread.
        depth: items made ahead, at least 1.

    Yields:
        The items in order. What the iterator raises is raised here; the thread has ended when this generator has.
    """
    yield from _Ahead(items, depth)
