"""How a linearized mode finds the gradient at θ′ from what it knows at θ."""

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence

import torch
from torch import Tensor

from lmcleaner.choices import HessianMode
from lmcleaner.curvature.estimates import Estimate
from lmcleaner.curvature.linearized import OPERATORS, curvature_product, predicted_gradient
from lmcleaner.curvature.segments import estimate_segment
from lmcleaner.curvature.stored import load_estimate
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.steps import StepRecord
from lmcleaner.training.recorded import RecordedGradients
from lmcleaner.training.state import Gradient
from lmcleaner.unlearning.recorded import find_recorded
from lmcleaner.unlearning.setting import Setting


class Prediction(ABC):
    """A gradient at θ′ = θ - δ that is g(θ) - (C + λI)·δ, whatever C is."""

    @abstractmethod
    def gradient(
        self, number: int, step: StepRecord, parameters: Sequence[Tensor], deviation: Sequence[Tensor]
    ) -> Gradient:
        """The retained rows' gradient at θ′.

        Args:
            number: t.
            step: the logged step.
            parameters: θ[t].
            deviation: δ[t].

        Returns:
            Before clipping, in the order of the manifest.
        """

    @abstractmethod
    def product(
        self, number: int, step: StepRecord, parameters: Sequence[Tensor], vector: Sequence[Tensor]
    ) -> list[Tensor]:
        """(C + λI)·v at θ[t]; arguments as in `gradient`."""

    def given(self, number: int) -> Gradient | None:
        """What the run's optimizer was given at step t, if no forgotten row is in it; None where rows must tell."""
        return None

    @property
    def captured(self) -> float | None:
        """The least share of a matrix's trace that the estimates so far hold; None where that says nothing."""
        return None


class RowPrediction(Prediction):
    """C is the step's own curvature, from the retained rows."""

    def __init__(self, setting: Setting) -> None:
        """Keeps what every step needs."""
        self._setting = setting

    def gradient(
        self, number: int, step: StepRecord, parameters: Sequence[Tensor], deviation: Sequence[Tensor]
    ) -> Gradient:
        """One gradient and one product; see `predicted_gradient`."""
        setting = self._setting
        setting.spent.gradients += 1
        setting.spent.products += 1
        return predicted_gradient(
            setting.replay, setting.mode, step, parameters, deviation, setting.damping, setting.forget_set.masked,
            setting.denominator,
        )  # fmt: skip

    def product(
        self, number: int, step: StepRecord, parameters: Sequence[Tensor], vector: Sequence[Tensor]
    ) -> list[Tensor]:
        """One product; see `curvature_product`."""
        return _product(self._setting, self._setting.mode, step, parameters, vector, self._setting.damping)


class WrittenPrediction(Prediction):
    """C is written down; where the log holds what it takes, no row is read in a step without a forgotten one."""

    def __init__(self, log: TrainingLog, setting: Setting, rank: int) -> None:
        """Reads and estimates nothing yet.

        Args:
            log: the training log.
            setting: what every step needs.
            rank: eigenpairs of LOW_RANK.
        """
        self._log, self._setting, self._rank = log, setting, rank
        self._recorded = find_recorded(log, setting.forget_set, setting.mode, rank)
        self._gradients = RecordedGradients(log, setting.replay, self._recorded.gradients | self._recorded.given)

    def given(self, number: int) -> Gradient | None:
        """From the log where it is the run's to the bit; see `Prediction.given`."""
        return self._gradients.given(number) if number in self._recorded.given else None

    def _gradient(self, number: int, step: StepRecord, parameters: Sequence[Tensor]) -> Gradient:
        """The retained rows' gradient at θ[t], from the log where it has it."""
        if number in self._recorded.gradients:
            return self._gradients.unclipped(number)
        return self._setting.gradient(step, parameters)


class SegmentPrediction(WrittenPrediction):
    """C is an estimate that serves until the next checkpoint: a recorded one, or one made where a sweep enters."""

    _end = -1  # of the segment that the estimate is for
    _estimate: Estimate | None = None
    _captured: float | None = None

    @property
    def captured(self) -> float | None:
        """See `Prediction.captured`."""
        return self._captured

    def gradient(
        self, number: int, step: StepRecord, parameters: Sequence[Tensor], deviation: Sequence[Tensor]
    ) -> Gradient:
        """One gradient at most, and the products of an estimate at the first step of a segment."""
        product = self.product(number, step, parameters, deviation)
        return _difference(self._gradient(number, step, parameters), product)

    def product(
        self, number: int, step: StepRecord, parameters: Sequence[Tensor], vector: Sequence[Tensor]
    ) -> list[Tensor]:
        """No product of its own but those of an estimate at the first step of a segment."""
        if self._estimate is None or number >= self._end:
            self._estimate = None  # before the next one is there
            self._estimate = self._enter(number, parameters)
            shares = [share for share in (self._captured, self._estimate.captured) if share is not None]
            self._captured = min(shares, default=None)
        return _damped(self._estimate @ vector, vector, self._setting.damping)

    def _enter(self, number: int, parameters: Sequence[Tensor]) -> Estimate:
        """The recorded estimate, or one from what is left of the segment."""
        log, setting, starts = self._log, self._setting, self._recorded.curvature
        ends = [*(starts or log.checkpoint_steps), log.num_steps]
        self._end = ends[bisect_right(ends, number)]
        if starts:
            start = starts[bisect_right(starts, number) - 1]
            return load_estimate(log, start, self._rank, setting.replay.device)

        def product(mode: HessianMode, step: StepRecord, vector: Sequence[Tensor]) -> list[Tensor]:
            return _product(setting, mode, step, parameters, vector, 0.0)

        return estimate_segment(log, setting.mode, number, self._end, parameters, self._rank, product)


class FisherPrediction(WrittenPrediction):
    """C is g·gᵀ, the rank-1 form of the paper's Algorithm 1, with the step's gradient g before clipping."""

    def gradient(
        self, number: int, step: StepRecord, parameters: Sequence[Tensor], deviation: Sequence[Tensor]
    ) -> Gradient:
        """One gradient at most."""
        gradient = self._gradient(number, step, parameters)
        return _difference(gradient, _damped(fisher_product(gradient, deviation), deviation, self._setting.damping))

    def product(
        self, number: int, step: StepRecord, parameters: Sequence[Tensor], vector: Sequence[Tensor]
    ) -> list[Tensor]:
        """One gradient at most."""
        return _damped(fisher_product(self._gradient(number, step, parameters), vector), vector, self._setting.damping)


def fisher_product(gradient: Gradient, vector: Sequence[Tensor]) -> list[Tensor]:
    """g·(gᵀ·v).

    Args:
        gradient: g, one tensor for each parameter, or None.
        vector: v, one tensor for each parameter.

    Returns:
        The product; zeros where there is no gradient.
    """
    pairs = [(g, part) for g, part in zip(gradient, vector, strict=True) if g is not None]
    slope = sum(float(torch.sum(g * part, dtype=torch.float64)) for g, part in pairs)
    return [torch.zeros_like(v) if g is None else g * slope for g, v in zip(gradient, vector, strict=True)]


def make_prediction(log: TrainingLog, setting: Setting, rank: int) -> Prediction:
    """The prediction of a mode.

    Args:
        log: the training log.
        setting: what every step needs, the mode among it.
        rank: eigenpairs of LOW_RANK.

    Returns:
        A prediction that has estimated nothing yet.
    """
    if setting.mode in {*OPERATORS, HessianMode.SECANT}:  # which never asks for one
        return RowPrediction(setting)
    if setting.mode is HessianMode.FISHER:
        return FisherPrediction(log, setting, rank)
    return SegmentPrediction(log, setting, rank)


def _product(
    setting: Setting,
    mode: HessianMode,
    step: StepRecord,
    parameters: Sequence[Tensor],
    vector: Sequence[Tensor],
    damping: float,
) -> list[Tensor]:
    setting.spent.products += 1
    masked = setting.forget_set.masked
    return curvature_product(setting.replay, mode, step, parameters, vector, damping, masked, setting.denominator)


def _damped(product: list[Tensor], vector: Sequence[Tensor], damping: float) -> list[Tensor]:
    if damping:
        for part, direction in zip(product, vector, strict=True):
            part.add_(direction, alpha=damping)
    return product


def _difference(gradient: Gradient, product: Sequence[Tensor]) -> Gradient:
    """In the gradient's memory; a parameter that the loss doesn't reach at θ has none at θ′ either."""
    for part, change in zip(gradient, product, strict=True):
        if part is not None:
            part.sub_(change)
    return gradient
