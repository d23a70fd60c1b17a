"""How an array is stored, and the Zarr v3 metadata that says so.

The metadata is a function of the layout: a reader of this package computes what it must be, and never takes a shape, a
dtype or a codec from a file. Other readers of Zarr need it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lmcleaner.formats.canonical import canonical_json

Shuffle = Literal["noshuffle", "shuffle", "bitshuffle"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compression:
    """Settings of Blosc.

    Attributes:
        cname: compressor inside of Blosc.
        clevel: level, 1 to 9.
        shuffle: what is done to bytes or bits before.
    """

    cname: Literal["lz4", "zstd"]
    clevel: int
    shuffle: Shuffle


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayLayout:
    """One array: a grid of chunks, each compressed and checked by itself.

    Attributes:
        dtype: numpy dtype of an element, little-endian on disk.
        row: shape behind axis 0; () where the array is one vector or one column.
        chunk: shape of a chunk, a number for each axis.
        shard: shape of the part that shares an object, or None where each chunk is an object.
        compression: settings of Blosc.
        attributes: what the array says of itself.
    """

    dtype: np.dtype[Any]
    row: tuple[int, ...]
    chunk: tuple[int, ...]
    shard: tuple[int, ...] | None = None
    compression: Compression
    attributes: Mapping[str, Any]

    def metadata(self, length: int) -> bytes:
        """The array's `zarr.json`.

        Args:
            length: extent of axis 0.

        Returns:
            Canonical JSON.
        """
        chunks = self._chunk_codecs()
        if self.shard is not None:
            chunks = [_sharding(self.chunk, chunks)]
        document = {
            "zarr_format": 3,
            "node_type": "array",
            "shape": [length, *self.row],
            "data_type": self.dtype.name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(self.shard or self.chunk)}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": 0,
            "codecs": chunks,
            "attributes": dict(self.attributes),
        }
        return canonical_json(document)

    def _chunk_codecs(self) -> list[dict[str, Any]]:
        blosc = {
            "typesize": self.dtype.itemsize,
            "cname": self.compression.cname,
            "clevel": self.compression.clevel,
            "shuffle": self.compression.shuffle,
            "blocksize": 0,
        }
        return [_LITTLE_ENDIAN, {"name": "blosc", "configuration": blosc}, _CHECKSUM]


_LITTLE_ENDIAN: dict[str, Any] = {"name": "bytes", "configuration": {"endian": "little"}}
_CHECKSUM: dict[str, Any] = {"name": "crc32c"}


def _sharding(chunk: tuple[int, ...], codecs: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "name": "sharding_indexed",
        "configuration": {
            "chunk_shape": list(chunk),
            "codecs": codecs,
            "index_codecs": [_LITTLE_ENDIAN, _CHECKSUM],
            "index_location": "end",
        },
    }


def group_metadata(attributes: Mapping[str, Any]) -> bytes:
    """The `zarr.json` of a group.

    Args:
        attributes: what the group says of itself.

    Returns:
        Canonical JSON.
    """
    return canonical_json({"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)})
