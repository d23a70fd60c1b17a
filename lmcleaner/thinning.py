"""Fewer points of a long series, its extremes among them."""

import math
from collections.abc import Sequence
from itertools import pairwise


def thinned(values: Sequence[float], limit: int) -> list[int]:
    """Which points of a series to keep, so that a picture of it looks the same.

    Args:
        values: the series; what isn't finite counts for nothing beside what is.
        limit: how many points at most, 4 or more.

    Returns:
        Places in order: all of a short series; of a long one the first, the last, and the lowest and the highest of
        each of equal parts between them.
    """
    count = len(values)
    if count <= limit:
        return list(range(count))
    num_parts = limit // 2 - 1
    bounds = [1 + (count - 2) * part // num_parts for part in range(num_parts + 1)]
    kept = {0, count - 1}
    for first, stop in pairwise(bounds):
        finite = [place for place in range(first, stop) if math.isfinite(values[place])]
        if finite:
            kept |= {min(finite, key=values.__getitem__), max(finite, key=values.__getitem__)}
    return sorted(kept)
