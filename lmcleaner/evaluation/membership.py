"""Membership inference: can somebody tell rows that were trained on from rows that weren't?

Every attack gives a row a score that is lower the more the model seems to have seen it.

Axis: target = tokens of an answer.
"""

import zlib

import numpy as np

from lmcleaner.evaluation.libraries import scipy_stats
from lmcleaner.evaluation.scores import Array

_SHARE = 0.4  # k of min-k: open-unlearning's for TOFU


def zlib_score(loss: float, text: str) -> float:
    """The loss per byte of the compressed answer (Carlini et al., "Extracting Training Data from LLMs", 2021, §5).

    Args:
        loss: mean token loss of the answer.
        text: the answer.

    Returns:
        The score.
    """
    return loss / len(zlib.compress(text.encode()))


def min_k(values: Array) -> float:
    """Minus the mean of the lowest 40 % of some values of the tokens, of one at least.

    Min-k % (Shi et al., "Detecting Pretraining Data from Large Language Models", 2024) takes log-probabilities;
    min-k++ % (Zhang et al., "Min-K%++", 2025) takes (log p − μ) / σ, with mean and deviation of the log-probabilities
    of all tokens that could have come next.

    Args:
        values: `[target]`.

    Returns:
        The score.
    """
    count = max(1, int(len(values) * _SHARE))
    return -float(np.mean(np.sort(values)[:count]))


def reference_score(losses: Array, gold_losses: Array) -> Array:
    """The loss minus that of a model that never saw the rows (Carlini et al., 2021, §5).

    Args:
        losses: of the model, `[row]`.
        gold_losses: of the other one.

    Returns:
        `[row]`.
    """
    scores: Array = losses - gold_losses
    return scores


def area_under_curve(members: Array, others: Array) -> float:
    """How well scores tell members from others: the area under the ROC curve.

    The probability that another row's score is higher than a member's, equal ones counted half: the Mann-Whitney U
    statistic over the number of pairs (Hanley and McNeil, 1982).

    Args:
        members: scores of rows that were trained on.
        others: scores of rows that weren't.

    Returns:
        1 where members are found without error, 0.5 where the scores tell nothing.

    Raises:
        NotFoundError: scipy isn't installed.
    """
    ranks = scipy_stats().rankdata(np.concatenate([others, members]))
    statistic = ranks[: len(others)].sum() - len(others) * (len(others) + 1) / 2
    return float(statistic) / (len(members) * len(others))


def privacy_leakage(auc: float, gold_auc: float) -> float:
    """How far an attack's success is from what it has on a model that never saw the rows, in percent.

    ((1 − auc) − (1 − gold)) / (1 − gold + 1e-10) × 100, the attack being min-k % (Shi et al., "MUSE: Machine Unlearning
    Six-Way Evaluation", 2024, §3.3).

    Args:
        auc: of the model.
        gold_auc: of a model that was trained without the rows; 0.5 where there is none.

    Returns:
        0 is best; negative where too little was forgotten, positive where so much that it shows.
    """
    return ((1 - auc) - (1 - gold_auc)) / (1 - gold_auc + 1e-10) * 100
