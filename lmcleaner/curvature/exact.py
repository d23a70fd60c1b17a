"""Exact Hessian products by double backward (Pearlmutter, "Fast Exact Multiplication by the Hessian", 1994).

The first backward pass gives the gradient g, the backward pass of ⟨g, v⟩ gives H·v: one forward pass for both.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lmcleaner.curvature.kernels import twice_differentiable
from lmcleaner.training.batches import Inputs
from lmcleaner.training.replay import ReplayModel


def gradient_and_product(
    replay: ReplayModel, inputs: Inputs, vector: Sequence[Tensor], extra: Mapping[str, Any]
) -> tuple[list[Tensor], list[Tensor]]:
    """Gradient and Hessian product of one microbatch's loss at the parameters that the model points to.

    Args:
        replay: the model.
        inputs: forward arguments, `input_ids` and `labels` int64 `[batch, seq]`.
        vector: v, one tensor for each parameter.
        extra: further forward arguments.

    Returns:
        g and H·v, one tensor for each parameter; exact up to rounding. Zeros where the loss doesn't reach a parameter.
    """
    with twice_differentiable():
        loss = replay.scaled(replay.module(**inputs, **extra).loss)
        gradient = torch.autograd.grad(loss, replay.parameters, create_graph=True, materialize_grads=True)
        slope = torch.stack([(g * v).sum() for g, v in zip(gradient, vector, strict=True)]).sum()
        product = torch.autograd.grad(slope, replay.parameters, materialize_grads=True)
    return [g.detach() for g in gradient], list(product)
