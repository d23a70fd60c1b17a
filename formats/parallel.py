"""A function over many items in several threads, its results in order."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_UNDER_WAY = 8  # items for each thread, so that they have work while the caller writes to the disk

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(function: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Generator[Result, None, None]:
    """What `function` makes of each item; eight for each thread are under way at most.

    Args:
        function: what the threads do, in long calls that leave the interpreter's lock; with many short ones, as numpy's
            arithmetic is, they only wait for each other.
        items: what it is given; made in the calling thread.
        threads: 1 is the calling thread.

    Yields:
        The results, in the order of the items. What the function raises is raised here.
    """
    if threads == 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="lmcleaner-coder") as pool:
        under_way: deque[Future[Result]] = deque()
        for item in items:
            under_way.append(pool.submit(function, item))
            if len(under_way) == _UNDER_WAY * threads:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
