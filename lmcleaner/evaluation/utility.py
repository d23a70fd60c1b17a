"""Model utility: what the model still knows of everything else (Maini et al., "TOFU", 2024, §2.2.1)."""

from collections.abc import Sequence

from lmcleaner.evaluation.libraries import scipy_stats


def model_utility(values: Sequence[float]) -> float:
    """The harmonic mean, which is 0 as soon as one of the values is.

    Args:
        values: probability, ROUGE-L recall and truth ratio on retained rows, real authors and world facts: nine
            numbers in [0, 1], the probability normalised in the last two.

    Returns:
        A number in [0, 1].

    Raises:
        NotFoundError: scipy isn't installed.
    """
    return float(scipy_stats().hmean(values))
