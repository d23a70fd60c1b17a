"""Updates and gradients: arrays `[step, parameter]`, coded span by span."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from lmcleaner.formats.bits import BIT_DTYPES, Bits
from lmcleaner.formats.canonical import little_endian_bytes
from lmcleaner.formats.codecs import CODECS, SPAN
from lmcleaner.formats.layout import num_spans
from lmcleaner.formats.parallel import in_order
from lmcleaner.formats.store import Store
from lmcleaner.formats.tree import Tree
from lmcleaner.formats.vectors import VectorReader, VectorWriter


class StackWriter:
    """Appends rows."""

    def __init__(self, store: Store, tree: Tree, name: str, num_rows: int = 0, threads: int = 1) -> None:
        """Begins the arrays, or goes on behind the rows that are stored.

        Args:
            store: where the log lies.
            tree: of the log.
            name: of the stack.
            num_rows: rows that are stored already.
            threads: that compress.
        """
        self._threads = min(threads, num_spans(tree.manifest.num_elements))
        self._codec, self._dtype = CODECS[tree.codec(name)], tree.manifest.model.dtype
        self._columns = [VectorWriter(store, grid, num_rows) for grid in tree.stack(name)]

    def append(self, spans: Iterable[tuple[Bits, Bits]]) -> bytes:
        """Adds a row.

        Args:
            spans: what each span is coded against, which becomes what a reader will reconstruct, and its bit patterns.

        Returns:
            BLAKE3, 32 bytes, of what a reader will reconstruct.
        """
        digest = blake3()

        def coded() -> Iterator[tuple[NDArray[Any], ...]]:
            for before, after in spans:
                yield self._codec.encode(before, after, self._dtype)
                digest.update(little_endian_bytes(before))

        in_order(self._compress, coded(), self._add, self._threads)
        return digest.digest()

    def flush(self) -> None:
        """Writes what waits in shards that have room left."""
        for column in self._columns:
            column.flush()

    def _compress(self, stored: Sequence[NDArray[Any]]) -> list[bytes]:
        return [column.compress(values) for column, values in zip(self._columns, stored, strict=True)]

    def _add(self, chunks: Sequence[bytes]) -> None:
        for column, chunk in zip(self._columns, chunks, strict=True):
            column.add(chunk)


class StackReader:
    """Reads rows."""

    def __init__(self, store: Store, tree: Tree, name: str) -> None:
        """Reads nothing yet.

        Args:
            store: where the log lies.
            tree: of the log.
            name: of the stack.
        """
        self._codec, self._dtype = CODECS[tree.codec(name)], tree.manifest.model.dtype
        self._num_elements = tree.manifest.num_elements
        self._columns = [VectorReader(store, grid) for grid in tree.stack(name)]

    def check_room(self, row: int, spans: Sequence[int]) -> None:
        """Makes sure that spans are there before memory is taken for them.

        Raises:
            ChunkError: an index is damaged, or a span isn't in its shard.
            FileNotFoundError: a shard isn't there.
        """
        for column in self._columns:
            column.check_room(row, spans)

    def stored(self, row: int, spans: Sequence[int]) -> Iterator[tuple[NDArray[Any], ...]]:
        """What the row holds of some spans, one array for each of the codec's columns.

        Raises:
            ChunkError: a chunk or an index is damaged.
            FileNotFoundError: a shard isn't there.
        """
        return zip(*(column.read(row, spans) for column in self._columns), strict=True)

    def decoded(self, row: int, spans: Sequence[int]) -> Bits:
        """Some spans of a row that is coded against zeros, one after the other.

        Raises:
            ChunkError: a chunk or an index is damaged.
            FileNotFoundError: a shard isn't there.
        """
        self.check_room(row, spans)
        sizes = [min(SPAN, self._num_elements - span * SPAN) for span in spans]
        values = np.zeros(sum(sizes), BIT_DTYPES[self._dtype])
        for number, stored in enumerate(self.stored(row, spans)):
            self.apply(values[number * SPAN : (number + 1) * SPAN], stored)
        return values

    def apply(self, before: Bits, stored: Sequence[NDArray[Any]]) -> None:
        """Makes `before` what `stored` takes it to, in place."""
        self._codec.apply(before, stored, self._dtype)


def spans_of(num_elements: int) -> list[slice]:
    """The spans of a parameter vector."""
    return [slice(n * SPAN, min((n + 1) * SPAN, num_elements)) for n in range(num_spans(num_elements))]
