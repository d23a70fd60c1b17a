"""Products with the generalized Gauss-Newton matrix of the softmax cross-entropy.

G = Jᵀ·S·J, where J is the Jacobian of the logits and S = diag(p) - p·pᵀ for each counted token, divided by the loss's
denominator (Schraudolph, "Fast Curvature Matrix-Vector Products for Second-Order Gradient Descent", 2002; Martens, "New
Insights and Perspectives on the Natural Gradient Method", 2020, §8.1). S is positive semidefinite, and so is G.

Axes: target = counted tokens of the microbatch, vocab = vocabulary.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lmcleaner.curvature.logits import directional_logits, target_logits
from lmcleaner.training.batches import Inputs
from lmcleaner.training.replay import ReplayModel

# A forward derivative takes twice the activations of a plain pass; a quarter of the rows at once takes no more than a
# training step.
PARTS = 4


def gradient_minus_product(
    replay: ReplayModel, inputs: Inputs, vector: Sequence[Tensor], extra: Mapping[str, Any]
) -> None:
    """Adds g - G·v of some rows to the parameters' `grad`, by one forward derivative and one backward pass.

    Both terms go through the same Jacobian: g = Jᵀ·∂ℓ/∂z and G·v = Jᵀ·(S·J·v), so that the gradient of
    ℓ - ⟨S·J·v, z⟩, with the bracket's left side held fixed, is their difference.

    Args:
        replay: the model, at the parameters that it points to.
        inputs: forward arguments, `input_ids` and `labels` int64 `[batch, seq]`.
        vector: v, one tensor for each parameter.
        extra: further forward arguments.
    """
    weights = _output_product(replay, inputs, vector, extra)
    output = replay.module(**inputs, **extra)
    loss = replay.scaled(output.loss)
    (loss - (weights * target_logits(output.logits, inputs)).sum()).backward()


def product(replay: ReplayModel, inputs: Inputs, vector: Sequence[Tensor], extra: Mapping[str, Any]) -> list[Tensor]:
    """G·v of some rows.

    Args:
        replay: the model, at the parameters that it points to.
        inputs: forward arguments.
        vector: v, one tensor for each parameter.
        extra: further forward arguments.

    Returns:
        One tensor for each parameter; exact up to rounding.
    """
    weights = _output_product(replay, inputs, vector, extra)
    logits = target_logits(replay.module(**inputs, **extra).logits, inputs)
    return list(torch.autograd.grad(logits, replay.parameters, grad_outputs=weights, materialize_grads=True))


def _output_product(replay: ReplayModel, inputs: Inputs, vector: Sequence[Tensor], extra: Mapping[str, Any]) -> Tensor:
    """S·J·v, divided by the loss's denominator; `[target, vocab]`."""
    logits, tangents = directional_logits(replay, inputs, vector, extra)
    probabilities = logits.softmax(dim=-1)
    denominator = inputs["num_items_in_batch"].to(logits.dtype) * replay.manifest.loss_divisor
    mean = torch.linalg.vecdot(probabilities, tangents).unsqueeze(-1)
    return tangents.sub_(mean).mul_(probabilities).div_(denominator)  # in place: logits are the largest activations
