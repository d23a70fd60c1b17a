"""Arrays as long as a parameter vector, cut into spans: `[step, parameter]`, or one vector of a checkpoint.

A span's chunk is compressed by itself, so that a part of a vector can be read alone. The chunks of some steps of a
small model, or of a part of one step of a large one, share an object.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmcleaner.formats.arrays import ArrayLayout
from lmcleaner.formats.canonical import array_digest
from lmcleaner.formats.chunks import (
    ChunkError,
    decode_chunk,
    decode_index,
    encode_chunk,
    encode_index,
    index_bytes,
    max_chunk_bytes,
)
from lmcleaner.formats.store import Store

_READ_BYTES = 1 << 22  # neighbouring chunks are read together up to this size: few requests, little memory


class Grid:
    """Where the chunks of an array lie.

    Attributes:
        chunks_per_row: spans of a row.
        capacity: chunks of a full shard.
    """

    def __init__(self, path: str, layout: ArrayLayout, length: int) -> None:
        """Works out the grid.

        Args:
            path: of the array in the store.
            layout: a sharded layout.
            length: elements of a row.
        """
        assert layout.shard is not None
        self.path, self.layout = path, layout
        self.length, self.chunk = length, layout.chunk[-1]
        self.chunks_per_row = max(1, math.ceil(length / self.chunk))
        self.shard_chunks = layout.shard[-1] // self.chunk
        self.shard_rows = layout.shard[0] if layout.row else 1
        self.capacity = self.shard_rows * self.shard_chunks

    def key(self, row: int, span: int) -> str:
        """The object that holds a row's span."""
        place = [row // self.shard_rows] if self.layout.row else []
        return "/".join([self.path, "c", *map(str, [*place, span // self.shard_chunks])])

    def position(self, row: int, span: int) -> int:
        """Which chunk of its shard a row's span is."""
        return row % self.shard_rows * self.shard_chunks + span % self.shard_chunks

    def size(self, span: int) -> int:
        """Elements of a span; the last one may be shorter."""
        return min(self.chunk, self.length - span * self.chunk)

    def shards_of(self, row: int) -> list[str]:
        """The objects that hold a row."""
        return [self.key(row, span) for span in range(0, self.chunks_per_row, self.shard_chunks)]


class VectorWriter:
    """Appends rows, span by span; a shard is written when it is full, and again when more rows come into it.

    Attributes:
        num_rows: whole rows so far.
    """

    def __init__(self, store: Store, grid: Grid, num_rows: int = 0) -> None:
        """Begins the array, or goes on behind the rows that are stored.

        Args:
            store: where the log lies.
            grid: where its chunks lie.
            num_rows: rows that are stored already.

        Raises:
            ChunkError: the shard that the next row comes into is damaged.
        """
        self._store, self._grid = store, grid
        self.num_rows, self._span = num_rows, 0
        self._chunks: list[bytes] = self._stored_chunks()
        self._is_written = True

    def compress(self, values: NDArray[Any]) -> bytes:
        """The chunk of a span; any thread may ask for it."""
        return encode_chunk(values, self._grid.chunk, self._grid.layout.compression)

    def add(self, chunk: bytes) -> None:
        """Adds the next span of the row; the last one ends it."""
        grid = self._grid
        key = grid.key(self.num_rows, self._span)
        self._chunks.append(chunk)
        self._is_written = False
        self._span += 1
        if len(self._chunks) == grid.capacity or (grid.shard_rows == 1 and self._span == grid.chunks_per_row):
            self._write(key)
            self._chunks = []
        if self._span == grid.chunks_per_row:
            self.num_rows, self._span = self.num_rows + 1, 0

    def flush(self) -> None:
        """Writes a shard that has room left."""
        if not self._is_written:
            self._write(self._grid.key(self.num_rows - 1, 0))

    def _write(self, key: str) -> None:
        index = encode_index([len(chunk) for chunk in self._chunks], self._grid.capacity)
        self._store.write(key, [*self._chunks, index])
        self._is_written = True

    def _stored_chunks(self) -> list[bytes]:
        """Chunks of the rows before, that share a shard with the next one."""
        first = self.num_rows // self._grid.shard_rows * self._grid.shard_rows
        reader = VectorReader(self._store, self._grid)
        spans = range(self._grid.chunks_per_row)
        return [bytes(chunk) for row in range(first, self.num_rows) for chunk in reader.stored(row, spans)]


class VectorReader:
    """Reads spans of rows, and checks every chunk."""

    def __init__(self, store: Store, grid: Grid) -> None:
        """Reads nothing yet."""
        self._store, self._grid = store, grid
        self._index: tuple[str, NDArray[np.int64]] | None = None

    def read(self, row: int, spans: Sequence[int]) -> Iterator[NDArray[Any]]:
        """Decompressed spans.

        Args:
            row: which row; 0 in a checkpoint's vector.
            spans: which spans, ascending.

        Yields:
            The elements of each span.

        Raises:
            ChunkError: a chunk or an index is damaged.
            FileNotFoundError: a shard isn't there.
        """
        grid = self._grid
        for span, data in zip(spans, self.stored(row, spans), strict=True):
            yield decode_chunk(data, grid.layout.dtype, grid.chunk)[: grid.size(span)]

    def stored(self, row: int, spans: Sequence[int]) -> Iterator[memoryview]:
        """The chunks of spans as they lie in the store, neighbours read together.

        Args:
            row: which row.
            spans: which spans, ascending.

        Yields:
            The bytes of each chunk, unchecked.

        Raises:
            ChunkError: an index is damaged.
            FileNotFoundError: a shard isn't there.
        """
        for run in self._runs(row, spans):
            key = self._grid.key(row, run[0])
            edges = self._edges(key)
            first, last = self._grid.position(row, run[0]), self._grid.position(row, run[-1])
            data = memoryview(self._store.read(key, int(edges[first]), int(edges[last + 1] - edges[first])))
            for position in range(first, last + 1):
                yield data[edges[position] - edges[first] : edges[position + 1] - edges[first]]

    def check_room(self, row: int, spans: Sequence[int]) -> None:
        """Makes sure that spans are there before memory is taken for them.

        Args:
            row: which row.
            spans: which spans, ascending.

        Raises:
            ChunkError: an index is damaged, or a span isn't in its shard.
            FileNotFoundError: a shard isn't there.
        """
        for _ in self._runs(row, spans):
            pass

    def _runs(self, row: int, spans: Sequence[int]) -> Iterator[list[int]]:
        """Groups neighbouring spans of one shard, up to the size that is read at once.

        Yields:
            The spans of one request.
        """
        run: list[int] = []
        num_bytes = 0
        for span in spans:
            size = self._stored_bytes(row, span)
            is_neighbour = run and span == run[-1] + 1 and span % self._grid.shard_chunks
            if run and not (is_neighbour and num_bytes + size <= _READ_BYTES):
                yield run
                run, num_bytes = [], 0
            run.append(span)
            num_bytes += size
        if run:
            yield run

    def _stored_bytes(self, row: int, span: int) -> int:
        edges = self._edges(self._grid.key(row, span))
        position = self._grid.position(row, span)
        if position + 1 >= len(edges):
            raise ChunkError("the shard doesn't hold the chunk")
        size, limit = (
            int(edges[position + 1] - edges[position]),
            max_chunk_bytes(self._grid.layout.dtype, self._grid.chunk),
        )
        if size > limit:
            raise ChunkError(f"expected a chunk of at most {limit} bytes, found {size}")
        return size

    def _edges(self, key: str) -> NDArray[np.int64]:
        if self._index is None or self._index[0] != key:
            try:
                self._index = key, self._read_index(key)
            except ChunkError:  # a writer may have replaced the shard between the two requests
                self._index = key, self._read_index(key)
        return self._index[1]

    def _read_index(self, key: str) -> NDArray[np.int64]:
        size, tail = self._store.size(key), index_bytes(self._grid.capacity)
        if size < tail:
            raise ChunkError(f"expected a shard of at least {tail} bytes, found {size}")
        return decode_index(self._store.read(key, size - tail, tail), self._grid.capacity, size)


def read_rows(store: Store, grid: Grid, num_rows: int, blake3: str) -> NDArray[Any]:
    """A whole array, checked against its digest.

    Args:
        store: where the log lies.
        grid: where its chunks lie.
        num_rows: how many rows it has; 1 of a vector.
        blake3: the committed digest, hexadecimal.

    Returns:
        Its elements, `[num_rows, length]`.

    Raises:
        ChunkError: the bytes can't be read or don't have the committed digest.
        FileNotFoundError: an object isn't there.
    """
    reader, spans = VectorReader(store, grid), range(grid.chunks_per_row)
    for row in range(num_rows):
        reader.check_room(row, spans)
    values = np.empty((num_rows, grid.length), grid.layout.dtype)
    for row in range(num_rows):
        for number, span in enumerate(reader.read(row, spans)):
            values[row, number * grid.chunk : number * grid.chunk + len(span)] = span
    if array_digest(values).hex() != blake3:
        raise ChunkError("the values don't have the committed digest")
    return values
