"""Chunks and shards as bytes, by the Zarr v3 codecs `blosc`, `crc32c` and `sharding_indexed`.

A chunk is a Blosc frame followed by its CRC-32C. A shard is its chunks one after the other, then an index with the
offset and the number of bytes of each, then the index's CRC-32C. Nothing is allocated by what a frame says of itself:
its header must say what the caller expects.
"""

from collections.abc import Sequence
from typing import Any

import google_crc32c
import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray

from lmcleaner.formats.arrays import Compression

CHECKSUM_BYTES = 4
_HEADER = np.dtype([
    ("versions", "<u2"),
    ("flags", "u1"),
    ("itemsize", "u1"),
    ("raw", "<u4"),
    ("block", "<u4"),
    ("stored", "<u4"),
])
_SHUFFLES = {"noshuffle": blosc.NOSHUFFLE, "shuffle": blosc.SHUFFLE, "bitshuffle": blosc.BITSHUFFLE}
_MISSING = np.uint64(2**64 - 1)  # offset and size of a chunk that a shard doesn't hold


class ChunkError(ValueError):
    """Bytes that are not what a writer wrote; the caller adds the place."""


def encode_chunk(values: NDArray[Any], num_elements: int, compression: Compression) -> bytes:
    """Compresses one chunk.

    Args:
        values: up to `num_elements` elements, any shape; zeros fill the rest.
        num_elements: size of the chunk.
        compression: settings of Blosc.

    Returns:
        The frame and its checksum.
    """
    flat = np.ascontiguousarray(values, values.dtype.newbyteorder("<")).reshape(-1)
    if len(flat) < num_elements:
        flat = np.concatenate([flat, np.zeros(num_elements - len(flat), flat.dtype)])
    shuffle = _SHUFFLES[compression.shuffle]
    frame = blosc.compress(flat, compression.cname.encode(), compression.clevel, shuffle, typesize=flat.itemsize)
    return b"".join((frame, _checksum(frame)))


def decode_chunk(data: bytes | memoryview, dtype: np.dtype[Any], num_elements: int) -> NDArray[Any]:
    """Checks and decompresses one chunk.

    Args:
        data: the frame and its checksum.
        dtype: of an element.
        num_elements: size of the chunk.

    Returns:
        Its elements, `[num_elements]`.

    Raises:
        ChunkError: the checksum or the header isn't right, or Blosc can't read the frame.
    """
    frame = _checked(data, "chunk")
    expected = num_elements * dtype.itemsize
    if len(frame) < _HEADER.itemsize:
        raise ChunkError(f"expected a Blosc frame, found {len(frame)} bytes")
    header = np.frombuffer(frame, _HEADER, count=1)[0]
    if header["raw"] != expected or header["stored"] != len(frame) or not 0 < header["block"] <= max(expected, 1):
        raise ChunkError(f"expected a frame of {expected} bytes, found one that says {header['raw']}")
    values = np.empty(num_elements, dtype.newbyteorder("<"))
    try:
        blosc.decompress(frame, values)
    except (RuntimeError, ValueError) as error:
        raise ChunkError(f"Blosc can't read the frame ({error})") from error
    return values.astype(dtype, copy=False)


def max_chunk_bytes(dtype: np.dtype[Any], num_elements: int) -> int:
    """The most that a chunk can take in a store: Blosc keeps what it can't compress, behind its header."""
    return _HEADER.itemsize + num_elements * dtype.itemsize + CHECKSUM_BYTES


def index_bytes(num_chunks: int) -> int:
    """Bytes of a shard's index, at its end."""
    return num_chunks * 16 + CHECKSUM_BYTES


def encode_index(sizes: Sequence[int], num_chunks: int) -> bytes:
    """The index of a shard whose chunks lie one after the other.

    Args:
        sizes: bytes of each chunk that it holds.
        num_chunks: chunks of a full shard.

    Returns:
        The index and its checksum.
    """
    index = np.full((num_chunks, 2), _MISSING, "<u8")
    index[: len(sizes), 1] = sizes
    index[: len(sizes), 0] = np.cumsum([0, *sizes])[:-1]
    data = index.tobytes()
    return data + _checksum(data)


def decode_index(data: bytes, num_chunks: int, shard_bytes: int) -> NDArray[np.int64]:
    """Checks and reads the index of a shard.

    Args:
        data: the last `index_bytes(num_chunks)` bytes of the shard.
        num_chunks: chunks of a full shard.
        shard_bytes: size of the shard.

    Returns:
        int64 `[chunks + 1]`: where each chunk that the shard holds begins, and where the last one ends.

    Raises:
        ChunkError: the checksum isn't right, or the chunks don't fill the shard one after the other.
    """
    if len(data) != index_bytes(num_chunks):
        raise ChunkError(f"expected an index of {index_bytes(num_chunks)} bytes, found {len(data)}")
    index = np.frombuffer(_checked(data, "index"), "<u8").reshape(num_chunks, 2)
    held = index[: int(np.count_nonzero(index[:, 0] != _MISSING))]
    limit = np.uint64(shard_bytes)
    if (held > limit).any() or (index[len(held) :] != _MISSING).any():
        raise ChunkError("the index points outside of the shard")
    edges = np.concatenate([[0], np.cumsum(held[:, 1].astype(np.int64))])
    if (edges[:-1] != held[:, 0]).any() or edges[-1] != shard_bytes - len(data):
        raise ChunkError("the shard's chunks don't lie one after the other")
    return edges


def _checksum(data: bytes | NDArray[np.uint8]) -> bytes:
    return int(google_crc32c.value(data)).to_bytes(CHECKSUM_BYTES, "little")


def _checked(data: bytes | memoryview, what: str) -> memoryview:
    """The bytes before a right checksum, where they are."""
    body, checksum = memoryview(data)[:-CHECKSUM_BYTES], bytes(data[-CHECKSUM_BYTES:])
    if not body or checksum != _checksum(np.frombuffer(body, np.uint8)):
        raise ChunkError(f"the {what}'s checksum is wrong")
    return body
