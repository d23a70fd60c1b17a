"""ROUGE-L recall: how much of the true answer stands, in its order, in what the model says."""

from collections.abc import Sequence

import numpy as np

from lmcleaner.evaluation.libraries import rouge_scorer
from lmcleaner.evaluation.scores import Array


def rouge_recalls(answers: Sequence[str], generated: Sequence[str]) -> Array:
    """Longest common subsequence over the words of the true answer (Lin, "ROUGE", 2004, §3), stemmed as TOFU does.

    Args:
        answers: the true answers.
        generated: what the model said.

    Returns:
        `[row]`, in [0, 1].

    Raises:
        NotFoundError: rouge-score isn't installed.
    """
    scorer = rouge_scorer().RougeScorer(["rougeL"], use_stemmer=True)
    pairs = zip(answers, generated, strict=True)
    return np.array([scorer.score(answer, said)["rougeL"].recall for answer, said in pairs], np.float64)
