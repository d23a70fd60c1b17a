"""A function over many items in several threads, its results in order."""

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_UNDER_WAY = 8  # items for each thread, so that they have work while the caller writes to the disk

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(
    function: Callable[[Item], Result], items: Iterable[Item], consume: Callable[[Result], None], threads: int
) -> None:
    """Gives `consume` what `function` makes of each item, in the order of the items.

    Eight results for each thread are made ahead at most. What goes wrong anywhere is raised here, when all threads have
    ended.

    Args:
        function: what the threads do, in long calls that leave the interpreter's lock; with many short ones, as numpy's
            arithmetic is, they only wait for each other.
        items: what it is given; made in the calling thread.
        consume: called in the calling thread.
        threads: 1 is the calling thread.
    """
    if threads == 1:
        for item in items:
            consume(function(item))
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="lmcleaner-compressor") as pool:
        under_way: deque[Future[Result]] = deque()
        for item in items:
            under_way.append(pool.submit(function, item))
            if len(under_way) == _UNDER_WAY * threads:
                consume(under_way.popleft().result())
        while under_way:
            consume(under_way.popleft().result())
