"""A sample's digest names its content, and nothing but its content."""

import hashlib
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmcleaner.formats.samples import IGNORED_LABEL, Sample

UNHURRIED = settings(deadline=None)  # a busy machine is no failure
TOKENS = [5, 0, 31999, 7]
LABELS = [-100, -100, 31999, 7]
INT32 = st.integers(-(2**31), 2**31 - 1)
ROWS = st.lists(st.tuples(INT32, INT32), max_size=12)


def sample_of(tokens: list[int], labels: list[int]) -> Sample:
    return Sample(np.array(tokens, np.int32), np.array(labels, np.int32))


def documented_digest(tokens: list[int], labels: list[int]) -> bytes:
    """The layout in words: domain tag with its zero byte, length as uint64, tokens, labels; all little-endian."""
    layout = struct.pack(f"<20sQ{len(tokens)}i{len(labels)}i", b"lmcleaner-sample-v1", len(tokens), *tokens, *labels)
    return hashlib.sha256(layout).digest()


def test_the_digest_is_the_golden_one() -> None:
    digest = "42b375ff6c8cd2033c3c26ec54e277e08e61eec096b8e62eae412fedfe3c9c5a"
    assert sample_of(TOKENS, LABELS).digest.hex() == digest


@UNHURRIED
@given(ROWS)
def test_the_digest_follows_the_documented_layout(rows: list[tuple[int, int]]) -> None:
    tokens, labels = [token for token, _ in rows], [label for _, label in rows]
    assert sample_of(tokens, labels).digest == documented_digest(tokens, labels)


@UNHURRIED
@given(ROWS, ROWS)
def test_two_samples_share_a_digest_only_if_they_are_equal(
    first: list[tuple[int, int]], second: list[tuple[int, int]]
) -> None:
    digests = [sample_of([t for t, _ in rows], [label for _, label in rows]).digest for rows in (first, second)]
    assert (digests[0] == digests[1]) == (first == second)


@pytest.mark.parametrize("position", range(len(TOKENS)))
def test_each_token_and_each_label_counts(position: int) -> None:
    tokens, labels = TOKENS.copy(), LABELS.copy()
    tokens[position] += 1
    labels[position] += 1
    digests = {sample_of(t, label).digest for t in (TOKENS, tokens) for label in (LABELS, labels)}
    assert len(digests) == 4


def test_padding_is_content_where_it_is_left_in() -> None:
    padded = [sample_of(TOKENS + [0] * n, LABELS + [IGNORED_LABEL] * n).digest for n in range(4)]
    assert len(set(padded)) == 4


def test_a_token_does_not_count_as_a_label() -> None:
    assert sample_of([1, 2], [3, 4]).digest != sample_of([3, 4], [1, 2]).digest
    assert sample_of([1, 2, 3], [4, 5, 6]).digest != sample_of([1, 2], [3, 4]).digest


@pytest.mark.parametrize("dtype", ["<i4", ">i4"])
@pytest.mark.parametrize("step", [1, 2])
def test_the_digest_does_not_depend_on_how_the_arrays_lie_in_memory(dtype: str, step: int) -> None:
    tokens, labels = (np.repeat(np.array(values, dtype), step)[::step] for values in (TOKENS, LABELS))
    assert Sample(tokens, labels).digest == documented_digest(TOKENS, LABELS)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([], 0),
        ([3], 0),  # nothing comes before the first token that could predict it
        ([3, 4], 1),
        ([3, IGNORED_LABEL], 0),
        ([IGNORED_LABEL, IGNORED_LABEL, 7, 0, -1], 3),
        ([9, 8, 7], 2),
    ],
)
def test_only_labels_after_the_first_token_are_targets(labels: list[int], expected: int) -> None:
    assert sample_of([1] * len(labels), labels).num_targets == expected
