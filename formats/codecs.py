"""How a step of the parameters, or a gradient, is stored: exactly, or as small whole numbers.

The next step is coded against what a reader has reconstructed so far, so that the errors of lossy codecs don't add up.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lmcleaner.formats.arrays import Compression
from lmcleaner.formats.bits import BIT_DTYPES, Bits, apply_update, encode_update
from lmcleaner.formats.quantization import BLOCK, dequantize, pack_nibbles, quantize, unpack_nibbles

SPAN = 1 << 18  # elements of a parameter vector that are coded together


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One stored array of a codec: a row a step.

    Attributes:
        suffix: what is appended to the stack's name.
        dtype: of a stored element.
        elements: parameter elements that one stored element stands for; a row of n has ceil(n / elements).
        compression: settings of Blosc.
    """

    suffix: str
    dtype: np.dtype[Any]
    elements: int
    compression: Compression


class UpdateCodec(Protocol):
    """Takes a span of bit patterns to that of the next step."""

    @property
    def is_lossy(self) -> bool:
        """Whether `apply` may come out close to `after` instead of at it."""

    def columns(self, dtype: str) -> tuple[Column, ...]:
        """What is stored for parameters of this dtype.

        Args:
            dtype: of the parameters, a key of `BIT_DTYPES`.

        Returns:
            One or more columns, in the order of what `encode` returns.
        """

    def encode(self, before: Bits, after: Bits, dtype: str) -> tuple[NDArray[Any], ...]:
        """Codes one span.

        Args:
            before: bit patterns, `[n]`; they become, in place, exactly what `apply` will make of them.
            after: bit patterns that the span goes to, same dtype and shape.
            dtype: of the parameters, a key of `BIT_DTYPES`.

        Returns:
            One array for each column.

        Raises:
            DivergedError: the codec is lossy, and an element's change isn't finite or is too large. Some of `before`
                may have changed.
        """

    def apply(self, before: Bits, stored: Sequence[NDArray[Any]], dtype: str) -> None:
        """Takes one span to the next, in place.

        Args:
            before: bit patterns, `[n]`.
            stored: what `encode` returned.
            dtype: of the parameters, a key of `BIT_DTYPES`.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lossless:
    is_lossy: bool = False

    def columns(self, dtype: str) -> tuple[Column, ...]:
        return (Column(suffix="", dtype=BIT_DTYPES[dtype], elements=1, compression=_BITSHUFFLED),)

    def encode(self, before: Bits, after: Bits, dtype: str) -> tuple[NDArray[Any], ...]:
        update = encode_update(before, after)
        np.copyto(before, after)
        return (update,)

    def apply(self, before: Bits, stored: Sequence[NDArray[Any]], dtype: str) -> None:
        (update,) = stored
        apply_update(before, update)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Int8:
    is_lossy: bool = True

    def columns(self, dtype: str) -> tuple[Column, ...]:
        return (Column(suffix="", dtype=np.dtype(np.int8), elements=1, compression=_PLAIN), _SCALES)

    def encode(self, before: Bits, after: Bits, dtype: str) -> tuple[NDArray[Any], ...]:
        return quantize(before, after, dtype, levels=127)

    def apply(self, before: Bits, stored: Sequence[NDArray[Any]], dtype: str) -> None:
        codes, scales = stored
        dequantize(before, codes, scales, dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Int4:
    is_lossy: bool = True

    def columns(self, dtype: str) -> tuple[Column, ...]:
        return (Column(suffix="", dtype=np.dtype(np.uint8), elements=2, compression=_PLAIN), _SCALES)

    def encode(self, before: Bits, after: Bits, dtype: str) -> tuple[NDArray[Any], ...]:
        codes, scales = quantize(before, after, dtype, levels=7)
        return pack_nibbles(codes), scales

    def apply(self, before: Bits, stored: Sequence[NDArray[Any]], dtype: str) -> None:
        packed, scales = stored
        dequantize(before, unpack_nibbles(packed, len(before)), scales, dtype)


# Where no core is idle a step waits for its compression: for lossless updates lz4 takes 0.6 times as long as zstd and
# makes them 3% larger. Codes it leaves as they are; zstd makes them 5 to 15% smaller, and its level 3 takes up to three
# times as long as level 1 and saves 2% or nothing. The bits of a code are left together: that small codes are frequent
# doesn't show in single bits.
_PLAIN = Compression(cname="zstd", clevel=1, shuffle="noshuffle")
_BITSHUFFLED = Compression(cname="lz4", clevel=9, shuffle="bitshuffle")
_SCALES = Column(suffix="_scales", dtype=np.dtype(np.float32), elements=BLOCK, compression=_BITSHUFFLED)

CODECS: Mapping[str, UpdateCodec] = MappingProxyType({"lossless": _Lossless(), "int8": _Int8(), "int4": _Int4()})
