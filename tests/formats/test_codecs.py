"""What a codec stores takes a reader where the writer said, to the bit; a lossy one stays close for a whole run."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from lmcleaner.formats.bits import BIT_DTYPES, Bits
from lmcleaner.formats.codecs import CODECS
from lmcleaner.formats.errors import DivergedError

LEVELS = {"int8": 127, "int4": 7}
UNIT = {"float32": 2.0**-24, "bfloat16": 2.0**-8 + 2.0**-23, "float64": 2.0**-53}
SMALLEST_NORMAL = {"float32": 1 << 23, "bfloat16": 1 << 7, "float64": 1 << 52}
LARGEST = {"float32": 0x7F7FFFFF, "bfloat16": 0x7F7F, "float64": 0x7FEFFFFFFFFFFFFF}
DTYPES, LOSSY = st.sampled_from(sorted(UNIT)), st.sampled_from(sorted(LEVELS))
each_dtype = pytest.mark.parametrize("dtype", sorted(UNIT))
each_lossy = pytest.mark.parametrize("codec", sorted(LEVELS))
UNHURRIED = settings(deadline=None, max_examples=40)  # a busy machine is no failure


def bits_of(numbers: Any, dtype: str) -> Bits:
    """The nearest numbers of the dtype, by torch's rounding."""
    tensor = torch.as_tensor(np.asarray(numbers, np.float64)).to(getattr(torch, dtype))
    width = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return np.asarray(tensor.view(width).numpy().view(BIT_DTYPES[dtype]))


def numbers_of(bits: Bits, dtype: str) -> NDArray[np.float64]:
    if dtype != "bfloat16":
        return np.asarray(bits.view(dtype).astype(np.float64))
    return np.asarray((bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64))


def coded(codec: str, before: Bits, after: Bits, dtype: str) -> tuple[Bits, tuple[NDArray[Any], ...]]:
    """What a reader makes of `before`, and what is stored; the writer has made the same of it."""
    read, written = before.copy(), before.copy()
    stored = CODECS[codec].encode(written, after, dtype)
    CODECS[codec].apply(read, stored, dtype)
    np.testing.assert_array_equal(read, written)
    return read, stored


def wild_bits(rng: np.random.Generator, count: int, dtype: str) -> Bits:
    """Blocks of like exponents, from the smallest to 2^99, among them denormals and zeros of both signs."""
    num_blocks = -(-count // 256)
    lowest = -1022 if dtype == "float64" else -126
    block = rng.integers([-126, lowest], [-90, 96], (num_blocks, 2))[range(num_blocks), rng.integers(0, 2, num_blocks)]
    exponents = block.repeat(256)[:count] + rng.integers(0, 4, count)
    bits = bits_of(rng.choice([1.0, 1.25, -1.0, -1.5], count) * 2.0**exponents, dtype)
    signs = bits & (1 << (bits.dtype.itemsize * 8 - 1))
    denormals = signs | rng.integers(0, SMALLEST_NORMAL[dtype], count).astype(bits.dtype)
    return np.where(rng.random(count) < 0.3, np.where(rng.random(count) < 0.2, signs, denormals), bits)


@UNHURRIED
@given(st.data(), DTYPES, st.integers(0, 9))
def test_the_lossless_codec_takes_any_bits(data: st.DataObject, dtype: str, count: int) -> None:
    infinity = LARGEST[dtype] + 1
    anything = st.integers(0, 2 ** (BIT_DTYPES[dtype].itemsize * 8) - 1)
    elements = anything | st.sampled_from([0, 1, infinity, infinity + 1, 2 * infinity - 1])
    before, after = (data.draw(arrays(BIT_DTYPES[dtype], count, elements=elements)) for _ in range(2))
    np.testing.assert_array_equal(coded("lossless", before, after, dtype)[0], after)


@UNHURRIED
@given(DTYPES, LOSSY, st.integers(1, 700), st.integers(0, 2**32), st.booleans())
def test_the_error_stays_within_half_a_scale_at_every_step(
    dtype: str, codec: str, count: int, seed: int, from_zeros: bool
) -> None:
    rng = np.random.default_rng(seed)
    numbers = rng.normal(size=count) * 2.0 ** rng.integers(-110, 90)
    read = bits_of(np.zeros(count) if from_zeros else numbers, dtype)
    for _ in range(32):
        moves = rng.normal(size=count) * 2.0 ** rng.integers(-112, 90, -(-count // 256)).repeat(256)[:count]
        after = bits_of(numbers := np.where(rng.random(count) < 0.1, numbers, numbers + moves), dtype)
        read, (_, scales) = coded(codec, read, after, dtype)
        scale = scales.astype(np.float64).repeat(256)[:count]
        error = np.abs(numbers_of(after, dtype) - numbers_of(read, dtype))
        bound = np.where(scale > 0, scale * (0.5 + 2**-15) + UNIT[dtype] * np.abs(numbers_of(read, dtype)), 2.0**-93)
        assert (error <= bound * (1 + 2**-50)).all()  # the test's own arithmetic


@UNHURRIED
@given(DTYPES, LOSSY, st.integers(1, 700), st.integers(0, 2**32))
def test_no_reconstruction_is_a_denormal_or_minus_zero(dtype: str, codec: str, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    read, _ = coded(codec, wild_bits(rng, count, dtype), wild_bits(rng, count, dtype), dtype)
    magnitudes = read & ((1 << (read.dtype.itemsize * 8 - 1)) - 1)
    assert ((read == 0) | (magnitudes >= SMALLEST_NORMAL[dtype])).all()


CODING = """
import sys, numpy as np, torch
from lmcleaner.formats.codecs import CODECS
given, made, flush = np.load(sys.argv[1]), {}, sys.argv[2] == "flushing"
assert torch.set_flush_denormal(flush)
assert flush == (given["half_of_it_is_denormal"].view(np.float32) * np.float32(0.5) == 0)[0]
for name, dtype in [(name, dtype) for name in ("int8", "int4") for dtype in ("float32", "bfloat16", "float64")]:
    written, read = given[f"{dtype}_0"], given[f"{dtype}_0"]
    for step in range(1, 6):
        stored = CODECS[name].encode(written, given[f"{dtype}_{step}"], dtype)
        CODECS[name].apply(read, stored, dtype)
        made |= {f"{name} {dtype} {step} {i}": a.copy() for i, a in enumerate((written, read, *stored))}
np.savez(sys.argv[3], **made)
"""


def test_a_thread_that_flushes_denormals_writes_and_reads_the_same_bits(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    given_bits = {f"{dtype}_{step}": wild_bits(rng, 60_001, dtype) for dtype in UNIT for step in range(6)}
    given_bits["half_of_it_is_denormal"] = np.array([SMALLEST_NORMAL["float32"]], np.uint32)
    np.savez(tmp_path / "given.npz", allow_pickle=False, **given_bits)
    for mode in ("flushing", "exact"):
        files = tmp_path / "given.npz", tmp_path / f"{mode}.npz"
        subprocess.run([sys.executable, "-c", CODING, files[0], mode, files[1]], check=True)
    flushed, exact = (np.load(tmp_path / f"{mode}.npz") for mode in ("flushing", "exact"))
    assert len(exact.files) == 2 * 3 * 5 * 4
    for name in exact.files:
        np.testing.assert_array_equal(flushed[name], exact[name], err_msg=name)


@each_dtype
@each_lossy
def test_a_long_span_is_coded_block_by_block(dtype: str, codec: str) -> None:
    rng = np.random.default_rng(0)
    before, after = (bits_of(rng.normal(size=33_001), dtype) for _ in range(2))
    read, stored = coded(codec, before, after, dtype)
    columns = CODECS[codec].columns(dtype)
    assert [(len(array), array.dtype) for array in stored] == [(-(-33_001 // c.elements), c.dtype) for c in columns]
    for block in (slice(start, start + 256) for start in range(0, 33_001, 256)):
        alone, alone_stored = coded(codec, before[block], after[block], dtype)
        np.testing.assert_array_equal(read[block], alone)
        for array, expected, column in zip(stored, alone_stored, columns, strict=True):
            np.testing.assert_array_equal(array[block.start // column.elements :][: len(expected)], expected)


@UNHURRIED
@given(DTYPES, LOSSY, st.integers(0, 700), st.integers(0, 2**32))
def test_what_does_not_move_stays_and_costs_zeros(dtype: str, codec: str, count: int, seed: int) -> None:
    bits = bits_of(np.random.default_rng(seed).normal(size=count), dtype)
    read, stored = coded(codec, bits, bits, dtype)
    np.testing.assert_array_equal(read, bits)
    assert not any(array.any() for array in stored)


@each_dtype
@each_lossy
@pytest.mark.parametrize("place", [0, 20_000, 32_999])
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_refused_by_its_place(dtype: str, codec: str, place: int, number: float) -> None:
    after = np.ones(33_000)
    after[place] = number
    with pytest.raises(DivergedError, match=rf"element {place} changes by {number}, expected at most"):
        CODECS[codec].encode(bits_of(np.ones(33_000), dtype), bits_of(after, dtype), dtype)


@each_dtype
@each_lossy
def test_a_change_is_refused_before_a_reconstruction_can_overflow(dtype: str, codec: str) -> None:
    largest, bits = LARGEST[dtype], BIT_DTYPES[dtype]
    lowest = largest | 1 << (bits.itemsize * 8 - 1)
    for start, end in [(0, largest), (lowest, largest), (largest, lowest)]:
        with pytest.raises(DivergedError, match="element 0 changes by"):
            CODECS[codec].encode(np.array([start], bits), np.array([end], bits), dtype)
    # With the largest scale that is accepted, up to the largest number, from as far as such a scale reaches.
    reach = np.arange(7 if (dtype, codec) == ("float32", "int8") else 1).astype(bits)
    before, after = np.repeat(largest - reach, len(reach)), np.tile(largest - reach, len(reach))
    limit = bits_of([LEVELS[codec] * 2.0**100], dtype)
    read, _ = coded(codec, np.append(before, limit ^ limit), np.append(after, limit), dtype)
    assert np.isfinite(numbers_of(read, dtype)).all()
