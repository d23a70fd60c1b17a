"""Codes are what the description says, and a reader's arithmetic is a product, a sum and one rounding."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from lmcleaner.formats.errors import DivergedError
from lmcleaner.formats.quantization import dequantize, pack_nibbles, quantize, unpack_nibbles

UNHURRIED = settings(deadline=None, max_examples=40)  # a busy machine is no failure
SMALLEST_NORMAL = {"float32": 1 << 23, "bfloat16": 1 << 7, "float64": 1 << 52}  # as bit patterns
TORCH = {
    "float32": (torch.float32, np.uint32),
    "float64": (torch.float64, np.uint64),
    "bfloat16": (torch.bfloat16, np.uint16),
}


@pytest.mark.parametrize("levels", [127, 7])
def test_codes_are_multiples_of_the_largest_change_over_the_levels(levels: int) -> None:
    before, after = np.zeros(6, np.float32), np.array([2 * levels, -3, 1, 0.9, -1.1, 5], np.float32)
    codes, scales = quantize(before.view(np.uint32), after.view(np.uint32), "float32", levels)
    assert (codes.tolist(), scales.tolist()) == ([levels, -2, 0, 0, -1, 2], [2.0])
    assert before.tolist() == [2 * levels, -4, 0, 0, -2, 4]


def test_a_change_is_measured_from_what_a_reader_has() -> None:
    before, after = np.array([3.0, -8.0], np.float32), np.array([5.0, 119.0], np.float32)
    codes, scales = quantize(before.view(np.uint32), after.view(np.uint32), "float32", 127)
    assert (codes.tolist(), scales.tolist()) == ([2, 127], [1.0])


@pytest.mark.parametrize(("peak", "scale"), [(127 * 2.0**-100, 2.0**-100), (126 * 2.0**-100, 0.0)])
def test_a_scale_below_the_smallest_is_zero(peak: float, scale: float) -> None:
    before, after = np.zeros(1, np.float32), np.full(1, peak, np.float32)
    codes, scales = quantize(before.view(np.uint32), after.view(np.uint32), "float32", 127)
    assert (codes.tolist(), scales.tolist()) == ([127 if scale else 0], [scale])
    assert before.tolist() == [peak if scale else 0.0]


@pytest.mark.parametrize("dtype", sorted(TORCH))
def test_a_reader_keeps_the_smallest_normal_and_makes_zero_of_what_is_smaller(dtype: str) -> None:
    bit_dtype = TORCH[dtype][1]
    smallest, sign = SMALLEST_NORMAL[dtype], 1 << (np.dtype(bit_dtype).itemsize * 8 - 1)
    bits = np.array([smallest, smallest | sign, smallest - 1, smallest - 1 | sign, 1, 0, sign], bit_dtype)
    dequantize(bits, np.zeros(7, np.int8), np.ones(1, np.float32), dtype)
    assert bits.tolist() == [smallest, smallest | sign, 0, 0, 0, 0, 0]


def test_a_start_that_is_not_finite_is_refused() -> None:
    bits = np.array([1, np.inf], np.float32).view(np.uint32)
    with pytest.raises(DivergedError, match="element 1 changes by nan"):
        quantize(bits, bits.copy(), "float32", 127)


@pytest.mark.parametrize("dtype", sorted(TORCH))
@UNHURRIED
@given(st.integers(1, 700), st.integers(0, 2**32), st.integers(-12, 4))
def test_a_reader_multiplies_adds_and_rounds_as_torch_does(dtype: str, count: int, seed: int, exponent: int) -> None:
    rng = np.random.default_rng(seed)
    kind, bit_dtype = TORCH[dtype]
    work = torch.float64 if dtype == "float64" else torch.float32
    before = torch.from_numpy(rng.choice([1.0, 1.5, -1.25, -1.9921875], count)).to(kind)
    codes = rng.integers(-127, 128, count).astype(np.int8)
    scales = (rng.choice([1.0, 1.7], -(-count // 256)) * 2.0**exponent).astype(np.float32)
    each = torch.from_numpy(scales.repeat(256)[:count]).to(work)
    expected = (before.to(work) + torch.from_numpy(codes).to(work) * each).to(kind)
    width = {2: torch.int16, 4: torch.int32, 8: torch.int64}[expected.element_size()]
    bits = before.view(width).numpy().view(bit_dtype)
    dequantize(bits, codes, scales, dtype)
    np.testing.assert_array_equal(bits, expected.view(width).numpy().view(bit_dtype))


def test_two_codes_make_a_byte_the_first_one_lowest() -> None:
    assert pack_nibbles(np.array([7, -2, 0, 0, -1], np.int8)).tolist() == [0xE7, 0x00, 0x0F]


@UNHURRIED
@given(arrays(np.int8, st.integers(0, 9), elements=st.integers(-8, 7)))
def test_packed_codes_come_back(codes: NDArray[np.int8]) -> None:
    packed = pack_nibbles(codes)
    padded = [*codes.tolist(), 0]
    assert packed.tolist() == [padded[i] % 16 + padded[i + 1] % 16 * 16 for i in range(0, len(codes), 2)]
    np.testing.assert_array_equal(unpack_nibbles(packed, len(codes)), codes)
