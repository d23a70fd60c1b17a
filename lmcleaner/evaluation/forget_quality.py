"""Forget quality: whether a model's truth ratios could be those of a model that never saw the rows."""

from lmcleaner.evaluation.libraries import scipy_stats
from lmcleaner.evaluation.scores import Array


def forget_quality(ratios: Array, gold_ratios: Array) -> float:
    """The p-value of a two-sided Kolmogorov-Smirnov test between both models' truth ratios.

    Maini et al., "TOFU", 2024, §2.2.2.

    Args:
        ratios: truth ratios of the forgotten rows, `[row]`.
        gold_ratios: the same of a model that was trained without them.

    Returns:
        1 where both have the same distribution; below 0.05 they are told apart.

    Raises:
        NotFoundError: scipy isn't installed.
    """
    return float(scipy_stats().ks_2samp(ratios, gold_ratios).pvalue)
