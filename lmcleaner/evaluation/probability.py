"""Answer probability (Maini et al., "TOFU: A Task of Fictitious Unlearning for LLMs", 2024, §2.2.1)."""

import numpy as np

from lmcleaner.evaluation.scores import Array

_TINY = 1e-10  # of open-unlearning, in every quotient of probabilities


def answer_probability(losses: Array) -> Array:
    """How sure the model is of an answer, whatever its length.

    P(a|q)^(1/|a|), which is exp of minus the mean loss of its tokens.

    Args:
        losses: mean negative log-likelihood of an answer's tokens, in nats, of any shape.

    Returns:
        Probabilities in [0, 1] of the same shape.
    """
    probabilities: Array = np.exp(-losses)
    return probabilities


def normalised_probability(correct: Array, wrong: Array) -> Array:
    """The right answer's probability among the answers to choose from.

    p / (p + Σ p_wrong + 1e-10); TOFU's probability for real authors and world facts.

    Args:
        correct: probability of the right answer, `[row]`.
        wrong: probabilities of the wrong ones, `[row, wrong]`.

    Returns:
        `[row]`, in [0, 1].
    """
    probabilities: Array = correct / (correct + wrong.sum(axis=1) + _TINY)
    return probabilities
