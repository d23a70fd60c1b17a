"""Answer probability and divergence on samples.

Axes: vocab; target = counted tokens of a row.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, nll_loss

from lmcleaner.evaluation.batching import batches_by_length
from lmcleaner.evaluation.forward import Targets, forward, vocabulary_size
from lmcleaner.formats.samples import Sample


def answer_probabilities(model: nn.Module, samples: Sequence[Sample]) -> list[float]:
    """How sure the model is of each answer.

    exp of minus the mean negative log-likelihood of the counted tokens, as TOFU's "probability" (Maini et al., "TOFU: A
    Task of Fictitious Unlearning for LLMs", 2024, §2.2.1).

    Args:
        model: a causal language model.
        samples: rows with at least one counted token.

    Returns:
        One probability in [0, 1] for each sample.
    """
    found = np.zeros(len(samples))
    for batch in _batches(model, samples):
        with torch.no_grad():
            targets = forward(model, [samples[index] for index in batch])
        rows = zip(targets.log_probabilities.split(targets.counts), targets.labels.split(targets.counts), strict=True)
        found[batch] = [float(torch.exp(-nll_loss(log_probabilities, labels))) for log_probabilities, labels in rows]
    return [float(probability) for probability in found]


def mean_divergence(reference: nn.Module, model: nn.Module, samples: Sequence[Sample]) -> float:
    """KL(reference ‖ model) of the next-token distributions, in nats.

    Args:
        reference: the model whose answers count.
        model: the model to compare.
        samples: rows with at least one counted token.

    Returns:
        Mean over the counted tokens of a row, then over the rows.
    """
    found = np.zeros(len(samples))
    for batch in _batches(model, samples):
        chosen = [samples[index] for index in batch]
        with torch.no_grad():
            found[batch] = row_divergences(forward(reference, chosen), forward(model, chosen))
    return float(found.mean())


def row_divergences(reference: Targets, targets: Targets) -> list[float]:
    """KL(reference ‖ model) of each row, in nats: the mean over its counted tokens.

    Args:
        reference: what the model says whose answers count.
        targets: what the other model says of the same tokens.

    Returns:
        One number for each row.
    """
    return [
        float(kl_div(found, wanted, reduction="batchmean", log_target=True))
        for wanted, found in _row_pairs(reference, targets)
    ]


def row_agreements(reference: Targets, targets: Targets) -> list[float]:
    """The share of a row's counted tokens for which both models hold the same token to be most likely.

    Args:
        reference: what one model says.
        targets: what the other says of the same tokens.

    Returns:
        One number in [0, 1] for each row.
    """
    return [
        float((wanted.argmax(-1) == found.argmax(-1)).float().mean())
        for wanted, found in _row_pairs(reference, targets)
    ]


def _row_pairs(reference: Targets, targets: Targets) -> Iterator[tuple[Tensor, Tensor]]:
    """Log-probabilities `[target, vocab]` of both models for each row."""
    wanted, found = (side.log_probabilities.split(side.counts) for side in (reference, targets))
    return zip(wanted, found, strict=True)


def _batches(model: nn.Module, samples: Sequence[Sample]) -> list[list[int]]:
    return batches_by_length([len(sample.tokens) for sample in samples], vocabulary_size(model))
