"""Products with the empirical Fisher matrix: the rows' gradients, each times itself.

F = (1/D)·Σᵢ ∇ℓᵢ·∇ℓᵢᵀ, where ℓᵢ is a row's summed loss, that is -log p of its counted tokens together, and D the loss's
denominator. It needs the rows' own labels, not the model's (Kunstner, Balles & Hennig, "Limitations of the Empirical
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
    """∂ℓᵢ/∂z times the slope ⟨∂ℓᵢ/∂z, t⟩ over all targets of the row."""
    labels = inputs["labels"][:, 1:]
    is_target = labels != IGNORED_LABEL
    derivative = logits.softmax(dim=-1)
    derivative -= smoothing / logits.shape[-1]
    derivative[torch.arange(len(derivative)), labels[is_target]] -= 1 - smoothing
    rows = is_target.nonzero()[:, 0]
    slopes = derivative.new_zeros(len(labels)).index_add(0, rows, torch.linalg.vecdot(derivative, tangents))
    return derivative.mul_(slopes[rows].unsqueeze(-1))


EMPIRICAL_FISHER = ThroughLogits(_at_logits)
