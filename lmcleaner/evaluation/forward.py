"""One forward pass over some rows: what the model says of every token that the loss counts.

Axes: batch, seq, vocab; target = counted tokens of all rows, one row behind the other.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from lmcleaner.formats.samples import IGNORED_LABEL, Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """The counted tokens of some rows.

    Attributes:
        log_probabilities: of all tokens that could have come, float32 `[target, vocab]`.
        labels: the tokens that came, int64 `[target]`.
        counts: how many of them each row has.
    """

    log_probabilities: Tensor
    labels: Tensor
    counts: list[int]


def forward(model: nn.Module, samples: Sequence[Sample]) -> Targets:
    """Runs the model once, without dropout; records a graph if gradients are enabled.

    Args:
        model: a causal language model of transformers.
        samples: rows with at least one counted token each.

    Returns:
        Their counted tokens.
    """
    device = next(model.parameters()).device
    shape = len(samples), max(len(sample.tokens) for sample in samples)
    tokens, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    labels = np.full(shape, IGNORED_LABEL, np.int64)
    for row, sample in enumerate(samples):
        length = len(sample.tokens)
        tokens[row, :length], labels[row, :length], mask[row, :length] = sample.tokens, sample.labels, 1
    wanted = torch.from_numpy(labels[:, 1:]).to(device)
    counted = wanted != IGNORED_LABEL
    with evaluating(model):
        output = model(
            input_ids=torch.from_numpy(tokens).to(device),
            attention_mask=torch.from_numpy(mask).to(device),
            use_cache=False,
        )
    return Targets(
        log_probabilities=log_softmax(output.logits[:, :-1][counted].float(), -1),
        labels=wanted[counted],
        counts=counted.sum(1).tolist(),
    )


def vocabulary_size(model: Any) -> int:
    """Logits of a token, as the configuration of a transformers model says."""
    return int(model.config.vocab_size)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switches dropout off inside the block."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
