"""Lossless difference of two float vectors through their bit patterns.

Read as integers, the bit patterns of neighbouring floats of one sign are neighbouring integers, so a small change of a
parameter is a small integer whatever its exponent. The zigzag form puts the sign into the lowest bit, and the high bits
that stay zero are what bitshuffle and the compressor then take away. Every step is a bijection of unsigned integers:
NaN payloads, infinities, denormals and -0.0 come back as they were.

A change of sign makes a large integer, as the distance of the two numbers in the order of all floats would be too: they
have the exponents down to zero between them.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.unsignedinteger[Any]]

BIT_DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.uint32),
    "bfloat16": np.dtype(np.uint16),
    "float64": np.dtype(np.uint64),
    "uint8": np.dtype(np.uint8),  # codes of an 8-bit optimizer; parameters are floats
}

_AT_ONCE = 1 << 15  # elements whose four passes stay in a core's cache


def encode_update(before: Bits, after: Bits) -> Bits:
    """Zigzag difference, modulo 2^width, that takes `before` to `after`.

    Args:
        before: bit patterns of θ[t], uint16, uint32 or uint64 `[n]`.
        after: bit patterns of θ[t+1], same dtype and shape.

    Returns:
        Small unsigned integers where the parameters moved little, same dtype and shape.
    """
    width = before.dtype.itemsize * 8
    update: Bits = np.subtract(after, before)
    sign = np.right_shift(update.view(f"i{before.dtype.itemsize}"), width - 1).view(before.dtype)  # all ones, or 0
    np.left_shift(update, 1, out=update)
    np.bitwise_xor(update, sign, out=update)
    return update


def apply_update(bits: Bits, update: Bits) -> None:
    """Inverse of `encode_update`, bit for bit.

    Args:
        bits: bit patterns of θ[t], uint16, uint32 or uint64 `[n]`; they become those of θ[t+1].
        update: what `encode_update` made, same dtype and shape.
    """
    scratch = np.empty((2, min(_AT_ONCE, len(bits))), bits.dtype)
    for start in range(0, len(bits), _AT_ONCE):
        part = update[start : start + _AT_ONCE]
        sign, difference = scratch[:, : len(part)]
        np.bitwise_and(part, 1, out=sign)
        np.negative(sign, out=sign)
        np.right_shift(part, 1, out=difference)
        np.bitwise_xor(difference, sign, out=difference)
        np.add(bits[start : start + _AT_ONCE], difference, out=bits[start : start + _AT_ONCE])
