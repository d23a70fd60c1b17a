"""What stands in for kernels that can't be differentiated twice computes the same, and can be."""

import pytest
import torch
from torch import Tensor, nn

from lmcleaner.curvature.kernels import ComposedLayerNorm


def _norm(size: int, *, affine: bool) -> nn.LayerNorm:
    norm = nn.LayerNorm(size, eps=0.1, elementwise_affine=affine, dtype=torch.float64)
    for parameter in norm.parameters():
        nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    return norm


def _values(seed: int) -> Tensor:
    return torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("affine", [True, False])
def test_a_composed_layer_norm_is_the_fused_one(affine: bool) -> None:
    norm, values = _norm(6, affine=affine), _values(0)
    with ComposedLayerNorm():
        composed = norm(values)
    assert torch.allclose(composed, norm(values), rtol=1e-12)


def test_a_composed_layer_norm_takes_the_statistics_of_halves_in_float32() -> None:
    norm, values = _norm(6, affine=True).bfloat16(), _values(0).bfloat16()
    with ComposedLayerNorm():
        composed = norm(values)
    assert composed.dtype == torch.bfloat16
    assert torch.allclose(composed, norm(values), atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("affine", [True, False])
def test_the_derivative_of_its_forward_derivative_is_right(affine: bool) -> None:
    """Against two backward passes, which torch's fused kernel has right."""
    norm, values, direction = _norm(6, affine=affine), _values(0).requires_grad_(), _values(1)

    def loss(values: Tensor) -> Tensor:
        result: Tensor = norm(values).sin().sum()
        return result

    (gradient,) = torch.autograd.grad(loss(values), values, create_graph=True)
    (expected,) = torch.autograd.grad((gradient * direction).sum(), values)
    with ComposedLayerNorm():
        _, slope = torch.func.jvp(loss, (values,), (direction,))  # type: ignore[misc]
        (found,) = torch.autograd.grad(slope, values)
    assert torch.allclose(found, expected, rtol=1e-10)
