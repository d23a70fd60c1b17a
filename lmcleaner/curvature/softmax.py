"""Softmax and its kin with derivatives of both kinds, by little memory and few passes over it.

torch's forward derivative of a softmax computes the weights a second time, from exponentials of what the mask made
hugely negative, and keeps five tensors of their size for the derivative after it; attention's weights are the largest
activations.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def softmax(logits: Tensor, dim: int, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    """`torch.nn.functional.softmax`."""
    wide = (logits if dtype is None else logits.to(dtype)).movedim(dim, -1)
    weights: Tensor = _Softmax.apply(wide, None)  # type: ignore[no-untyped-call]
    return weights.movedim(-1, dim)


def masked_softmax(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax over the last axis of logits + mask, with no weight in a row that is masked as a whole.

    Args:
        logits: `[..., k]`.
        mask: a constant that broadcasts to the logits, -inf where something takes no part; None is zero everywhere.

    Returns:
        The weights, of the shape and dtype of the logits.
    """
    weights: Tensor = _Softmax.apply(logits, mask)  # type: ignore[no-untyped-call]
    return weights


def log_softmax(logits: Tensor, dim: int, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    """`torch.nn.functional.log_softmax`."""
    wide = logits if dtype is None else logits.to(dtype)
    return wide - logsumexp(wide, dim, keepdim=True)


def logsumexp(values: Tensor, dim: int | Sequence[int], keepdim: bool = False) -> Tensor:
    """`torch.logsumexp` of plain operations: its forward derivative overwrites what the derivative after it needs."""
    axes = (dim,) if isinstance(dim, int) else tuple(dim)
    largest = values.detach().amax(axes, keepdim=True)
    largest = torch.where(largest.isfinite(), largest, torch.zeros_like(largest))
    sums = (values - largest).exp().sum(axes, keepdim=True).log() + largest
    return sums if keepdim else sums.squeeze(axes)


class _Softmax(torch.autograd.Function):
    """w = softmax(x + mask) over the last axis; both derivatives are w∘(v - ⟨w, v⟩), from w alone."""

    @staticmethod
    def forward(x: Tensor, mask: Tensor | None) -> Tensor:
        """The weights w."""
        if mask is None:
            return torch.softmax(x, -1)
        weights = torch.softmax(x + mask, -1)
        is_empty = (mask == -torch.inf).all(-1, keepdim=True)
        return weights.masked_fill_(is_empty, 0) if is_empty.any() else weights

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keeps w."""
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx: Any, *vectors: Tensor) -> tuple[Tensor, None]:
        """The derivative is symmetric."""
        return _times_derivative(ctx.saved_tensors[0], vectors[0]), None

    @staticmethod
    def jvp(ctx: Any, *vectors: Tensor) -> Tensor:
        """The derivative is symmetric."""
        slope: Tensor = _Slope.apply(ctx.saved_tensors[0], vectors[0])  # type: ignore[no-untyped-call]
        return slope


class _Slope(torch.autograd.Function):
    """w∘(v - ⟨w, v⟩), a function of w and v, with a derivative of few passes."""

    @staticmethod
    def forward(weights: Tensor, vector: Tensor) -> Tensor:
        """The slope of the weights in the direction v of their logits."""
        return _times_derivative(weights, vector)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keeps w and v."""
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *vectors: Tensor) -> tuple[Tensor, Tensor]:
        """With u for what comes in: u∘(v - ⟨w, v⟩) - v·⟨w, u⟩ for w, and w∘(u - ⟨w, u⟩) for v."""
        weights, vector = ctx.saved_tensors
        of_weights = (vector - _means(weights, vector)).mul_(vectors[0])
        of_weights.addcmul_(vector, _means(weights, vectors[0]), value=-1)
        return of_weights, _times_derivative(weights, vectors[0])


def _times_derivative(weights: Tensor, vector: Tensor) -> Tensor:
    """w∘(v - ⟨w, v⟩), by torch's kernel of the softmax's backward pass."""
    product: Tensor = torch.ops.aten._softmax_backward_data(vector, weights, -1, weights.dtype)
    return product


def _means(weights: Tensor, vector: Tensor) -> Tensor:
    """⟨w, v⟩, `[..., 1]`."""
    return torch.einsum("...k,...k->...", weights, vector).unsqueeze(-1)
