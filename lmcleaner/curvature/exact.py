"""Exact Hessian products by double backward (Pearlmutter, "Fast Exact Multiplication by the Hessian", 1994).

The first backward pass gives the gradient g, the backward pass of ⟨g, v⟩ gives H·v: one forward pass for both.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lmcleaner.curvature.kernels import twice_differentiable
from lmcleaner.training.batches import Inputs
from lmcleaner.training.replay import ReplayModel
from lmcleaner.training.state import Gradient

# The graph of a double backward pass takes up to four times the activations of a plain one, so a quarter of the rows at
# once takes no more than a training step.
_PARTS = 4


def gradient_minus_product(
    replay: ReplayModel, inputs: Inputs, vector: Sequence[Tensor], extra: Mapping[str, Any], *, whole: bool
) -> None:
    """Adds g - H·v of one microbatch to the parameters' `grad`.

    Args:
        replay: the model, at the parameters that it points to.
        inputs: forward arguments, `input_ids` and `labels` int64 `[batch, seq]`.
        vector: v, one tensor for each parameter.
        extra: further forward arguments.
        whole: takes all rows at once, as needed where the model draws random numbers for the whole batch.
    """
    for part in [inputs] if whole else _parts(inputs):
        with twice_differentiable():
            gradient, slope = _gradient_and_slope(replay, part, vector, extra)
            _add_to_gradient(replay, gradient)
            del gradient  # as long as the parameters; the product below is added piece by piece
            torch.autograd.backward(-slope, inputs=replay.parameters)


def product(replay: ReplayModel, inputs: Inputs, vector: Sequence[Tensor], extra: Mapping[str, Any]) -> list[Tensor]:
    """H·v of one microbatch.

    Args:
        replay: the model, at the parameters that it points to.
        inputs: forward arguments.
        vector: v, one tensor for each parameter.
        extra: further forward arguments.

    Returns:
        One tensor for each parameter, exact up to rounding; zeros where the loss doesn't reach it.
    """
    with twice_differentiable():
        _, slope = _gradient_and_slope(replay, inputs, vector, extra)
        return list(torch.autograd.grad(slope, replay.parameters, materialize_grads=True))


def _gradient_and_slope(
    replay: ReplayModel, inputs: Inputs, vector: Sequence[Tensor], extra: Mapping[str, Any]
) -> tuple[Gradient, Tensor]:
    """The gradient g with its graph, None where the loss doesn't reach a parameter, and ⟨g, v⟩."""
    loss = replay.scaled(replay.module(**inputs, **extra).loss)
    gradient = torch.autograd.grad(loss, replay.parameters, create_graph=True, allow_unused=True)
    slopes = [(g * v).sum() for g, v in zip(gradient, vector, strict=True) if g is not None]
    return list(gradient), torch.stack(slopes).sum()


def _add_to_gradient(replay: ReplayModel, tensors: Sequence[Tensor | None]) -> None:
    with torch.no_grad():
        for parameter, tensor in zip(replay.parameters, tensors, strict=True):
            if tensor is None:  # as a backward pass leaves it, so that the optimizer passes over the parameter
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad.add_(tensor)


def _parts(inputs: Inputs) -> Iterator[Inputs]:
    """Cuts a microbatch into quarters of its rows.

    Yields:
        Forward arguments of some rows, with the whole microbatch's denominator.
    """
    num_rows = len(inputs["input_ids"])
    size = -(-num_rows // _PARTS)
    for start in range(0, num_rows, size):
        yield {name: value[start : start + size] if value.dim() else value for name, value in inputs.items()}
