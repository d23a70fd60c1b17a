"""Attention kernels that curvature can differentiate through."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Makes attention differentiable twice, and forwards, inside the block.

    Fused attention kernels have neither a double backward nor a forward derivative; `eager` attention has both anyway.

    Yields:
        Nothing.
    """
    with sdpa_kernel(SDPBackend.MATH):
        yield
