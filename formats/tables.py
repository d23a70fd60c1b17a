"""Tables: arrays that grow along axis 0, each chunk an object, each table under one running digest."""

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmcleaner.formats.arrays import ArrayLayout
from lmcleaner.formats.canonical import little_endian_bytes
from lmcleaner.formats.chunks import ChunkError, decode_chunk, encode_chunk, max_chunk_bytes
from lmcleaner.formats.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class TableCommit:
    """What the commit record says of a table.

    Attributes:
        rows: number of rows.
        sha256: digest of all rows' little-endian bytes, hexadecimal.
    """

    rows: int
    sha256: str


NO_ROWS = TableCommit(rows=0, sha256=hashlib.sha256().hexdigest())


class TableWriter:
    """Rows wait in memory until they are flushed; a running digest covers the flushed ones.

    Attributes:
        num_rows: rows appended so far, flushed or not.
    """

    def __init__(self, store: Store, path: str, layout: ArrayLayout, rows: NDArray[Any] | None = None) -> None:
        """Begins the table, or goes on with it.

        Args:
            store: where the log lies.
            path: of the array in the store.
            layout: how the array is stored.
            rows: the rows that are stored already, all of them.
        """
        self._store, self._path, self._layout = store, path, layout
        stored = np.empty((0, *layout.row), layout.dtype) if rows is None else rows
        self._digest = hashlib.sha256(little_endian_bytes(stored))
        self.num_rows = self._num_flushed = len(stored)
        self._tail = stored[self._num_flushed // layout.chunk[0] * layout.chunk[0] :]
        self._waiting: list[NDArray[Any]] = []

    def append(self, rows: Any) -> None:
        """Adds rows; `rows` has the table's columns behind axis 0."""
        block = np.asarray(rows, dtype=self._layout.dtype).reshape(-1, *self._layout.row)
        self._waiting.append(block)
        self.num_rows += len(block)

    def flush(self) -> TableCommit:
        """Writes the chunks that the waiting rows belong to."""
        if self._num_flushed < self.num_rows:
            new = np.concatenate(self._waiting)
            self._digest.update(little_endian_bytes(new))
            self._write(np.concatenate([self._tail, new]))
        self._waiting = []
        self._num_flushed = self.num_rows
        return TableCommit(rows=self.num_rows, sha256=self._digest.hexdigest())

    def _write(self, rows: NDArray[Any]) -> None:
        """Writes rows that begin with the last partial chunk, and keeps the new last one."""
        size = self._layout.chunk[0]
        first = self._num_flushed // size
        for start in range(0, len(rows), size):
            data = encode_chunk(rows[start : start + size], math.prod(self._layout.chunk), self._layout.compression)
            self._store.write(chunk_key(self._path, self._layout, first + start // size), [data])
        self._tail = rows[len(rows) // size * size :].copy()


def read_table(store: Store, path: str, layout: ArrayLayout, committed: TableCommit) -> NDArray[Any]:
    """All committed rows of a table.

    Args:
        store: where the log lies.
        path: of the array in the store.
        layout: how the array is stored.
        committed: what the commit record says of it.

    Returns:
        The rows, with the layout's dtype.

    Raises:
        ChunkError: the bytes can't be read or don't have the committed digest.
        FileNotFoundError: a chunk isn't there.
    """
    size, num_elements = layout.chunk[0], math.prod(layout.chunk)
    limit = max_chunk_bytes(layout.dtype, num_elements)
    blocks = [np.empty((0, *layout.row), layout.dtype)]
    for number in range(math.ceil(committed.rows / size)):
        data = store.read(chunk_key(path, layout, number), 0, limit + 1)
        blocks.append(decode_chunk(data, layout.dtype, num_elements).reshape(layout.chunk))
    rows = np.concatenate(blocks)[: committed.rows]
    if hashlib.sha256(little_endian_bytes(rows)).hexdigest() != committed.sha256:
        raise ChunkError("the rows don't have the committed digest")
    return rows


def chunk_key(path: str, layout: ArrayLayout, number: int) -> str:
    """Where a table's chunk lies in the store."""
    return "/".join([path, "c", str(number), *("0" for _ in layout.row)])


def chunk_keys(path: str, layout: ArrayLayout, num_rows: int) -> list[str]:
    """Where all chunks of a table lie."""
    return [chunk_key(path, layout, number) for number in range(math.ceil(num_rows / layout.chunk[0]))]
