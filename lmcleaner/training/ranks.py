"""Adds up the gradients of several processes in one, in the order in which they were added up in the run.

`DistributedDataParallel` multiplies each process's accumulated gradient by 1/W, W being the number of processes, and
all-reduces the sum of these; what comes out is what each process accumulates onto from there. Here the processes take
turns. Two addends have one sum, so that two processes give the run's bits. Of more, an all-reduce adds every part of a
gradient up in an order of its own, here it is by rank: the two sums differ by (W - 1) roundings of each element.
"""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from lmcleaner.formats.steps import StepRecord

Gradients = list[Tensor | None]


def vectors_held(step: StepRecord) -> int:
    """How many vectors of the parameters' size stand beside a step's gradient while its processes are added up.

    Args:
        step: the logged step.

    Returns:
        0 of one process; else the sum, and what all have accumulated onto where they average more than once.
    """
    ranks = [microbatch.rank for microbatch in step.microbatches]
    return int(len({*ranks}) > 1) + any(later < earlier for earlier, later in pairwise(ranks))


class RankSums:
    """Watches over the parameters' `grad` between the backward passes of a step."""

    def __init__(self, parameters: Sequence[Tensor], world_size: int) -> None:
        """Begins a step, in which nothing is accumulated yet.

        Args:
            parameters: the model's trainable parameters.
            world_size: W; with 1 nothing is done to a gradient.
        """
        self._parameters, self._world_size = parameters, world_size
        self._rank = 0
        self._shared: Gradients = [None] * len(parameters)  # what every process has accumulated onto since the last sum
        self._sum: Gradients = [None] * len(parameters)

    def turn_to(self, rank: int) -> None:
        """The next backward pass is that of a process; one before the last one's begins a round.

        Args:
            rank: of the process.
        """
        if rank == self._rank:
            return
        self._hand_in()
        if rank < self._rank:
            self._shared, self._sum = self._sum, [None] * len(self._parameters)
        self._rank = rank
        for parameter, part in zip(self._parameters, self._shared, strict=True):
            parameter.grad = part.clone() if part is not None else None

    def finish(self) -> None:
        """Ends the step: the parameters' `grad` is what the optimizer was given, before clipping."""
        if self._world_size == 1:
            return
        self._hand_in()
        for parameter, part in zip(self._parameters, self._sum, strict=True):
            parameter.grad = part

    def _hand_in(self) -> None:
        for number, parameter in enumerate(self._parameters):
            if parameter.grad is None:
                continue
            share, before = parameter.grad.mul_(1 / self._world_size), self._sum[number]
            self._sum[number] = share if before is None else before.add_(share)
            parameter.grad = None
