"""Truth ratio: how likely wrong answers are beside the right one (Maini et al., "TOFU", 2024, §2.2.1)."""

import numpy as np

from lmcleaner.evaluation.scores import Array

_TINY = 1e-10  # of open-unlearning


def truth_ratios(correct_losses: Array, wrong_losses: Array) -> Array:
    """Likelihood of the wrong answers over that of the right one.

    exp(−mean over j of loss(wrong_j)) / (exp(−loss(correct)) + 1e-10). TOFU's §2.2.1 has the arithmetic mean of the
    probabilities; its code, and open-unlearning's, take the geometric one, as here.

    Args:
        correct_losses: mean token loss of the right answer, `[row]`; of its paraphrase on rows that were trained on.
        wrong_losses: those of the perturbed answers, `[row, wrong]`.

    Returns:
        `[row]`; below 1 where the model prefers the right answer.
    """
    ratios: Array = np.exp(-wrong_losses.mean(axis=1)) / (np.exp(-correct_losses) + _TINY)
    return ratios


def forget_truth_ratio(ratios: Array) -> float:
    """Mean of min(r, 1/(r + 1e-10)).

    Args:
        ratios: of the forgotten rows, `[row]`.

    Returns:
        1 where the model can't tell right from wrong, 0 where it is sure either way.
    """
    return float(np.mean(np.minimum(ratios, 1 / (ratios + _TINY))))


def kept_truth_ratio(ratios: Array) -> float:
    """Mean of max(0, 1 − r).

    Args:
        ratios: of rows that the model shall know, `[row]`.

    Returns:
        1 where the model is sure of the right answer, 0 where it prefers wrong ones.
    """
    return float(np.mean(np.maximum(0, 1 - ratios)))
