"""Attention kernels that curvature can differentiate through."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel


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
