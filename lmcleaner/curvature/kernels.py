"""Kernels that curvature can differentiate through, instead of those that it can't."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode


@contextmanager
def twice_differentiable(module: nn.Module) -> Iterator[None]:
    """Makes attention differentiable twice, backwards and forwards, inside the block.

    Fused attention kernels have neither a double backward nor a forward derivative. A transformers model computes with
    `eager` attention instead: torch's own unfused kernel masks with -inf, and the derivative of its softmax's forward
    derivative is not a number where a whole row is masked, as in padding. Other modules get the unfused kernel.

    Args:
        module: the model.

    Yields:
        Nothing.
    """
    before = getattr(getattr(module, "config", None), "_attn_implementation", None)
    choose = getattr(module, "set_attn_implementation", None) if before is not None else None
    try:
        if choose is not None:
            choose("eager")
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        if choose is not None:
            choose(before)


class ComposedLayerNorm(TorchFunctionMode):
    """Makes layer norms differentiable forwards and then backwards inside the block.

    The forward derivative of torch's fused kernel takes the mean and the deviation that the kernel saved for constants,
    so that its own derivative is silently wrong (pytorch/pytorch#196700, open in torch 2.13).
    """

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Calls the function, or its composed twin."""
        chosen = _layer_norm if function is nn.functional.layer_norm else function
        return chosen(*args, **(kwargs or {}))


def _layer_norm(
    input: Tensor,  # noqa: A002 -- torch's name
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """`torch.nn.functional.layer_norm` of plain operations; as there, statistics are taken in float32 at least."""
    wide = input.float() if input.element_size() < 4 else input
    axes = tuple(range(-len(normalized_shape), 0))
    centred = wide - wide.mean(axes, keepdim=True)
    scaled = centred * torch.rsqrt(centred.square().mean(axes, keepdim=True) + eps)
    scaled = scaled if weight is None else scaled * weight
    return (scaled if bias is None else scaled + bias).to(input.dtype)
