"""θ[t] of the run as it was, moving forward through a window."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from lmcleaner.choices import HessianMode
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.reconstruction import Reconstruction
from lmcleaner.training.recorded import RecordedGradients, exact_steps
from lmcleaner.training.replay import ReplayModel
from lmcleaner.training.state import TrainingState
from lmcleaner.training.vectors import bits_in, tensors_of, torch_dtype


class Trajectory(ABC):
    """The run's parameters, one step after the other."""

    @abstractmethod
    def move_to(self, step: int) -> list[Tensor] | None:
        """θ[step], or None where it isn't known; steps must not go back. Valid until the next call."""

    @abstractmethod
    def close(self) -> None:
        """Ends the reading ahead; must be called."""


class ReadTrajectory(Trajectory):
    """θ from checkpoints and recorded updates: known wherever they lead, one parameter vector in memory."""

    def __init__(
        self, log: TrainingLog, replay: ReplayModel, start: int, end: int, known: Sequence[Tensor] | None = None
    ) -> None:
        """Begins at step `start`, at a checkpoint unless θ[start] is `known`; reads ahead up to step `end`."""
        self._log, self._device, self._end = log, replay.device, end
        dtype, cpu = torch_dtype(log.manifest.model.dtype), torch.device("cpu")
        if known is None:
            self._parameters = tensors_of(log.checkpoint_parameters(start), dtype, log.manifest.parameters, cpu)
        else:
            self._parameters = [parameter.detach().to(cpu, copy=True) for parameter in known]
        self._parts = [bits_in(parameter) for parameter in self._parameters]
        self._reconstruction = Reconstruction(log, start, parts=self._parts, horizon=end)

    def move_to(self, step: int) -> list[Tensor] | None:
        """θ[step] if the log has it; applies the updates in between, or those since a checkpoint on the way."""
        start = self._log.nearest_checkpoint(step)
        is_cut_off = self._log.missing_update(self._reconstruction.step, step) is not None
        if is_cut_off or start - self._reconstruction.step > 1:
            if self._log.missing_update(start, step) is not None:
                return None
            self._begin_anew(start)
        self._reconstruction.advance_to(step)
        return [parameter.to(self._device) for parameter in self._parameters]

    def _begin_anew(self, start: int) -> None:
        """Goes to a checkpoint, in the memory that is there."""
        self.close()
        bits, position = self._log.checkpoint_parameters(start), 0
        for part in self._parts:
            part[:] = bits[position : position + len(part)]
            position += len(part)
        self._reconstruction = Reconstruction(self._log, start, parts=self._parts, horizon=self._end)

    def close(self) -> None:
        """See `Trajectory.close`."""
        self._reconstruction.close()


class ReplayedTrajectory(Trajectory):
    """θ read where the log has it, and replayed where it hasn't: known everywhere, one more gradient a step there.

    Where the log holds the gradients to the bit, no gradient need be computed for it.
    """

    def __init__(
        self, log: TrainingLog, replay: ReplayModel, start: int, end: int, known: Sequence[Tensor] | None = None
    ) -> None:
        """Begins at step `start`, at a checkpoint unless θ[start] is `known`; reads ahead up to step `end`."""
        self._log, self._replay = log, replay
        self._read = ReadTrajectory(log, replay, start, end, known)
        self._given = exact_steps(log)
        self._gradients = RecordedGradients(log, replay, self._given)
        self._state: TrainingState | None = None
        self._step = start

    def move_to(self, step: int) -> list[Tensor]:
        """θ[step]; replays the steps in between that can't be read."""
        read = self._read.move_to(step)
        if read is not None:
            self._state = None
            return read
        if self._state is None:
            self._step = self._log.nearest_checkpoint(step)
            self._state = self._replay.state(self._log.checkpoint(self._step))
        assert step >= self._step
        for between in range(self._step, step):
            record = self._log.step(between)
            if between in self._given:
                self._state.apply_given(self._gradients.given(between), record.lr)
            else:
                self._state.apply(self._replay.gradient(record, self._state.parameters), record.lr)
        self._step = step
        return [parameter.detach().to(self._replay.device) for parameter in self._state.parameters]

    def close(self) -> None:
        """See `Trajectory.close`."""
        self._read.close()


def open_trajectory(
    log: TrainingLog,
    replay: ReplayModel,
    start: int,
    end: int,
    mode: HessianMode,
    known: Sequence[Tensor] | None = None,
) -> Trajectory:
    """The cheapest source of θ that a mode can work with.

    Args:
        log: the training log.
        replay: the run's model.
        start: where to begin: a checkpoint, or a step that the log's updates lead to the bits of.
        end: the last step that may be asked for.
        mode: SECANT needs θ where δ is looked at only, the others at every step.
        known: θ[start]; None reads it from the checkpoint.

    Returns:
        A trajectory at θ[start].
    """
    is_needed_everywhere = mode is not HessianMode.SECANT
    return (ReplayedTrajectory if is_needed_everywhere else ReadTrajectory)(log, replay, start, end, known)
