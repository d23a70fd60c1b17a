"""Answer probability and divergence on samples.

Axes: batch, seq, vocab; target = counted tokens.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from lmcleaner.formats.samples import IGNORED_LABEL, Sample

_BATCH = 8  # rows of an evaluation batch


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
    return [
        float(torch.exp(-cross_entropy(logits, targets)))
        for batch in _batches(samples)
        for logits, targets in _target_logits(model, batch)
    ]


def mean_divergence(reference: nn.Module, model: nn.Module, samples: Sequence[Sample]) -> float:
    """KL(reference ‖ model) of the next-token distributions, in nats.

    Args:
        reference: the model whose answers count.
        model: the model to compare.
        samples: rows with at least one counted token.

    Returns:
        Mean over the counted tokens of a row, then over the rows.
    """
    rows = []
    for batch in _batches(samples):
        pairs = zip(_target_logits(reference, batch), _target_logits(model, batch), strict=True)
        for (wanted, _), (found, _) in pairs:
            divergence = kl_div(log_softmax(found, -1), log_softmax(wanted, -1), reduction="batchmean", log_target=True)
            rows.append(float(divergence))
    return float(np.mean(rows))


def _batches(samples: Sequence[Sample]) -> Iterator[Sequence[Sample]]:
    for start in range(0, len(samples), _BATCH):
        yield samples[start : start + _BATCH]


def _target_logits(model: nn.Module, samples: Sequence[Sample]) -> list[tuple[Tensor, Tensor]]:
    """Logits `[target, vocab]` in float32 and labels `[target]` of each sample's counted tokens."""
    device = next(model.parameters()).device
    shape = len(samples), max(len(sample.tokens) for sample in samples)
    tokens, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for row, sample in enumerate(samples):
        tokens[row, : len(sample.tokens)] = sample.tokens
        mask[row, : len(sample.tokens)] = 1
    with torch.no_grad(), _evaluating(model):
        output = model(input_ids=torch.from_numpy(tokens).to(device), attention_mask=torch.from_numpy(mask).to(device))
    rows = []
    for logits, sample in zip(output.logits.float(), samples, strict=True):
        labels = torch.from_numpy(sample.labels[1:].astype(np.int64)).to(device)
        counted = labels != IGNORED_LABEL
        rows.append((logits[: len(labels)][counted], labels[counted]))
    return rows


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Switches dropout off inside the block."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
