"""What stands in for torch's attention computes the same, and has both derivatives."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from lmcleaner.curvature.kernels import twice_differentiable

QUERIES, KEYS, SIZE = 4, 5, 3
SEEN = torch.rand(2, 1, QUERIES, KEYS, generator=torch.Generator().manual_seed(7)) < 0.6
SEEN[0, 0, 1], SEEN[0, 0, 0, 0] = False, True  # a row that sees nothing, as padding
BIAS = torch.randn(2, 2, QUERIES, KEYS, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "scaled": {"scale": 0.7},
    "causal": {"is_causal": True},
    "masked": {"attn_mask": SEEN},
    "masked by minus infinity": {"attn_mask": torch.zeros(SEEN.shape).double().masked_fill(~SEEN, -torch.inf)},
    "with a bias": {"attn_mask": BIAS},
    "with shared heads": {"enable_gqa": True, "attn_mask": SEEN},
}


def attend(*tensors: Tensor, **options: Any) -> Tensor:
    function: Callable[..., Tensor] = functional.scaled_dot_product_attention
    return function(*tensors, **options)


def parts(seed: int, *, shared: bool) -> list[Tensor]:
    """Query, key and value."""
    generator = torch.Generator().manual_seed(seed)
    heads, length = (2, 1 if shared else 2, 1 if shared else 2), (QUERIES, KEYS, KEYS)
    shapes = [(2, number, places, SIZE) for number, places in zip(heads, length, strict=True)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def value_of(options: dict[str, Any], *tensors: Tensor) -> Tensor:
    return attend(*tensors, **options).sin().sum()


def slope_at(function: Callable[..., Tensor], at: list[Tensor], direction: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The slope in a direction, and its gradient."""
    points = [tensor.clone().requires_grad_() for tensor in at]
    with forward_ad.dual_level(), twice_differentiable(nn.Linear(1, 1)):
        duals = [forward_ad.make_dual(point, step) for point, step in zip(points, direction, strict=True)]
        _, slope = forward_ad.unpack_dual(function(*duals))
        return slope.detach(), list(torch.autograd.grad(slope, points))


@pytest.mark.parametrize("case", CASES)
def test_values_slopes_and_second_derivatives_are_torchs(case: str) -> None:
    """Against central differences of gradients of torch's own attention."""
    options = CASES[case]
    shared = options.get("enable_gqa", False)
    at, direction = parts(0, shared=shared), parts(1, shared=shared)
    function = partial(value_of, options)
    with twice_differentiable(nn.Linear(1, 1)):
        own = attend(*at, **options)
    assert torch.allclose(own, attend(*at, **options), rtol=1e-12, atol=1e-14)

    def gradient(step: float) -> list[Tensor]:
        moved = [(a + step * d).requires_grad_() for a, d in zip(at, direction, strict=True)]
        return list(torch.autograd.grad(function(*moved), moved))

    slope, found = slope_at(function, at, direction)
    here, pairs = gradient(0.0), zip(gradient(1e-5), gradient(-1e-5), strict=True)
    expected = sum(((a * d).sum() for a, d in zip(here, direction, strict=True)), torch.zeros(()))
    assert torch.allclose(slope, expected.to(slope.dtype), rtol=1e-10)
    for part, (ahead, behind) in zip(found, pairs, strict=True):
        assert torch.allclose(part, (ahead - behind) / 2e-5, rtol=1e-6, atol=1e-8)


def test_a_learned_bias_has_derivatives_too() -> None:
    query, key, value = parts(0, shared=False)

    def function(bias: Tensor) -> Tensor:
        return value_of({"attn_mask": bias}, query, key, value)

    direction = torch.randn(BIAS.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    _, (found,) = slope_at(function, [BIAS], [direction])
    size = BIAS.numel()
    with sdpa_kernel(SDPBackend.MATH):
        hessian = torch.autograd.functional.hessian(function, BIAS.clone()).view(size, size)
    assert torch.allclose(found.view(size), hessian @ direction.view(size), rtol=1e-9, atol=1e-12)


def test_only_one_of_query_key_and_value_may_change() -> None:
    """As where an adapter trains but the queries' weights."""
    tensors, (direction, *_) = parts(0, shared=False), parts(1, shared=False)

    def function(query: Tensor) -> Tensor:
        return value_of({}, query, *tensors[1:])

    _, (found,) = slope_at(function, tensors[:1], [direction])
    size = direction.numel()
    with sdpa_kernel(SDPBackend.MATH):
        hessian = torch.autograd.functional.hessian(function, tensors[0]).view(size, size)
    assert torch.allclose(found.view(size), hessian @ direction.view(size), rtol=1e-9, atol=1e-12)


def test_it_drops_what_torchs_drops() -> None:
    tensors, options = parts(0, shared=False), {"dropout_p": 0.5}
    torch.manual_seed(3)
    with sdpa_kernel(SDPBackend.MATH):
        expected = attend(*tensors, **options)
    with twice_differentiable(nn.Linear(1, 1)):
        torch.manual_seed(3)
        own = attend(*tensors, **options)
    assert torch.allclose(own, expected, rtol=1e-12)


def test_halves_are_weighed_in_float32() -> None:
    tensors = [tensor.bfloat16() for tensor in parts(0, shared=False)]
    with twice_differentiable(nn.Linear(1, 1)):
        own = attend(*tensors)
    assert own.dtype == torch.bfloat16
    assert torch.allclose(own, attend(*tensors), atol=1e-2, rtol=1e-2)
