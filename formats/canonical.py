"""Canonical JSON and SHA-256, so that a hash means the same on every machine."""

import hashlib
import json
from typing import Any

import numpy as np
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
    """SHA-256, 32 bytes, of an array's elements in little-endian byte order."""
    return hashlib.sha256(np.ascontiguousarray(values, values.dtype.newbyteorder("<")).data).digest()
