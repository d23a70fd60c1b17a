"""The modes by name, and the kernels that they can differentiate through."""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum

from torch.nn.attention import SDPBackend, sdpa_kernel


class HessianMode(StrEnum):
    """How the sweep finds the gradient of the retained rows at θ′."""

    SECANT = "secant"
    EXACT = "exact"
    GGN = "GGN"


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Makes attention differentiable twice, and forwards, inside the block.

    Fused attention kernels have neither a double backward nor a forward derivative; `eager` attention has both anyway.

    Yields:
        Nothing.
    """
    with sdpa_kernel(SDPBackend.MATH):
        yield
