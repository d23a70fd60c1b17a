"""How fast a model learns again what was forgotten: faster than gold means that traces are left.

Lynch et al., "Eight Methods to Evaluate Robust Unlearning in LLMs", 2024; Łucki et al., "An Adversarial Perspective on
Machine Unlearning for AI Safety", 2024.

Axes: mark = steps after which is measured, row = rows.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn

from lmcleaner.evaluation.comparison import KNOWN_MARGIN, RESAMPLES, SEED, Finding, interval, verdict
from lmcleaner.evaluation.forward import forward
from lmcleaner.evaluation.generation import generate_answers, true_answers
from lmcleaner.evaluation.passes import Wanted, score_rows
from lmcleaner.evaluation.rouge import rouge_recalls
from lmcleaner.evaluation.scores import Array, Columns
from lmcleaner.formats.errors import DivergedError
from lmcleaner.formats.samples import Sample
from lmcleaner.progress import Progress

MARKS = (0, 1, 2, 5, 10, 20)
BATCH_SIZE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Lead:
    """How far a model is ahead of gold in relearning.

    Attributes:
        value: how far it is ahead in the mean over rows and marks, less what it was ahead before the first step.
        low: lower end of its interval over draws of the rows.
        high: upper end.
        faster: whether it is more than 0.01.
    """

    value: float
    low: float
    high: float
    faster: Finding


def split_rows(samples: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
    """Halves of the rows, drawn with a fixed seed.

    Args:
        samples: two at least.

    Returns:
        Those to learn again, and those to measure on, one more if their number is odd.
    """
    order = np.random.default_rng(SEED).permutation(len(samples)).tolist()
    half = len(samples) // 2
    return [samples[row] for row in order[:half]], [samples[row] for row in order[half:]]


def relearn(
    model: nn.Module,
    learned: Sequence[Sample],
    measured: Sequence[Sample],
    tokenizer: Any,
    lr: float,
    max_new_tokens: int,
    progress: Progress,
    what: str,
) -> Columns:
    """Trains a copy of a model on some rows, and measures on others.

    AdamW without weight decay, in float32, without dropout; 16 rows a step, in the same order for all models.

    Args:
        model: a causal language model of transformers; isn't changed.
        learned: rows to train on.
        measured: rows to measure on.
        tokenizer: the model's.
        lr: learning rate.
        max_new_tokens: where a generated answer is cut off.
        progress: is told of every batch.
        what: the model's name for it.

    Returns:
        The columns `probability` and `rougeL_recall` after 0, 1, 2, 5, 10 and 20 steps, `[mark, row]`.

    Raises:
        DivergedError: the learning rate is too large.
    """
    copied = copy.deepcopy(model).float()
    parameters = [parameter for parameter in copied.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    batches = _batches(learned, MARKS[-1])
    found = [_measured(copied, measured, tokenizer, max_new_tokens, progress, f"{what}, step 0")]
    for start, stop in pairwise(MARKS):
        for batch in batches[start:stop]:
            _step(copied, optimizer, batch)
        found.append(_measured(copied, measured, tokenizer, max_new_tokens, progress, f"{what}, step {stop}"))
    return {column: np.stack([values[column] for values in found]) for column in found[0]}


def lead(curve: Array, gold: Array) -> Lead:
    """Whether a model learns faster than gold.

    A model that starts behind gold isn't faster as long as it only catches up.

    Args:
        curve: a metric of the model, `[mark, row]`, the first one before any step.
        gold: the same of gold.

    Returns:
        Its lead, with the middle 95 % of what 1,000 draws of the rows give.
    """
    start, later = curve[0] - gold[0], (curve[1:] - gold[1:]).mean(axis=0)
    rows = np.random.default_rng(SEED).integers(len(start), size=(RESAMPLES, len(start)))
    low, high = interval(later[rows].mean(axis=1) - np.maximum(start[rows].mean(axis=1), 0))
    value = float(later.mean() - max(start.mean(), 0))
    return Lead(value=value, low=low, high=high, faster=verdict(low, high, KNOWN_MARGIN))


def _batches(samples: Sequence[Sample], count: int) -> list[list[Sample]]:
    """As many batches as there are steps; the rows come again, in another order, once all were used."""
    generator = np.random.default_rng(SEED)
    size = min(BATCH_SIZE, len(samples))
    order: list[int] = []
    while len(order) < count * size:
        order += generator.permutation(len(samples)).tolist()
    return [[samples[row] for row in order[start * size : (start + 1) * size]] for start in range(count)]


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Sequence[Sample]) -> None:
    with torch.enable_grad():
        targets = forward(model, batch)
        loss = nn.functional.nll_loss(targets.log_probabilities, targets.labels)
    if not torch.isfinite(loss):
        raise DivergedError("relearning diverged: the loss isn't finite", hint="lower --relearn-lr")
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _measured(
    model: nn.Module, samples: Sequence[Sample], tokenizer: Any, max_new_tokens: int, progress: Progress, what: str
) -> Columns:
    probabilities = score_rows({"": model}, samples, Wanted(), progress, what)[""]["probability"]
    said = generate_answers(model, samples, tokenizer, max_new_tokens, progress, what)
    return {"probability": probabilities, "rougeL_recall": rouge_recalls(true_answers(samples, tokenizer), said)}
