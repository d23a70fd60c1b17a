"""What stands in for torch's kernels inside `twice_differentiable` computes the same, and has both derivatives."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional

from lmcleaner.curvature.kernels import twice_differentiable
from lmcleaner.formats.errors import UsageError

LABELS = torch.tensor([2, -100, 0, 4, -100])
FACTORS = torch.linspace(-1, 2, 30, dtype=torch.float64).view(5, 6)


def logits() -> Tensor:
    return torch.randn(5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()


def soft(x: Tensor) -> Tensor:
    return functional.softmax(x, dim=-1, dtype=torch.float64).square().sum()


def summed(x: Tensor) -> Tensor:
    return functional.cross_entropy(x, LABELS, reduction="sum")


def averaged(x: Tensor) -> Tensor:
    return functional.cross_entropy(x, LABELS, ignore_index=-100)


def weighted(x: Tensor) -> Tensor:
    return functional.cross_entropy(x, LABELS, weight=torch.arange(1.0, 7.0, dtype=torch.float64))


def smoothed(x: Tensor) -> Tensor:
    return functional.cross_entropy(x, LABELS, label_smoothing=0.1)


def downwards(x: Tensor) -> Tensor:
    return functional.softmax(x, dim=0).square().sum() + torch.softmax(x, 0).pow(3).sum() + x.softmax(0).sin().sum()


def log_soft(x: Tensor) -> Tensor:
    logs = functional.log_softmax(x, 1), torch.log_softmax(x, dim=0), x.log_softmax(-1)
    return sum((log.square().sum() for log in logs), torch.zeros(()))


def log_sums(x: Tensor) -> Tensor:
    masked = x.masked_fill(FACTORS < 0.5, -torch.inf)[2:]
    return x.logsumexp(0).square().sum() + torch.logsumexp(masked, (0, 1), keepdim=True).square().sum()


def scaled(x: Tensor) -> Tensor:
    return (FACTORS * x).pow(3).sum() + (x * FACTORS[:1]).pow(3).sum()


def scaled_when_broadcast(x: Tensor) -> Tensor:
    return (x[:, :1] * FACTORS).pow(3).sum() + torch.mul(x[0], FACTORS.float()).pow(3).sum()


def shifted(x: Tensor) -> Tensor:
    return (FACTORS + x).pow(3).sum() + (x + FACTORS[:, :1]).pow(3).sum()


def shifted_when_broadcast(x: Tensor) -> Tensor:
    return x[:1].add(FACTORS).pow(3).sum() + torch.add(x, FACTORS, alpha=2).pow(3).sum()


def with_numbers(x: Tensor) -> Tensor:
    return (2 * x * 0.5 + 1).add(3).pow(3).sum() + x.sum() * 2 + 1


@pytest.mark.parametrize(
    "function",
    [
        soft, summed, averaged, weighted, smoothed, downwards, log_soft, log_sums, scaled, scaled_when_broadcast,
        shifted, shifted_when_broadcast, with_numbers,
    ],
)  # fmt: skip
def test_values_gradients_and_slopes_are_torchs(function: Callable[[Tensor], Tensor]) -> None:
    direction = torch.randn(5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = logits()
    expected = function(x)
    (gradient,) = torch.autograd.grad(expected, x)
    with forward_ad.dual_level(), twice_differentiable(nn.Linear(1, 1)):
        value, slope = forward_ad.unpack_dual(function(forward_ad.make_dual(x, direction)))
        (found,) = torch.autograd.grad(value, x, retain_graph=True)
    assert torch.allclose(value, expected, rtol=1e-12)
    assert torch.allclose(found, gradient, rtol=1e-10, atol=1e-12)
    assert torch.allclose(slope, (gradient * direction).sum(), rtol=1e-10)


@pytest.mark.parametrize(
    "function",
    [
        soft, summed, averaged, downwards, log_soft, log_sums, scaled, scaled_when_broadcast, shifted,
        shifted_when_broadcast, with_numbers,
    ],
)  # fmt: skip
def test_the_gradient_of_the_slope_is_the_hessian_times_the_direction(function: Callable[[Tensor], Tensor]) -> None:
    direction = torch.randn(5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = logits()
    expected = (torch.autograd.functional.hessian(function, x).view(30, 30) @ direction.view(30)).view(5, 6)
    with forward_ad.dual_level(), twice_differentiable(nn.Linear(1, 1)):
        _, slope = forward_ad.unpack_dual(function(forward_ad.make_dual(x, direction)))
        (found,) = torch.autograd.grad(slope, x)
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_only_a_missing_derivative_is_the_models_fault() -> None:
    """The kernel is torch's fused attention, called where nothing of ours can stand for it."""
    x = torch.randn(1, 1, 2, 8, requires_grad=True)
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    (gradient,) = torch.autograd.grad(attend(x, x, x)[0].sum(), x, create_graph=True)
    with pytest.raises(UsageError, match="Linear: derivative for aten::"), twice_differentiable(nn.Linear(1, 1)):
        torch.autograd.grad(gradient.sum(), x)
    with pytest.raises(RuntimeError, match="size of tensor"), twice_differentiable(nn.Linear(1, 1)):
        _ = torch.ones(2) - torch.ones(3)


def test_a_label_that_is_counted_nowhere_gives_no_loss() -> None:
    with twice_differentiable(nn.Linear(1, 1)):
        assert functional.cross_entropy(logits(), torch.full((5,), -100), reduction="sum").item() == 0


def norm_of(size: int, *, affine: bool) -> nn.LayerNorm:
    norm = nn.LayerNorm(size, eps=0.1, elementwise_affine=affine, dtype=torch.float64)
    for parameter in norm.parameters():
        nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    return norm


def values_of(seed: int) -> Tensor:
    return torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("affine", [True, False])
def test_a_composed_layer_norm_is_the_fused_one(affine: bool) -> None:
    norm, values = norm_of(6, affine=affine), values_of(0)
    with twice_differentiable(nn.Linear(1, 1)):
        composed = norm(values)
    assert torch.allclose(composed, norm(values), rtol=1e-12)


def test_a_composed_layer_norm_takes_the_statistics_of_halves_in_float32() -> None:
    norm, values = norm_of(6, affine=True).bfloat16(), values_of(0).bfloat16()
    with twice_differentiable(nn.Linear(1, 1)):
        composed = norm(values)
    assert composed.dtype == torch.bfloat16
    assert torch.allclose(composed, norm(values), atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("affine", [True, False])
def test_the_derivative_of_its_forward_derivative_is_right(affine: bool) -> None:
    """Against two backward passes, which torch's fused kernel has right."""
    norm, values, direction = norm_of(6, affine=affine), values_of(0).requires_grad_(), values_of(1)

    def loss(values: Tensor) -> Tensor:
        result: Tensor = norm(values).sin().sum()
        return result

    (gradient,) = torch.autograd.grad(loss(values), values, create_graph=True)
    (expected,) = torch.autograd.grad((gradient * direction).sum(), values)
    with forward_ad.dual_level(), twice_differentiable(nn.Linear(1, 1)):
        _, slope = forward_ad.unpack_dual(loss(forward_ad.make_dual(values, direction)))
        (found,) = torch.autograd.grad(slope, values)
    assert torch.allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize("function", [torch.mul, torch.add])
def test_a_constant_of_a_wider_dtype_widens(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    x = logits().detach().float().requires_grad_()
    with forward_ad.dual_level(), twice_differentiable(nn.Linear(1, 1)):
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        value, slope = forward_ad.unpack_dual(function(dual, FACTORS))
    assert value.dtype == slope.dtype == torch.float64
    (gradient,) = torch.autograd.grad(slope.sum() + value.sum(), x)
    assert gradient.dtype == torch.float32
    assert torch.allclose(gradient, FACTORS.float() if function is torch.mul else torch.ones_like(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_number_keeps_the_dtype_and_says_no_less_than_it_is(dtype: torch.dtype) -> None:
    x = logits().detach().to(dtype)
    with forward_ad.dual_level(), twice_differentiable(nn.Linear(1, 1)):
        value, slope = forward_ad.unpack_dual(forward_ad.make_dual(x, x.flip(0)) * 0.3 + 1e-3)
    assert value.dtype == slope.dtype == dtype
    assert torch.equal(value, x * 0.3 + 1e-3)
    assert torch.equal(slope, x.flip(0) * 0.3)


def test_operands_that_both_change_are_torchs_own() -> None:
    x = logits()
    with forward_ad.dual_level(), twice_differentiable(nn.Linear(1, 1)):
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        _, slope = forward_ad.unpack_dual(dual * dual + dual * 2)
        constant = forward_ad.unpack_dual(x.detach() * FACTORS).tangent
        _, of_both = forward_ad.unpack_dual(dual * x)  # x has a gradient, though no derivative in this direction
        (gradient,) = torch.autograd.grad(of_both.sum(), x)
    assert torch.allclose(slope, 2 * x + 2)
    assert constant is None
    assert torch.equal(gradient, torch.ones_like(x))
