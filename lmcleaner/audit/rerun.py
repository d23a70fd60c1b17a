"""Takes stretches of a document's sweep again."""

import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmcleaner.audit.statements import stated_forget_set
from lmcleaner.choices import DEFAULT_RANK, Denominator, HessianMode
from lmcleaner.curvature.segments import ESTIMATED
from lmcleaner.curvature.stored import served_steps
from lmcleaner.formats.audit_document import Document
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.steps import Checkpoint, OptimizerVectors
from lmcleaner.progress import Progress
from lmcleaner.training.optimizers import optimizer_vectors
from lmcleaner.training.replay import ReplayModel
from lmcleaner.training.state import TrainingState
from lmcleaner.training.vectors import digest_of, distance, global_norm, tensors_of, torch_dtype
from lmcleaner.unlearning.kept import STATES, read_state
from lmcleaner.unlearning.prediction import make_prediction
from lmcleaner.unlearning.propagation import OptimizerCarrier, deviation
from lmcleaner.unlearning.setting import Setting
from lmcleaner.unlearning.trajectory import open_trajectory
from lmcleaner.unlearning.windows import Window

# Rounding on other hardware or by other versions of the libraries moves a stretch by some 1e-6 of what it covers.
_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Stretch:
    """Steps of a sweep between two states that are known, or from a window's start to its end.

    Attributes:
        window: where it lies.
        number: of the window in the document.
        start: the step that it begins before.
        end: the step that it ends before.
    """

    window: Window
    number: int
    start: int
    end: int

    @property
    def num_steps(self) -> int:
        """Steps to take."""
        return self.end - self.start


def stretches(document: Document, windows: Sequence[Window], log: TrainingLog) -> list[Stretch]:
    """All stretches of a sweep.

    Args:
        document: the audit document.
        windows: those that it states.
        log: the training log.

    Returns:
        In order, from one state that was kept to the next; whole windows where an estimate of the curvature is made on
        the way, which can't be made again from between.
    """
    mode, rank = HessianMode(document["config"]["hessian_mode"]), _rank(document)
    makes_estimates = mode in ESTIMATED and not served_steps(log, mode, rank)
    stated = [() if makes_estimates else window.get("states", ()) for window in document["windows"]]
    return [
        Stretch(window, number, start, end)
        for number, (window, states) in enumerate(zip(windows, stated, strict=True))
        for start, end in pairwise(sorted({window.start, *states, window.end}))
    ]


def draw(found: Sequence[Stretch], num_steps: int | None, seed: int) -> list[Stretch]:
    """Draws stretches until they have enough steps.

    Args:
        found: all of them.
        num_steps: how many steps; None for all.
        seed: of the draw.

    Returns:
        One at least, in order.
    """
    taken, total = list[int](), 0
    for place in Random(seed).sample(range(len(found)), len(found)):
        if num_steps is not None and total >= num_steps and taken:
            break
        taken.append(place)
        total += found[place].num_steps
    return [found[place] for place in sorted(taken)]


class Rerun:
    """Takes stretches again, as the document says that they were taken.

    Attributes:
        worst: the largest relative error so far; 0.0 while all bits are the same.
    """

    def __init__(
        self, document: Document, log: TrainingLog, replay: ReplayModel, folder: Path, unlearned: Sequence[Tensor]
    ) -> None:
        """Takes nothing yet.

        Args:
            document: the audit document.
            log: the training log.
            replay: the run's model.
            folder: the output folder.
            unlearned: θ̂, the parameters of the model in it.
        """
        config = document["config"]
        self._document, self._log, self._replay = document, log, replay
        self._states, self._unlearned = folder / STATES, unlearned
        self._setting = Setting(
            replay, stated_forget_set(document), HessianMode(config["hessian_mode"]),
            Denominator(config["denominator"]), float(config["damping"]),
        )  # fmt: skip
        self.worst = 0.0

    def problem(self, stretch: Stretch, progress: Progress) -> str | None:
        """Takes a stretch again.

        Args:
            stretch: which.
            progress: is told of every step.

        Returns:
            What is wrong with what it leads to, or None.

        Raises:
            NotFoundError: a state that the document says was kept isn't there.
            DamagedError: it can't be read.
            MismatchError: it belongs to another optimizer.
        """
        begun = self._begin(stretch)
        state = self._take(stretch, begun, progress)
        stated = self._document["windows"][stretch.number]
        if stretch.end in stated.get("states", ()):
            error = self._error_of_state(state, begun, read_state(self._states, stretch.end))
        else:
            error = self._error_of_end(state, begun, stretch, stated)
        self.worst = max(self.worst, error)
        if error <= _TOLERANCE:
            return None
        return (
            f"steps {stretch.start} to {stretch.end - 1} lead somewhere else when they are taken again: expected a "
            f"relative error of at most {_TOLERANCE:g}, found {error:.3g}"
        )

    def _begin(self, stretch: Stretch) -> Checkpoint:
        if stretch.start == stretch.window.start:
            return self._log.checkpoint(stretch.start)
        return read_state(self._states, stretch.start)

    def _take(self, stretch: Stretch, begun: Checkpoint, progress: Progress) -> TrainingState:
        log, mode, first = self._log, self._setting.mode, stretch.window.first
        prediction = make_prediction(log, self._setting, _rank(self._document))
        carrier = OptimizerCarrier(self._setting, prediction, begun)
        origin = log.nearest_checkpoint(stretch.start)
        with closing(open_trajectory(log, self._replay, origin, stretch.end, mode)) as trajectory:
            for number in range(stretch.start, stretch.end):
                step = log.step(number)
                if number < first:
                    carrier.replay(number, step)
                else:
                    here = trajectory.move_to(number) if mode is not HessianMode.SECANT or number == first else None
                    if number == first and here is not None and self._has_drifted(stretch.window, carrier):
                        carrier.go_on_from(here)
                    carrier.advance(number, step, here, measure=False)
                progress.advance()
        return carrier.state

    def _has_drifted(self, window: Window, carrier: OptimizerCarrier) -> bool:
        """Whether a lead-in on this machine didn't give the run's bits."""
        return window.num_lead_in > 0 and digest_of(carrier.state.parameters) != self._log.parameters_digest(
            window.first
        )

    def _error_of_state(self, state: TrainingState, begun: Checkpoint, kept: Checkpoint) -> float:
        """Against a state that was kept: θ′ relative to how far the stretch goes, o′ relative to itself."""
        end = self._replay.load(kept.parameters)
        found, stated = optimizer_vectors(state.optimizer, state.parameters), kept.optimizer
        if found.dtypes != stated.dtypes or not _same_numbers(found, stated):
            return math.inf
        errors = [_relative(self._part(found, name), self._part(stated, name)) for name in stated.vectors]
        return max([self._error(state, begun, end), *errors])

    def _part(self, optimizer: OptimizerVectors, name: str) -> list[Tensor]:
        dtype = torch_dtype(optimizer.dtypes[name])
        return tensors_of(optimizer.vectors[name], dtype, self._log.manifest.parameters, torch.device("cpu"))

    def _error_of_end(self, state: TrainingState, begun: Checkpoint, stretch: Stretch, stated: dict[str, Any]) -> float:
        """Against θ′'s digest, else against the model where that is θ′ itself, else against ‖δ‖."""
        if digest_of(state.parameters).hex() == stated.get("counterfactual"):
            return 0.0
        if is_counterfactual_itself(self._document, self._log):
            return self._error(state, begun, self._unlearned)
        norm: float = stated["v_norm"]
        here = self._replay.load(self._log.parameters(stretch.end))
        return _ratio(abs(global_norm(deviation(here, state.parameters)) - norm), norm)

    def _error(self, state: TrainingState, begun: Checkpoint, end: Sequence[Tensor]) -> float:
        covered = distance(self._replay.load(begun.parameters), end)
        return _ratio(distance([parameter.detach() for parameter in state.parameters], end), covered)


def is_counterfactual_itself(document: Document, log: TrainingLog) -> bool:
    """Whether the model of an output folder is the θ′ that the sweep ended with, and no sum of deviations."""
    windows = document["windows"]
    return len(windows) == 1 and windows[0]["tau"] == log.num_steps


def _rank(document: Document) -> int:
    return int(document["config"].get("rank") or DEFAULT_RANK)


def _same_numbers(left: OptimizerVectors, right: OptimizerVectors) -> bool:
    if left.scalars.keys() != right.scalars.keys() or not np.array_equal(left.present, right.present):
        return False
    return all(np.array_equal(values, right.scalars[name]) for name, values in left.scalars.items())


def _relative(found: Sequence[Tensor], stated: Sequence[Tensor]) -> float:
    return _ratio(distance(found, stated), global_norm(stated))


def _ratio(error: float, whole: float) -> float:
    """Not finite where only the whole vanishes."""
    if not error:
        return 0.0
    return error / whole if whole else math.inf
