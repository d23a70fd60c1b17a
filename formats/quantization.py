"""Changes of parameters as small whole numbers: blocks of 256 with one float32 scale each.

The arithmetic is in W: float32, or float64 for float64 parameters. r is what a reader has reconstructed of θ, and
`levels` is 127 or 7:

* writer: Δ = θ[t+1] - r[t]; scale = max |Δ| of the block / levels, as float32; code = Δ / scale, rounded half to even;
* reader: r[t+1] = round(r[t] + code · scale), a product and then a sum in W; bfloat16 is rounded half to even from
  float32.

A code never exceeds `levels`: max |Δ| / scale is `levels` but for a relative error of 2^-23.

**The same bits in any thread**, whether it flushes denormals or not. Denormals and -0.0 of r count as +0.0, and become
it through their bits before the arithmetic. A scale below 2^-100 is 0, and so are its block's codes. So a product is 0
or at least 2^-100, and a sum is 0, a normal r, or at least 2^-124 (float64: 2^-153), since neither of its numbers has
finer digits where they cancel: no sum is denormal or -0.0. What Δ loses where θ is flushed is too little to change a
code.

**No overflow.** A scale above 2^100 is refused. Up to there a sum is at most scale / 2 and rounding beyond a finite θ:
less than half the distance from the largest number to the next power of two.

**Error.** With u = 2^-24 (bfloat16: 2^-8 + 2^-23, float64: 2^-53), whatever the steps before, at every t
|θ[t] - r[t]| <= scale[t] · (1/2 + 2^-15) + u · |r[t]|, or 2^-93 where the scale is 0. It doesn't grow with t.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmcleaner.formats.bits import Bits
from lmcleaner.formats.errors import DivergedError

BLOCK = 256  # elements with one scale

_SMALLEST_SCALE, _LARGEST_SCALE = np.float32(2.0**-100), np.float32(2.0**100)
_SMALLEST_NORMAL = {"float32": 1 << 23, "bfloat16": 1 << 7, "float64": 1 << 52}  # as bit patterns

_Floats = NDArray[np.floating[Any]]


def quantize(before: Bits, after: Bits, dtype: str, levels: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes and scales that take `before` close to `after`.

    Args:
        before: bit patterns of r[t], `[n]`; they become those of r[t+1], or some of them if an error is raised.
        after: bit patterns of θ[t+1], `[n]`.
        dtype: of the parameters.
        levels: largest code, at most 127.

    Returns:
        Codes, int8 `[n]`, and scales, float32 `[ceil(n / 256)]`.

    Raises:
        DivergedError: a change isn't finite or is too large.
    """
    codes, scales = np.empty(len(before), np.int8), np.empty(-(-len(before) // BLOCK), np.float32)
    for piece, blocks in _pieces(len(before)):
        start = _flushed(before[piece], dtype)
        change = _change(start, _floats(after[piece], dtype))
        scales[blocks] = _scales(change, levels, piece.start)
        _round(change, scales[blocks], codes[piece])
        _move(start, codes[piece], scales[blocks], before[piece], dtype)
    return codes, scales


def dequantize(before: Bits, codes: NDArray[np.int8], scales: NDArray[np.float32], dtype: str) -> None:
    """Applies what `quantize` made.

    Args:
        before: bit patterns of r[t], `[n]`; they become those of r[t+1].
        codes: int8 `[n]`.
        scales: float32 `[ceil(n / 256)]`.
        dtype: of the parameters.
    """
    for piece, blocks in _pieces(len(before)):
        start = _flushed(before[piece], dtype)
        _move(start, codes[piece], scales[blocks], before[piece], dtype)


def pack_nibbles(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Two codes a byte.

    Args:
        codes: -8 to 7, int8 `[n]`.

    Returns:
        uint8 `[ceil(n / 2)]`: the first of two in the low four bits, two's complement, 0 behind the last.
    """
    even = np.append(codes, np.int8(0)) if len(codes) % 2 else codes
    pairs = even.view("<u2")
    return np.asarray((pairs & 0x0F) | (pairs >> 4 & 0xF0)).astype(np.uint8)


def unpack_nibbles(packed: NDArray[np.uint8], count: int) -> NDArray[np.int8]:
    """Inverse of `pack_nibbles`.

    Args:
        packed: uint8 `[ceil(count / 2)]`.
        count: number of codes.

    Returns:
        int8 `[count]`.
    """
    return _PAIRS[packed].view(np.int8)[:count]


def _pieces(count: int) -> Iterator[tuple[slice, slice]]:
    """Elements and their blocks; a block that isn't whole comes alone, so that the others are rows of a matrix."""
    whole = count - count % BLOCK
    bounds = sorted({0, whole, count})
    return ((slice(a, b), slice(a // BLOCK, -(-b // BLOCK))) for a, b in pairwise(bounds))


def _rows(values: _Floats) -> _Floats:
    return values.reshape(-1, min(len(values), BLOCK))


def _flushed(bits: Bits, dtype: str) -> _Floats:
    """The numbers in W, with +0.0 for denormals and -0.0, through integers that no flush mode touches."""
    top = 1 << (bits.dtype.itemsize * 8 - 1)
    normal: Bits = np.bitwise_and(bits, top - 1)
    normal += top - _SMALLEST_NORMAL[dtype]  # sets the top bit where a number is normal
    signed = normal.view(f"i{bits.dtype.itemsize}")
    signed >>= bits.dtype.itemsize * 8 - 1
    np.bitwise_and(normal, bits, out=normal)
    return _floats(normal, dtype)


def _floats(bits: Bits, dtype: str) -> _Floats:
    if dtype != "bfloat16":
        return bits.view(dtype)
    wide = bits.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


def _change(start: _Floats, end: _Floats) -> _Floats:
    with np.errstate(over="ignore", invalid="ignore"):  # `_scales` says it better
        return np.asarray(end - start)


def _scales(change: _Floats, levels: int, first: int) -> NDArray[np.float32]:
    peaks = _rows(np.abs(change)).max(axis=1)
    if not (peaks <= levels * _LARGEST_SCALE).all():
        worst = int(np.abs(change).argmax())  # the first that is NaN, if any is
        message = f"element {first + worst} changes by {change[worst]}, expected at most {levels * _LARGEST_SCALE:.3g}"
        raise DivergedError(message)
    scales: NDArray[np.float32] = (peaks / levels).astype(np.float32)
    scales[scales < _SMALLEST_SCALE] = 0
    return scales


def _round(change: _Floats, scales: NDArray[np.float32], codes: NDArray[np.int8]) -> None:
    """Writes codes; `change` is used up."""
    rows = _rows(change)
    rows /= np.where(scales > 0, scales, np.float32(np.inf)).astype(change.dtype)[:, None]
    np.rint(change, out=change)
    np.copyto(codes, change, casting="unsafe")


def _move(start: _Floats, codes: NDArray[np.int8], scales: NDArray[np.float32], bits: Bits, dtype: str) -> None:
    """Writes r[t+1] to `bits`."""
    step = codes.astype(start.dtype)
    rows = _rows(step)
    rows *= scales.astype(start.dtype)[:, None]
    if dtype != "bfloat16":
        np.add(start, step, out=bits.view(dtype))
        return
    step += start
    _round_to_bfloat16(step.view(np.uint32), bits)


def _round_to_bfloat16(wide: NDArray[np.uint32], bits: Bits) -> None:
    """To nearest, ties to even; `wide` holds bit patterns of float32 and is used up."""
    odd = wide >> 16
    odd &= 1
    wide += 0x7FFF
    wide += odd
    wide >>= 16
    np.copyto(bits, wide, casting="unsafe")


def _pairs() -> NDArray[np.uint16]:
    nibbles = np.arange(256)[:, None] >> [0, 4] & 15
    return np.ascontiguousarray((nibbles ^ 8) - 8, np.int8).view(np.uint16)[:, 0]


_PAIRS = _pairs()  # the two codes of each byte
