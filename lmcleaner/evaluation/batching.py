"""Batches of rows of similar length, so that little is computed for padding."""

from collections.abc import Sequence

_MAX_WASTE = 0.15  # share of a batch that may be padding
_MAX_TOKENS = 16384  # tokens of a batch with its padding
_MAX_LOGITS = 2**27  # logits of a batch, 512 MB in float32

Batch = list[int]


def batches_by_length(lengths: Sequence[int], vocabulary: int = 1, max_rows: int | None = None) -> list[Batch]:
    """Cuts rows into batches.

    Args:
        lengths: tokens of each row.
        vocabulary: logits that each token brings with it.
        max_rows: rows of a batch at most.

    Returns:
        Indices of rows, from the shortest row to the longest. At most 15 % of a batch is padding, and it holds no more
        tokens than fit, but one row at least.
    """
    limit = min(_MAX_TOKENS, _MAX_LOGITS // vocabulary)
    batches: list[Batch] = []
    num_tokens = 0  # of the last batch, without its padding
    for index in sorted(range(len(lengths)), key=lambda row: lengths[row]):
        length = lengths[index]
        rows = len(batches[-1]) + 1 if batches else 0
        is_full = rows * length > limit or rows > (max_rows or rows)
        if not batches or is_full or num_tokens + length < (1 - _MAX_WASTE) * rows * length:
            batches.append([])
            num_tokens = 0
        batches[-1].append(index)
        num_tokens += length
    return batches


def padding_waste(lengths: Sequence[int], batches: Sequence[Batch]) -> float:
    """The share of all tokens that a model is given in batches that is padding."""
    padded = sum(len(batch) * max(lengths[index] for index in batch) for batch in batches)
    return 1 - sum(lengths) / padded
