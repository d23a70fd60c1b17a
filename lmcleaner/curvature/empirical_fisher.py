"""Products with the empirical Fisher matrix: the samples' gradients, each times itself.

F = (1/D)·Σᵢ ∇ℓᵢ·∇ℓᵢᵀ, where ℓᵢ is a sample's summed loss, that is -log p of its counted tokens together, and D the
loss's denominator. It needs their own labels, not the model's (Kunstner, Balles & Hennig, "Limitations of the Empirical
Fisher Approximation for Natural Gradient Descent", 2019, eq. 3). F is positive semidefinite.

As ∇ℓᵢ = Jᵀ·∂ℓᵢ/∂z, it acts through the logits: with the loss's own derivative there, p less 1 at the label; smoothed by
ε it is p less 1 - ε at the label and ε/vocab everywhere.
"""

import torch
from torch import Tensor

from lmcleaner.curvature.through_logits import ThroughLogits
from lmcleaner.formats.samples import IGNORED_LABEL
from lmcleaner.training.batches import Inputs


def _at_logits(logits: Tensor, tangents: Tensor, inputs: Inputs, smoothing: float) -> Tensor:
    """∂ℓᵢ/∂z times the slope ⟨∂ℓᵢ/∂z, t⟩ over all targets of the sample."""
    labels = inputs["labels"][:, 1:]
    is_target = labels != IGNORED_LABEL
    derivative = logits.softmax(dim=-1)
    derivative -= smoothing / logits.shape[-1]
    derivative[torch.arange(len(derivative)), labels[is_target]] -= 1 - smoothing
    samples = _samples(inputs)[:, 1:][is_target]
    slopes = derivative.new_zeros(labels.numel() + len(labels))
    slopes.index_add_(0, samples, torch.linalg.vecdot(derivative, tangents))
    return derivative.mul_(slopes[samples].unsqueeze(-1))


def _samples(inputs: Inputs) -> Tensor:
    """Number of the sample that each token belongs to, `[batch, seq]`; of packed rows one begins where positions do."""
    tokens = inputs["input_ids"]
    if "position_ids" not in inputs:
        return torch.arange(len(tokens), device=tokens.device)[:, None].expand_as(tokens)
    return (inputs["position_ids"] == 0).flatten().cumsum(0).reshape(tokens.shape) - 1


EMPIRICAL_FISHER = ThroughLogits(_at_logits)
