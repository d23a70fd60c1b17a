"""Extraction strength and exact memorization: how much of an answer comes back token by token.

Axis: target = tokens of an answer.
"""

import numpy as np
from numpy.typing import NDArray


def exact_memorization(hits: NDArray[np.bool_]) -> float:
    """The share of tokens that the model would choose itself.

    Tirumala et al., "Memorization Without Overfitting", 2022, §2.

    Args:
        hits: `[target]`, whether the most likely token after the true ones is the true next one; at least one.

    Returns:
        A number in [0, 1].
    """
    return float(np.mean(hits))


def extraction_strength(hits: NDArray[np.bool_]) -> float:
    """The share of the answer that the model completes once it is given the rest (Carlini et al., 2021).

    1 − k/n, where k is the smallest number of given tokens after which all others are hits; Wang et al., "Towards
    Effective Evaluations and Comparisons for LLM Unlearning Methods", 2025, §3. As in open-unlearning k is at most
    n − 1, so that the least value is 1/n, not 0.

    Args:
        hits: as for `exact_memorization`.

    Returns:
        A number in [1/n, 1].
    """
    misses = np.flatnonzero(~hits)
    given = int(misses[-1]) + 1 if len(misses) else 0
    return 1 - min(given, len(hits) - 1) / len(hits)
