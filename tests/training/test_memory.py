"""Peaks of memory as tensors come and go."""

import torch
from torch import Tensor
from torch.autograd import forward_ad

from lmcleaner.training.memory import peak_of

CPU = torch.device("cpu")
KILO = torch.ones(250)  # 1,000 bytes


def test_what_is_held_together_counts_together() -> None:
    assert peak_of(lambda: [KILO + 1, KILO + 2, KILO + 3], CPU) == 3000


def test_what_was_released_counts_no_more() -> None:
    def compute() -> None:
        for _ in range(5):
            _ = (KILO + 1).sum()

    assert 1000 <= peak_of(compute, CPU) < 3000


def test_views_writes_in_place_and_what_was_there_before_count_nothing() -> None:
    before = torch.ones(250)
    assert peak_of(lambda: before.view(25, 10).T.mul_(2).reshape(10, 25).add_(1), CPU) <= 1000
    assert peak_of(lambda: before.view(25, 10).T.mul_(2), CPU) == 0


def test_what_a_backward_pass_needs_counts_until_it_ran() -> None:
    weight = torch.ones(250, requires_grad=True)

    def forward() -> Tensor:
        return weight.exp().exp().exp().sum()

    forwards, both = peak_of(forward, CPU), peak_of(lambda: forward().backward(), CPU)
    assert forwards >= 3000  # each keeps its result
    assert forwards + 1000 <= both <= forwards + 3000
    assert weight.grad is not None


def test_forward_derivatives_are_counted() -> None:
    def compute() -> object:
        return torch.func.jvp(torch.exp, (KILO,), (KILO,))

    assert peak_of(compute, CPU) >= 2000


def test_shapes_without_contents_count_nothing() -> None:
    """As torch works out those of a product with something that has no derivative."""
    assert peak_of(lambda: KILO.to("meta") + 1, CPU) == 0
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(KILO, KILO)
        assert peak_of(lambda: dual * KILO, CPU) == 3000  # the product, its derivative, and the derivative's first term
