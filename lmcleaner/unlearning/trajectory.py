"""θ[t] of the run as it was, moving forward through a window."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from lmcleaner.choices import HessianMode
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.reconstruction import Reconstruction
from lmcleaner.training.replay import ReplayModel
from lmcleaner.training.state import TrainingState
from lmcleaner.training.vectors import bits_in, tensors_of, torch_dtype


class Trajectory(ABC):
    """The run's parameters, one step after the other."""

    @abstractmethod
    def move_to(self, step: int) -> list[Tensor] | None:
        """θ[step], or None where it isn't known; steps must not go back. Valid until the next call."""


class ReadTrajectory(Trajectory):
    """θ from the recorded updates: known everywhere, one parameter vector in memory."""

    def __init__(self, log: TrainingLog, replay: ReplayModel, start: int) -> None:
        """Begins at the checkpoint of step `start`."""
        self._device = replay.device
        dtype, cpu = torch_dtype(log.manifest.model.dtype), torch.device("cpu")
        self._parameters = tensors_of(log.checkpoint_parameters(start), dtype, log.manifest.parameters, cpu)
        self._reconstruction = Reconstruction(log, start, parts=[bits_in(parameter) for parameter in self._parameters])

    def move_to(self, step: int) -> list[Tensor]:
        """θ[step]; applies the updates in between."""
        self._reconstruction.advance_to(step)
        return [parameter.to(self._device) for parameter in self._parameters]


class CheckpointTrajectory(Trajectory):
    """θ at checkpoints only: enough where nothing is linearized."""

    def __init__(self, log: TrainingLog, replay: ReplayModel) -> None:
        """Reads nothing yet."""
        self._log, self._replay = log, replay

    def move_to(self, step: int) -> list[Tensor] | None:
        """θ[step] if there is a checkpoint of that step."""
        if step not in self._log.checkpoint_steps:
            return None
        return self._replay.load(self._log.checkpoint_parameters(step))


class ReplayedTrajectory(Trajectory):
    """θ by replaying the run from a checkpoint: known everywhere, one more gradient a step."""

    def __init__(self, log: TrainingLog, replay: ReplayModel, start: int) -> None:
        """Begins at the checkpoint of step `start`."""
        self._log, self._replay, self._step = log, replay, start
        self._state = TrainingState(log.manifest, log.checkpoint(start), replay.device)

    def move_to(self, step: int) -> list[Tensor]:
        """θ[step]; replays the steps in between."""
        assert step >= self._step
        for between in range(self._step, step):
            record = self._log.step(between)
            self._state.apply(self._replay.gradient(record, self._state.parameters), record.lr)
        self._step = step
        return [parameter.detach() for parameter in self._state.parameters]


def open_trajectory(log: TrainingLog, replay: ReplayModel, start: int, mode: HessianMode) -> Trajectory:
    """The cheapest source of θ that a mode can work with.

    Args:
        log: the training log.
        replay: the run's model.
        start: checkpoint to begin at.
        mode: SECANT needs θ at the ends only, the others at every step.

    Returns:
        A trajectory at θ[start].
    """
    if log.has_updates:
        return ReadTrajectory(log, replay, start)
    if mode is HessianMode.SECANT:
        return CheckpointTrajectory(log, replay)
    return ReplayedTrajectory(log, replay, start)
