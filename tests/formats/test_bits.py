"""The difference of bit patterns is a bijection and keeps small changes small."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lmcleaner.formats.bits import BIT_DTYPES, Bits, apply_update, encode_update

EXPONENT_BITS = {"bfloat16": 8, "float32": 8, "float64": 11}
NAMES = sorted(EXPONENT_BITS)
UNHURRIED = settings(deadline=None, max_examples=60)  # a busy machine is no failure


def applied(before: Bits, update: Bits) -> Bits:
    """What an update makes of a copy."""
    bits = before.copy()
    apply_update(bits, update)
    return bits


def special_bits(name: str) -> Bits:
    """±0, the denormals at both ends, the normals at both ends, ±infinity, quiet and signalling NaNs with payloads."""
    dtype = BIT_DTYPES[name]
    width = dtype.itemsize * 8
    mantissa = width - 1 - EXPONENT_BITS[name]
    infinity = ((1 << EXPONENT_BITS[name]) - 1) << mantissa
    quiet = 1 << (mantissa - 1)
    magnitudes = [0, 1, (1 << mantissa) - 1, 1 << mantissa, infinity - 1, infinity, infinity + 1, infinity + quiet + 5]
    magnitudes.append((1 << (width - 1)) - 1)
    return np.array([sign << (width - 1) | m for sign in (0, 1) for m in magnitudes], dtype)


def bits_of(name: str, length: int) -> st.SearchStrategy[Bits]:
    """Any bit patterns, with the special ones more often than chance would have them."""
    dtype = BIT_DTYPES[name]
    anything = st.integers(0, 2 ** (dtype.itemsize * 8) - 1)
    return arrays(dtype, length, elements=anything | st.sampled_from([int(b) for b in special_bits(name)]))


@st.composite
def pairs(draw: Callable[[st.SearchStrategy[Any]], Any]) -> tuple[str, Bits, Bits]:
    """A dtype's name and two vectors of its bit patterns, of one length."""
    name = draw(st.sampled_from(NAMES))
    length = draw(st.integers(0, 8))
    return name, draw(bits_of(name, length)), draw(bits_of(name, length))


@UNHURRIED
@given(pairs())
def test_applying_an_update_gives_the_bits_that_it_was_made_for(pair: tuple[str, Bits, Bits]) -> None:
    name, before, after = pair
    restored = applied(before, encode_update(before, after))
    assert restored.dtype == BIT_DTYPES[name]
    np.testing.assert_array_equal(restored, after)


@UNHURRIED
@given(pairs())
def test_every_integer_is_the_update_between_some_two_vectors(pair: tuple[str, Bits, Bits]) -> None:
    _, before, update = pair
    np.testing.assert_array_equal(encode_update(before, applied(before, update)), update)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("length", [2**14, 40_000])
def test_an_update_of_many_elements_is_that_of_each_element(name: str, length: int) -> None:
    rng = np.random.default_rng(0)
    before, after = (np.frombuffer(rng.bytes(length * BIT_DTYPES[name].itemsize), BIT_DTYPES[name]) for _ in range(2))
    update = encode_update(before, after)
    np.testing.assert_array_equal(applied(before, update), after)
    for place in (0, 2**14 - 1, length - 2**14, length - 1):
        here = slice(place, place + 1)
        np.testing.assert_array_equal(update[here], encode_update(before[here], after[here]))


@UNHURRIED
@given(pairs())
def test_an_update_is_the_zigzag_of_the_difference_modulo_the_width(pair: tuple[str, Bits, Bits]) -> None:
    name, before, after = pair
    width = BIT_DTYPES[name].itemsize * 8
    differences = [int(b) - int(a) for a, b in zip(before, after, strict=True)]
    wrapped = [(d + (1 << (width - 1))) % (1 << width) - (1 << (width - 1)) for d in differences]
    assert encode_update(before, after).tolist() == [2 * d if d >= 0 else -2 * d - 1 for d in wrapped]


@pytest.mark.parametrize("name", NAMES)
def test_an_update_between_any_two_special_values_keeps_every_bit(name: str) -> None:
    special = special_bits(name)
    before, after = np.repeat(special, len(special)), np.tile(special, len(special))
    np.testing.assert_array_equal(applied(before, encode_update(before, after)), after)


@UNHURRIED
@given(pairs())
def test_what_an_update_is_made_of_stays_as_it_was(pair: tuple[str, Bits, Bits]) -> None:
    _, before, after = pair
    copies = before.copy(), after.copy()
    update = encode_update(before, after)
    stored = update.copy()
    applied(before, update)
    for made_of, copy in zip((before, after, update), (*copies, stored), strict=True):
        np.testing.assert_array_equal(made_of, copy)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@UNHURRIED
@given(st.floats(2.0**-100, 2.0**100, width=32), st.sampled_from([-1, 1]))
def test_the_next_float_is_one_integer_away(dtype: type[np.floating[Any]], size: float, sign: int) -> None:
    here = np.array([sign * size], dtype)
    bit_dtype = BIT_DTYPES[np.dtype(dtype).name]
    outwards, inwards = (np.nextafter(here, dtype(towards)) for towards in (sign * np.inf, 0))
    assert encode_update(here.view(bit_dtype), outwards.view(bit_dtype))[0] == 2
    assert encode_update(here.view(bit_dtype), inwards.view(bit_dtype))[0] == 1


@UNHURRIED
@given(st.floats(2.0**-100, 2.0**100, width=32), st.sampled_from([-1, 1]), st.integers(-1000, 1000))
def test_a_change_by_a_millionth_is_below_36_whatever_the_exponent(size: float, sign: int, billionths: int) -> None:
    before = np.array([sign * size], np.float32)
    after = (before.astype(np.float64) * (1 + billionths * 1e-9)).astype(np.float32)
    # 1e-6 is at most 1e-6 / 2**-24 < 17 neighbours, one more by rounding; the zigzag doubles them.
    assert encode_update(before.view(np.uint32), after.view(np.uint32))[0] < 36
