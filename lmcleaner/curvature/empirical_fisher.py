"""Products with the empirical Fisher matrix: the rows' gradients, each times itself.

F = (1/D)·Σᵢ ∇ℓᵢ·∇ℓᵢᵀ, where ℓᵢ is a row's summed loss, that is -log p of its counted tokens together, and D the loss's
denominator. It needs the rows' own labels, not the model's (Kunstner, Balles & Hennig, "Limitations of the Empirical
Fisher Approximation for Natural Gradient Descent", 2019, eq. 3). F is positive semidefinite.

Axes: batch = rows, target = counted tokens of the microbatch, vocab = vocabulary.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lmcleaner.curvature.logits import directional_logits, target_logits
from lmcleaner.formats.samples import IGNORED_LABEL
from lmcleaner.training.batches import Inputs
from lmcleaner.training.replay import ReplayModel

PARTS = 4  # as for the GGN, which goes through the same passes


def gradient_minus_product(
    replay: ReplayModel, inputs: Inputs, vector: Sequence[Tensor], extra: Mapping[str, Any]
) -> None:
    """Adds g - F·v of some rows to the parameters' `grad`, by one forward derivative and one backward pass.

    Args:
        replay: the model, at the parameters that it points to.
        inputs: forward arguments, `input_ids` and `labels` int64 `[batch, seq]`.
        vector: v, one tensor for each parameter.
        extra: further forward arguments.
    """
    weights = _slopes(replay, inputs, vector, extra)
    output = replay.module(**inputs, **extra)
    (replay.scaled(output.loss) - _weighted_loss(output.logits, inputs, weights)).backward()


def product(replay: ReplayModel, inputs: Inputs, vector: Sequence[Tensor], extra: Mapping[str, Any]) -> list[Tensor]:
    """F·v of some rows.

    Args:
        replay: the model, at the parameters that it points to.
        inputs: forward arguments.
        vector: v, one tensor for each parameter.
        extra: further forward arguments.

    Returns:
        One tensor for each parameter; exact up to rounding.
    """
    weights = _slopes(replay, inputs, vector, extra)
    loss = _weighted_loss(replay.module(**inputs, **extra).logits, inputs, weights)
    return list(torch.autograd.grad(loss, replay.parameters, materialize_grads=True))


def _slopes(replay: ReplayModel, inputs: Inputs, vector: Sequence[Tensor], extra: Mapping[str, Any]) -> Tensor:
    """⟨∇ℓᵢ, v⟩ / D of the row that each target belongs to; `[target]`."""
    logits, tangents = directional_logits(replay, inputs, vector, extra)
    chosen = tangents.gather(-1, _labels(inputs).unsqueeze(-1)).squeeze(-1)
    slopes = torch.linalg.vecdot(logits.softmax(dim=-1), tangents) - chosen
    rows = _is_target(inputs).nonzero()[:, 0]
    of_rows = slopes.new_zeros(len(inputs["labels"])).index_add(0, rows, slopes)
    denominator = inputs["num_items_in_batch"].to(slopes.dtype) * replay.manifest.loss_divisor
    return torch.div(of_rows[rows], denominator)


def _weighted_loss(logits: Tensor, inputs: Inputs, weights: Tensor) -> Tensor:
    losses: Tensor = cross_entropy(target_logits(logits, inputs), _labels(inputs), reduction="none")
    return torch.dot(losses, weights)


def _labels(inputs: Inputs) -> Tensor:
    """`[target]`."""
    labels: Tensor = inputs["labels"][:, 1:]
    return labels[_is_target(inputs)]


def _is_target(inputs: Inputs) -> Tensor:
    labels: Tensor = inputs["labels"][:, 1:]
    return labels != IGNORED_LABEL
