"""Lossless difference of two float vectors through the order of their bit patterns.

Read as integers in the order of the numbers that they stand for, the bit patterns of neighbouring floats are
neighbouring integers, so a small change of a parameter is a small integer whatever its exponent. The zigzag form puts
the sign into the lowest bit, and the high bits that stay zero are what bitshuffle and zstd then take away. Every step
is a bijection of unsigned integers: NaN payloads, infinities, denormals and -0.0 come back as they were.

The difference of two ordered forms, modulo 2^width, is the same if both leave out the flip of the top bit. What is left
of the ordered form is its own inverse, and that is what updates are computed with.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.unsignedinteger[Any]]

BIT_DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.uint32),
    "bfloat16": np.dtype(np.uint16),
    "float64": np.dtype(np.uint64),
}


def to_ordered(bits: Bits) -> Bits:
    """Maps float bit patterns to integers in the order of the floats.

    Args:
        bits: uint16, uint32 or uint64, any shape.

    Returns:
        Integers of the same dtype and shape; -0.0 comes right before +0.0.
    """
    ordered = bits.copy()
    _mirror_negative(ordered, ordered, np.empty_like(ordered))
    return np.bitwise_xor(ordered, _top_bit(bits), out=ordered)


def from_ordered(ordered: Bits) -> Bits:
    """Inverse of `to_ordered`.

    Args:
        ordered: uint16, uint32 or uint64, any shape.

    Returns:
        Float bit patterns of the same dtype and shape.
    """
    bits = np.asarray(ordered ^ _top_bit(ordered))
    _mirror_negative(bits, bits, np.empty_like(bits))
    return bits


def encode_update(before: Bits, after: Bits) -> Bits:
    """Zigzag difference that takes `before` to `after`.

    Args:
        before: bit patterns of θ[t], uint16, uint32 or uint64 `[n]`.
        after: bit patterns of θ[t+1], same dtype and shape.

    Returns:
        Small unsigned integers where the parameters moved little, same dtype and shape.
    """
    update, scratch, start = np.empty_like(before), np.empty_like(before), np.empty_like(before)
    _mirror_negative(after, update, scratch)
    _mirror_negative(before, start, scratch)
    np.subtract(update, start, out=update)
    _spread_sign(update, out=scratch)
    np.left_shift(update, 1, out=update)
    return np.bitwise_xor(update, scratch, out=update)


def apply_update(bits: Bits, update: Bits) -> None:
    """Inverse of `encode_update`, bit for bit.

    Args:
        bits: bit patterns of θ[t], uint16, uint32 or uint64 `[n]`; they become those of θ[t+1].
        update: what `encode_update` made, same dtype and shape.
    """
    scratch = np.bitwise_and(update, 1)
    np.negative(scratch, out=scratch)
    difference = np.right_shift(update, 1)
    np.bitwise_xor(difference, scratch, out=difference)
    _mirror_negative(bits, bits, scratch)
    np.add(bits, difference, out=bits)
    _mirror_negative(bits, bits, scratch)


def _top_bit(bits: Bits) -> int:
    return 1 << (bits.dtype.itemsize * 8 - 1)


def _spread_sign(bits: Bits, *, out: Bits) -> None:
    """All ones where the top bit is set, else 0."""
    signed = f"i{bits.dtype.itemsize}"
    np.right_shift(bits.view(signed), bits.dtype.itemsize * 8 - 1, out=out.view(signed))


def _mirror_negative(bits: Bits, out: Bits, scratch: Bits) -> None:
    """Flips all but the top bit of negative floats, so that signed integers follow their order; its own inverse."""
    _spread_sign(bits, out=scratch)
    np.bitwise_and(scratch, _top_bit(bits) - 1, out=scratch)
    np.bitwise_xor(bits, scratch, out=out)
