"""Batches hold every row once, and little padding."""

from hypothesis import given
from hypothesis import strategies as st

from lmcleaner.evaluation.batching import batches_by_length, padding_waste

LENGTHS = st.lists(st.integers(1, 3000), min_size=1, max_size=200)


@given(lengths=LENGTHS, vocabulary=st.sampled_from([1, 512, 128_000]))
def test_every_row_is_in_one_batch_that_fits_and_wastes_little(lengths: list[int], vocabulary: int) -> None:
    batches = batches_by_length(lengths, vocabulary)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[index] for index in batch)
        assert len(batch) == 1 or len(batch) * longest <= min(16384, 2**27 // vocabulary)
    assert padding_waste(lengths, batches) <= 0.15 + 1e-9


def test_rows_of_one_length_fill_a_batch() -> None:
    assert batches_by_length([10, 10, 10]) == [[0, 1, 2]]
    assert batches_by_length([10, 10, 10], max_rows=2) == [[0, 1], [2]]


def test_a_row_that_would_waste_too_much_begins_a_batch() -> None:
    assert batches_by_length([10, 5, 9]) == [[1], [2, 0]]
    assert padding_waste([10, 5, 9], [[1], [2, 0]]) == 1 - 24 / 25
