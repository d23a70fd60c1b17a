"""Gradients of several processes are added up as DistributedDataParallel does."""

import pytest
import torch

from lmcleaner.training.ranks import RankSums


def summed(rounds: list[list[list[float]]], world_size: int) -> torch.Tensor:
    """By the class: round -> rank -> numbers whose gradients one process accumulates."""
    parameter = torch.zeros(1, requires_grad=True)
    sums = RankSums([parameter], world_size)
    for ranks in rounds:
        for rank, numbers in enumerate(ranks):
            for number in numbers:
                sums.turn_to(rank)
                (parameter * number).sum().backward()
    sums.finish()
    assert parameter.grad is not None
    return parameter.grad


def by_hand(rounds: list[list[list[float]]], world_size: int) -> torch.Tensor:
    shared = torch.zeros(1)
    for ranks in rounds:
        parts = []
        for numbers in ranks:
            own = shared.clone()
            for number in numbers:
                own = own + torch.tensor([number])
            parts.append(own * (1 / world_size))
        shared = parts[0]
        for part in parts[1:]:
            shared = shared + part
    return shared


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("num_rounds", [1, 3])
def test_each_round_is_the_mean_of_what_the_processes_accumulated(world_size: int, num_rounds: int) -> None:
    numbers = torch.randn(num_rounds, world_size, 2, generator=torch.Generator().manual_seed(0)).tolist()
    assert torch.equal(summed(numbers, world_size), by_hand(numbers, world_size))


def test_a_parameter_that_only_one_process_reaches_gets_its_share() -> None:
    reached, other, nobody = (torch.zeros(1, requires_grad=True) for _ in range(3))
    sums = RankSums([reached, other, nobody], 2)
    for rank, parameter in enumerate((reached, other)):
        sums.turn_to(rank)
        (parameter * 3).sum().backward()
    sums.finish()
    assert [reached.grad, other.grad, nobody.grad] == [torch.tensor([1.5]), torch.tensor([1.5]), None]
