"""Every value by row that forward passes give: one pass for each row and model, shared by all metrics.

Axes: row = rows; target = counted tokens of all rows of a batch, one row behind the other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lmcleaner.evaluation.answers import row_agreements, row_divergences
from lmcleaner.evaluation.batching import batches_by_length
from lmcleaner.evaluation.forward import Targets, forward, vocabulary_size
from lmcleaner.evaluation.membership import min_k
from lmcleaner.evaluation.memorization import exact_memorization, extraction_strength
from lmcleaner.evaluation.scores import Array, Columns
from lmcleaner.formats.samples import Sample
from lmcleaner.progress import Progress, Silent

_LEAST_VARIANCE = 1e-6  # of open-unlearning's min-k++


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which values of rows are wanted beside loss and probability.

    Attributes:
        tokens: those of single tokens: memorization and membership.
        gradients: the norm of a row's gradient; each row then is a batch of its own.
        gold: name of the model that the others are compared with.
    """

    tokens: bool = False
    gradients: bool = False
    gold: str | None = None


def score_rows(
    models: Mapping[str, nn.Module],
    samples: Sequence[Sample],
    wanted: Wanted,
    progress: Progress | None = None,
    what: str = "scoring rows",
) -> dict[str, Columns]:
    """Runs every model once over every row.

    Args:
        models: causal language models by name.
        samples: rows with at least one counted token.
        wanted: which values.
        progress: is told of every batch.
        what: the rows' name for it.

    Returns:
        For each model the columns `loss` and `probability`, and what else is wanted: `extraction_strength`,
        `exact_memorization`, `mia_loss`, `mia_min_k`, `mia_min_k_plus_plus`; `mia_gradnorm`; with gold `kl` and
        `agreement`. Each is `[row]`.
    """
    progress = progress or Silent()
    vocabulary = max(vocabulary_size(model) for model in models.values()) * len(models)
    lengths = [len(sample.tokens) for sample in samples]
    batches = batches_by_length(lengths, vocabulary, 1 if wanted.gradients else None)
    progress.begin(what, len(batches))
    found: dict[str, dict[str, Array]] = {name: {} for name in models}
    for batch in batches:
        for name, columns in _score_batch(models, [samples[index] for index in batch], wanted).items():
            for column, values in columns.items():
                found[name].setdefault(column, np.zeros(len(samples)))[batch] = values
        progress.advance()
    return {name: dict(columns) for name, columns in found.items()}


def _score_batch(
    models: Mapping[str, nn.Module], samples: Sequence[Sample], wanted: Wanted
) -> dict[str, dict[str, list[float]]]:
    found, said = {}, {}
    for name, model in models.items():
        with torch.set_grad_enabled(wanted.gradients):
            targets = forward(model, samples)
        found[name] = _row_values(targets, wanted.tokens)
        if wanted.gradients:
            found[name]["mia_gradnorm"] = [_gradient_norm(model, targets)]
        said[name] = _detached(targets)
    if wanted.gold is not None:
        for name, targets in said.items():
            found[name]["kl"] = row_divergences(said[wanted.gold], targets)
            found[name]["agreement"] = row_agreements(said[wanted.gold], targets)
    return found


def _row_values(targets: Targets, tokens: bool) -> dict[str, list[float]]:
    chosen = _chosen(targets).detach()
    losses = np.array([-float(row.mean()) for row in chosen.split(targets.counts)])
    values = {"loss": losses.tolist(), "probability": np.exp(-losses).tolist()}
    if not tokens:
        return values
    found = targets.log_probabilities.detach()
    hits = _answer_tokens(found.argmax(-1) == targets.labels, targets.counts)
    normalised = _answer_tokens(_normalised(found, chosen), targets.counts)
    return values | {
        "extraction_strength": [extraction_strength(row) for row in hits],
        "exact_memorization": [exact_memorization(row) for row in hits],
        "mia_loss": losses.tolist(),
        "mia_min_k": [min_k(row) for row in _answer_tokens(chosen, targets.counts)],
        "mia_min_k_plus_plus": [min_k(row) for row in normalised],
    }


def _chosen(targets: Targets) -> Tensor:
    """Log-probability of each token that came, `[target]`."""
    return targets.log_probabilities.gather(-1, targets.labels[:, None]).squeeze(-1)


def _normalised(log_probabilities: Tensor, chosen: Tensor) -> Tensor:
    """(log p − μ) / σ over all tokens that could have come, `[target]`: Zhang et al., "Min-K%++", 2025, equation 3."""
    probabilities = log_probabilities.exp()
    mean = (probabilities * log_probabilities).sum(-1)
    variance = (probabilities * log_probabilities.square()).sum(-1) - mean.square()
    return (chosen - mean) / variance.clamp(min=_LEAST_VARIANCE).sqrt()


def _answer_tokens(values: Tensor, counts: list[int]) -> list[NDArray[Any]]:
    """Each row's values without that of the end token, as in open-unlearning; one is left at least."""
    return [row[: max(1, len(row) - 1)].cpu().numpy() for row in values.split(counts)]


def _gradient_norm(model: nn.Module, targets: Targets) -> float:
    """Mean over the trained tensors of the norm of the loss's gradient (Wang et al., arXiv 2402.17012), of one row."""
    chosen = _chosen(targets)
    loss = -chosen[: max(1, len(chosen) - 1)].mean()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    norms = [gradient.float().norm() for gradient in gradients if gradient is not None]
    return float(torch.stack(norms).mean())


def _detached(targets: Targets) -> Targets:
    return Targets(log_probabilities=targets.log_probabilities.detach(), labels=targets.labels, counts=targets.counts)
