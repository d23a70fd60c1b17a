"""Exact Hessian products (Pearlmutter, "Fast Exact Multiplication by the Hessian", 1994), forward mode first.

A forward pass in direction v gives the loss ℓ and its slope ⟨g, v⟩ together; the gradient of the slope is H·v. So one
backward pass of ℓ - ⟨g, v⟩ adds g - H·v, and neither g nor H·v ever stands in memory by itself, as g would with its
graph in a double backward pass.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call

from lmcleaner.curvature.kernels import twice_differentiable
from lmcleaner.training.batches import Inputs
from lmcleaner.training.losses import loss_and_logits
from lmcleaner.training.replay import ReplayModel

# The graph of a second derivative takes four times the activations of a plain pass, measured on a Llama; a quarter of
# the rows at once takes no more than a training step.
PARTS = 4


def gradient_minus_product(
    replay: ReplayModel, inputs: Inputs, vector: Sequence[Tensor], extra: Mapping[str, Any]
) -> None:
    """Adds g - H·v of some rows to the parameters' `grad`.

    Args:
        replay: the model, at the parameters that it points to.
        inputs: forward arguments, `input_ids` and `labels` int64 `[batch, seq]`.
        vector: v, one tensor for each parameter.
        extra: further forward arguments.
    """
    with twice_differentiable(replay.module):
        loss, slope = _loss_and_slope(replay, inputs, vector, extra)
        torch.autograd.backward(loss - slope, inputs=replay.parameters)


def product(replay: ReplayModel, inputs: Inputs, vector: Sequence[Tensor], extra: Mapping[str, Any]) -> list[Tensor]:
    """H·v of some rows.

    Args:
        replay: the model, at the parameters that it points to.
        inputs: forward arguments.
        vector: v, one tensor for each parameter.
        extra: further forward arguments.

    Returns:
        One tensor for each parameter, exact up to rounding; zeros where the loss doesn't reach it.
    """
    with twice_differentiable(replay.module):
        _, slope = _loss_and_slope(replay, inputs, vector, extra)
        return list(torch.autograd.grad(slope, replay.parameters, materialize_grads=True))


def _loss_and_slope(
    replay: ReplayModel, inputs: Inputs, vector: Sequence[Tensor], extra: Mapping[str, Any]
) -> tuple[Tensor, Tensor]:
    """ℓ and ⟨g, v⟩, both with their graph."""
    names = [entry.name for entry in replay.manifest.parameters]
    with forward_ad.dual_level():
        duals = {
            name: forward_ad.make_dual(parameter, direction)
            for name, parameter, direction in zip(names, replay.parameters, vector, strict=True)
        }

        def forward(**arguments: Any) -> Any:
            return functional_call(replay.module, duals, (), arguments)

        loss, _ = loss_and_logits(replay.manifest.model.loss, forward, {**inputs, **extra, "use_cache": False})
        loss, slope = forward_ad.unpack_dual(replay.scaled(loss))
    return loss, slope
