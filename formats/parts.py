"""A vector that lies in consecutive pieces of memory, worked on span by span."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from lmcleaner.formats.bits import Bits


class Parts:
    """One vector over several arrays; a span inside of one array is worked on in place, another through a copy."""

    def __init__(self, arrays: Sequence[Bits]) -> None:
        """Keeps the arrays, whose memory is the vector's.

        Args:
            arrays: consecutive one-dimensional arrays of one dtype.
        """
        self.arrays = list(arrays)
        self._edges = np.cumsum([0, *(len(array) for array in self.arrays)])

    def __len__(self) -> int:
        return int(self._edges[-1])

    @contextmanager
    def span(self, start: int, stop: int) -> Iterator[Bits]:
        """The elements from `start` to `stop`, to be changed in place.

        Yields:
            A view, or a copy that is written back afterwards.
        """
        first = int(np.searchsorted(self._edges, start, side="right")) - 1
        if stop <= self._edges[first + 1]:
            offset = int(self._edges[first])
            yield self.arrays[first][start - offset : stop - offset]
            return
        pieces = list(self._pieces(first, start, stop))
        joined = np.concatenate(pieces)
        yield joined
        done = 0
        for piece in pieces:
            piece[:] = joined[done : done + len(piece)]
            done += len(piece)

    def _pieces(self, number: int, start: int, stop: int) -> Iterator[Bits]:
        while start < stop:
            offset, end = int(self._edges[number]), int(min(self._edges[number + 1], stop))
            yield self.arrays[number][start - offset : end - offset]
            start, number = end, number + 1
