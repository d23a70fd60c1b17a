"""Canonical JSON and digests, so that they mean the same on every machine.

Documents, tables and samples have SHA-256, which everybody can compute. What is as long as the parameters has BLAKE3:
recording computes it every step, and it takes a third of the time that SHA-256 takes in hardware.
"""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray


def canonical_json(value: Any) -> bytes:
    """The one UTF-8 encoding of `value`: sorted keys, no blanks, no NaN.

    Args:
        value: anything that JSON can hold.

    Returns:
        The bytes that are hashed.

    Raises:
        ValueError: `value` holds a NaN or an infinity, which JSON has no word for.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def sha256_hex(data: bytes | memoryview) -> str:
    """SHA-256 of `data` as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def json_digest(value: Any) -> str:
    """SHA-256 of the canonical JSON of `value`."""
    return sha256_hex(canonical_json(value))


def array_digest(values: NDArray[Any]) -> bytes:
    """BLAKE3, 32 bytes, of an array's elements in little-endian byte order."""
    return arrays_digest([values])


def arrays_digest(arrays: Iterable[NDArray[Any]]) -> bytes:
    """As `array_digest` of all arrays in one, one behind the other, without putting them together."""
    content = blake3()
    for values in arrays:
        content.update(little_endian_bytes(values))
    return content.digest()


def little_endian_bytes(values: NDArray[Any]) -> memoryview:
    """An array's elements as they are stored and hashed."""
    return np.ascontiguousarray(values, values.dtype.newbyteorder("<")).reshape(-1).view(np.uint8).data
