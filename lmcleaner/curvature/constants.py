"""Products and sums with constants inside a forward derivative.

torch gives an operand without a derivative one of zeros, and works out in Python what shape those would have: for a
small model that takes a sixth of a Hessian product. Rotary embeddings and plain numbers are such operands, in every
layer.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def multiply(left: Any, right: Any, **options: Any) -> Tensor:
    """`torch.mul`."""
    pair = _derived_and_constant(left, right) if not options else None
    product: Tensor = torch.mul(left, right, **options) if pair is None else _Scale.apply(*pair)  # type: ignore[no-untyped-call]
    return product


def add(left: Any, right: Any, **options: Any) -> Tensor:
    """`torch.add`."""
    pair = _derived_and_constant(left, right) if not options else None
    total: Tensor = torch.add(left, right, **options) if pair is None else _Shift.apply(*pair)  # type: ignore[no-untyped-call]
    return total


def has_slope(operand: Any) -> bool:
    """Whether an operand is a tensor with a forward derivative."""
    return isinstance(operand, Tensor) and forward_ad.unpack_dual(operand).tangent is not None


def _derived_and_constant(left: Any, right: Any) -> tuple[Tensor, Tensor] | None:
    """The operand with a forward derivative and that without any, or None where they aren't one each."""
    is_derived = [has_slope(operand) for operand in (left, right)]
    if all(is_derived) or not any(is_derived):
        return None
    derived, constant = (left, right) if is_derived[0] else (right, left)
    if isinstance(constant, Tensor):
        return None if constant.requires_grad else (derived, constant)
    is_plain = isinstance(constant, int | float) and derived.dim() > 0  # of which a number doesn't change the dtype
    return (derived, torch.tensor(constant, dtype=torch.float64)) if is_plain else None


class _Scale(torch.autograd.Function):
    """x·c."""

    @staticmethod
    def forward(x: Tensor, constant: Tensor) -> Tensor:
        """The product."""
        return x * constant

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keeps c."""
        ctx.x = inputs[0].shape, inputs[0].dtype
        ctx.save_for_backward(inputs[1])
        ctx.save_for_forward(inputs[1])

    @staticmethod
    def backward(ctx: Any, *vectors: Tensor) -> tuple[Tensor, None]:
        """The vector times c."""
        return _as_before(vectors[0] * ctx.saved_tensors[0], *ctx.x), None

    @staticmethod
    def jvp(ctx: Any, *vectors: Tensor) -> Tensor:
        """The vector times c."""
        (constant,) = ctx.saved_tensors
        return vectors[0].mul(constant)


class _Shift(torch.autograd.Function):
    """x + c."""

    @staticmethod
    def forward(x: Tensor, constant: Tensor) -> Tensor:
        """The sum."""
        return x + constant

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keeps shapes."""
        ctx.x = inputs[0].shape, inputs[0].dtype
        ctx.sum = output.shape, output.dtype

    @staticmethod
    def backward(ctx: Any, *vectors: Tensor) -> tuple[Tensor, None]:
        """The vector, summed over what was broadcast."""
        return _as_before(vectors[0], *ctx.x), None

    @staticmethod
    def jvp(ctx: Any, *vectors: Tensor) -> Tensor:
        """The vector itself, in memory of its own."""
        shape, dtype = ctx.sum
        return vectors[0].expand(shape).to(dtype, copy=True)


def _as_before(vector: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    return vector.sum_to_size(shape).to(dtype)
