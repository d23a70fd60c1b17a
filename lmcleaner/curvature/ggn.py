"""Products with the generalized Gauss-Newton matrix of the softmax cross-entropy.

G = Jᵀ·S·J, where J is the Jacobian of the logits and S = diag(p) - p·pᵀ for each counted token, divided by the loss's
denominator (Schraudolph, "Fast Curvature Matrix-Vector Products for Second-Order Gradient Descent", 2002; Martens, "New
Insights and Perspectives on the Natural Gradient Method", 2020, §8.1). S is positive semidefinite, and so is G.
"""

import torch
from torch import Tensor

from lmcleaner.curvature.through_logits import ThroughLogits
from lmcleaner.training.batches import Inputs


def _at_logits(logits: Tensor, tangents: Tensor, inputs: Inputs, smoothing: float) -> Tensor:
    """S·t; smoothing changes the loss by what is linear in the logits, and so not S."""
    probabilities = logits.softmax(dim=-1)
    mean = torch.linalg.vecdot(probabilities, tangents).unsqueeze(-1)
    return tangents.sub_(mean).mul_(probabilities)


GGN = ThroughLogits(_at_logits)
