"""Lossless difference of two float vectors through the order of their bit patterns.

Read as integers in the order of the numbers that they stand for, the bit patterns of neighbouring floats are
neighbouring integers, so a small change of a parameter is a small integer whatever its exponent. The zigzag form puts
the sign into the lowest bit, and the high bits that stay zero are what bitshuffle and zstd then take away. Every step
is a bijection of unsigned integers: NaN payloads, infinities, denormals and -0.0 come back as they were.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.unsignedinteger[Any]]

BIT_DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.uint32),
    "bfloat16": np.dtype(np.uint16),
    "float64": np.dtype(np.uint64),
}

_BLOCK = 1 << 18  # elements that are worked on at once; a few megabytes of temporaries


def _sign_shift(bits: Bits) -> Any:
    return bits.dtype.type(bits.dtype.itemsize * 8 - 1)


def to_ordered(bits: Bits) -> Bits:
    """Maps float bit patterns to integers in the order of the floats.

    Args:
        bits: uint16, uint32 or uint64, any shape.

    Returns:
        Integers of the same dtype and shape; -0.0 comes right before +0.0.
    """
    shift = _sign_shift(bits)
    top = bits.dtype.type(1) << shift
    negative = np.negative(bits >> shift)  # all ones where the sign bit is set
    return np.asarray(bits ^ (negative | top))


def from_ordered(ordered: Bits) -> Bits:
    """Inverse of `to_ordered`."""
    shift = _sign_shift(ordered)
    top = ordered.dtype.type(1) << shift
    positive = np.negative(ordered >> shift)
    return np.asarray(ordered ^ (~positive | top))


def encode_update(before: Bits, after: Bits) -> Bits:
    """Zigzag difference that takes `before` to `after`.

    Args:
        before: bit patterns of θ[t], uint16, uint32 or uint64 `[n]`.
        after: bit patterns of θ[t+1], same dtype and shape.

    Returns:
        Small unsigned integers where the parameters moved little, same dtype and shape.
    """
    difference = to_ordered(after) - to_ordered(before)
    shift = _sign_shift(difference)
    return np.asarray((difference << difference.dtype.type(1)) ^ np.negative(difference >> shift))


def apply_update(before: Bits, update: Bits) -> Bits:
    """Inverse of `encode_update`: θ[t+1] from θ[t] and the update, bit for bit."""
    one = update.dtype.type(1)
    difference = (update >> one) ^ np.negative(update & one)
    return from_ordered(to_ordered(before) + difference)


def apply_in_parts(parameters: Sequence[Bits], updates: Iterable[Bits]) -> None:
    """Applies an update in place, block by block, so that temporaries stay small.

    Args:
        parameters: bit patterns of θ[t] in one or more consecutive parts, which become those of θ[t+1].
        updates: the update in consecutive parts, however it is cut; as many elements as `parameters`.

    Raises:
        ValueError: the update is shorter than the parameters.
    """
    remaining = iter(updates)
    update: Bits = np.empty(0, np.uint32)
    for part in parameters:
        done = 0
        while done < len(part):
            if not len(update):
                update = next(remaining, update)
            count = min(len(part) - done, len(update), _BLOCK)
            if not count:
                raise ValueError("the update is shorter than the parameters")
            part[done : done + count] = apply_update(part[done : done + count], update[:count])
            update, done = update[count:], done + count
