"""The processes of a data-parallel run: each sees its own microbatches, and the first writes what all of them did.

They hand their microbatches over when the optimizer takes a step, through a group of their own, so that the collective
calls of the training stay in its order. Parameters are the same in all of them, and are written once.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lmcleaner.formats.bits import Bits
from lmcleaner.formats.errors import UsageError
from lmcleaner.formats.steps import Checkpoint, MicrobatchRecord, StepRecord
from lmcleaner.formats.wording import counted

Value = TypeVar("Value")


class Processes:
    """Those that train together, seen from one of them; every one must make and ask its own at the same time.

    Attributes:
        rank: of this process, from 0.
        world_size: how many they are; 1 in a training that isn't distributed.
    """

    def __init__(self, module: nn.Module, wrappers: Iterable[nn.Module]) -> None:
        """Finds out who trains together.

        Args:
            module: the model that is recorded.
            wrappers: modules that may be the `DistributedDataParallel` around it.

        Raises:
            UsageError: there are several processes, and it isn't known that they average the model's gradients.
        """
        self.rank, self.world_size = 0, dist.get_world_size() if _is_distributed() else 1
        self._wrapper = wrapper_of(module, wrappers)
        if self.world_size == 1:
            return
        if self._wrapper is None or self._wrapper.process_group.size() != self.world_size:
            raise UsageError(
                f"{counted(self.world_size, 'process')}, but no DistributedDataParallel of all of them around "
                f"the {type(module).__name__}: how they share the training isn't known",
                hint="DistributedDataParallel is recorded; FSDP, DeepSpeed, tensor and pipeline parallel aren't",
            )
        self.rank, self._group = dist.get_rank(), dist.new_group(backend="gloo")

    @property
    def is_first(self) -> bool:
        """Whether this process writes the log."""
        return self.rank == 0

    @property
    def is_wrapped(self) -> bool:
        """Whether a `DistributedDataParallel` puts the gradients in their place, even if only one process trains."""
        return self._wrapper is not None

    @property
    def averages(self) -> bool:
        """Whether the gradients of a forward pass that runs now will be averaged over the processes."""
        return self._wrapper is None or averages(self._wrapper)

    def first_said(self, value: Value | None) -> Value | None:
        """What the first process that knows it says.

        Args:
            value: what this one knows, or None.

        Returns:
            The same in all of them.
        """
        if self.world_size == 1:
            return value
        said: list[Value | None] = [None] * self.world_size
        dist.all_gather_object(said, value, group=self._group)
        return next((known for known in said if known is not None), None)

    def gather(
        self, own: Sequence[MicrobatchRecord], averaged: Sequence[bool], step: int
    ) -> tuple[MicrobatchRecord, ...]:
        """The microbatches of a step from all processes.

        Args:
            own: those of this process, in order.
            averaged: for each of them whether its backward pass ended by averaging the gradients.
            step: number of the step, for messages.

        Returns:
            Round by round, a round ending where gradients are averaged, and within it by rank; in another process than
            the first only its own.

        Raises:
            UsageError: the gradients that the optimizer is about to use were not averaged.
        """
        if self.world_size == 1:
            return tuple(own)
        if not averaged[-1] or self._has_uneven_inputs():
            raise UsageError(
                f"the processes don't take a step together: step {step}: expected averaged gradients, found a last "
                "microbatch within no_sync(), or processes that join() after fewer steps"
            )
        rounds: list[list[MicrobatchRecord]] = [[]]
        for microbatch, is_last in zip(own, averaged, strict=True):
            rounds[-1].append(replace(microbatch, rank=self.rank))
            if is_last:
                rounds.append([])
        everyone: list[Any] | None = [None] * self.world_size if self.is_first else None
        dist.gather_object(rounds[:-1], everyone, dst=0, group=self._group)
        parts = everyone if everyone is not None else [rounds[:-1]]
        return tuple(record for ranks in zip(*parts, strict=True) for records in ranks for record in records)

    def _has_uneven_inputs(self) -> bool:
        """Whether the training is within `join()`, which torch tells nowhere but in a private attribute.

        Raises:
            UsageError: this version of torch hasn't the attribute, so that nobody knows.
        """
        config = getattr(self._wrapper, "_join_config", None)
        if config is None or not hasattr(config, "enable"):
            raise UsageError(
                f"torch {torch.__version__} doesn't tell whether the processes join() with uneven inputs",
                hint="record several processes with the version of torch that constraints.txt names",
            )
        return bool(config.enable)


class NoWriter:
    """Stands for the writer in the processes that don't write; see `BackgroundWriter`."""

    def __init__(self, spare: Bits) -> None:
        """Keeps the one vector that is filled in vain."""
        self._spare = spare

    def take(self) -> Bits:
        """The vector."""
        return self._spare

    def wait(self) -> None:
        """Nothing stands in line."""

    def append(self, step: StepRecord, parameters: Bits, gradient: Bits | None = None) -> None:
        """Another process writes it."""

    def write_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Another process writes it."""

    def close(self, *, finished: bool) -> None:
        """Another process does."""


def wrapper_of(module: nn.Module, wrappers: Iterable[nn.Module]) -> DistributedDataParallel | None:
    """The `DistributedDataParallel` among some modules that a module lies in, if there is one."""
    for wrapper in wrappers:
        if isinstance(wrapper, DistributedDataParallel) and any(inner is module for inner in wrapper.modules()):
            return wrapper
    return None


def averages(wrapper: DistributedDataParallel) -> bool:
    """Whether it averages the gradients of a forward pass that runs now, as it does outside of `no_sync`."""
    return bool(wrapper.require_backward_grad_sync)


def check_whole(module: nn.Module) -> None:
    """Makes sure that this process holds the module's parameters as they are.

    Args:
        module: the model, or what is around it.

    Raises:
        UsageError: they are shared out over processes.
    """
    if not _is_distributed():
        return
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel  # 0.6 s that only these runs take
    from torch.distributed.tensor import DTensor

    is_sharded = isinstance(module, FSDPModule | FullyShardedDataParallel)
    if is_sharded or any(isinstance(parameter, DTensor) for parameter in module.parameters(recurse=False)):
        raise UsageError(
            f"the parameters of the {type(module).__name__} are shared out over processes: FSDP and tensor parallel "
            "aren't recorded",
            hint="DistributedDataParallel is",
        )


def _is_distributed() -> bool:
    return torch.distributed.is_available() and dist.is_initialized()
