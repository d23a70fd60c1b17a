"""Scaled dot product attention of operations that have derivatives of both kinds."""

from typing import Any

import torch
from torch import Tensor

from lmcleaner.curvature.constants import add, has_slope, multiply
from lmcleaner.curvature.softmax import masked_softmax


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`torch.nn.functional.scaled_dot_product_attention`, whose fused kernels have no second derivatives.

    Args:
        query: `[..., heads, q, d]`.
        key: `[..., heads, k, d]`, or with a divisor of those heads where `enable_gqa` is set.
        value: `[..., heads, k, e]`, likewise.
        attn_mask: bool, what takes part, or of the query's dtype, what is added; it broadcasts to `[..., heads, q, k]`.
        dropout_p: share of the weights that is dropped.
        is_causal: whether an entry sees those up to its own place only.
        scale: of the products; None is 1 / √d.
        enable_gqa: whether several heads share one of key and value.

    Returns:
        `[..., heads, q, e]`; zeros where nothing takes part.
    """
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], dim=-3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], dim=-3)
    scaled = multiply(query, query.shape[-1] ** -0.5 if scale is None else scale)
    scores: Tensor = _Products.apply(scaled, key)  # type: ignore[no-untyped-call]
    wide = scores.float() if scores.element_size() < 4 else scores
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None and (attn_mask.requires_grad or has_slope(attn_mask)):  # a learned bias of positions
        wide, attn_mask = add(wide, attn_mask), None
    mask = None if attn_mask is None else _to_add(attn_mask, wide.dtype)
    weights = masked_softmax(wide, mask).to(value.dtype)
    return torch.dropout(weights, dropout_p, True) @ value if dropout_p else weights @ value


def _to_add(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype is not torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -torch.inf)


class _Products(torch.autograd.Function):
    """q·kᵀ, whose forward derivative is one product of twice as many columns, instead of the sum of two."""

    @staticmethod
    def forward(query: Tensor, key: Tensor) -> Tensor:
        """`[..., q, k]`."""
        return query @ key.transpose(-2, -1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keeps q and k."""
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, *vectors: Tensor) -> tuple[Tensor, Tensor]:
        """The vector times k, and its transpose times q."""
        query, key = ctx.saved_tensors
        return vectors[0] @ key, vectors[0].transpose(-2, -1) @ query

    @staticmethod
    def jvp(ctx: Any, *vectors: Tensor) -> Tensor:
        """[q̇ q]·[k k̇]ᵀ; torch gives zeros for one that doesn't change."""
        query, key = ctx.saved_tensors
        return torch.cat([vectors[0], query], -1) @ torch.cat([key, vectors[1]], -1).transpose(-2, -1)
