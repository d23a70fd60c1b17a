"""How a linearized mode finds the gradient at θ′ from what it knows at θ."""

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence

import torch
from torch import Tensor

from lmcleaner.choices import HessianMode
from lmcleaner.curvature.estimates import Estimate, estimate_diagonal, estimate_low_rank
from lmcleaner.curvature.linearized import OPERATORS, curvature_product, predicted_gradient
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.steps import StepRecord
from lmcleaner.training.batches import holds_forgotten
from lmcleaner.training.state import Gradient
from lmcleaner.unlearning.setting import Setting

ESTIMATE_STEPS = 2  # of a segment, whose mean curvature is estimated
PROBES = 8


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


class SegmentPrediction(Prediction):
    """C is an estimate of the mean GGN of the steps up to the next checkpoint, made where a sweep enters them."""

    def __init__(self, log: TrainingLog, setting: Setting, rank: int) -> None:
        """Estimates nothing yet.

        Args:
            log: the training log.
            setting: what every step needs; its mode is DIAG or LOW_RANK.
            rank: eigenpairs of LOW_RANK.
        """
        self._log, self._setting, self._rank = log, setting, rank
        self._end = -1  # of the segment that the estimate is for
        self._estimate: Estimate | None = None

    def gradient(
        self, number: int, step: StepRecord, parameters: Sequence[Tensor], deviation: Sequence[Tensor]
    ) -> Gradient:
        """One gradient, and the products of an estimate at the first step of a segment."""
        product = self.product(number, step, parameters, deviation)
        return _difference(self._setting.gradient(step, parameters), product)

    def product(
        self, number: int, step: StepRecord, parameters: Sequence[Tensor], vector: Sequence[Tensor]
    ) -> list[Tensor]:
        """No product of its own but those of an estimate at the first step of a segment."""
        if self._estimate is None or number >= self._end:
            self._enter(number, parameters)
        assert self._estimate is not None
        return _damped(self._estimate @ vector, vector, self._setting.damping)

    def _enter(self, number: int, parameters: Sequence[Tensor]) -> None:
        """Estimates from evenly spaced steps of what is left of the segment, all at the same θ."""
        log, setting = self._log, self._setting
        ends = [*log.checkpoint_steps, log.num_steps]
        self._end = ends[bisect_right(ends, number)]
        count = min(ESTIMATE_STEPS, self._end - number)
        steps = [log.step(number + (self._end - number) * k // count) for k in range(count)]

        def mean_product(vector: Sequence[Tensor]) -> list[Tensor]:
            total = [torch.zeros_like(part) for part in vector]
            for step in steps:
                for part, product in zip(
                    total, _product(setting, HessianMode.GGN, step, parameters, vector, 0.0), strict=True
                ):
                    part.add_(product, alpha=1 / count)
            return total

        generator = torch.Generator().manual_seed(number)
        if setting.mode is HessianMode.DIAG:
            self._estimate = estimate_diagonal(mean_product, parameters, PROBES, generator)
        else:
            self._estimate = estimate_low_rank(mean_product, parameters, self._rank, generator)


class FisherPrediction(Prediction):
    """C is g·gᵀ, the rank-1 form of the paper's Algorithm 1, with the step's gradient g.

    Where the log holds gradients and the step no forgotten row, g is what the optimizer was given, and no row is read.
    """

    def __init__(self, log: TrainingLog, setting: Setting) -> None:
        """Keeps what every step needs."""
        self._log, self._setting = log, setting
        self._recorded = {step for first, stop in log.commit.gradients for step in range(first, stop)}

    def gradient(
        self, number: int, step: StepRecord, parameters: Sequence[Tensor], deviation: Sequence[Tensor]
    ) -> Gradient:
        """One gradient at most."""
        gradient = self._at(number, step, parameters)
        return _difference(gradient, self._times(gradient, deviation))

    def product(
        self, number: int, step: StepRecord, parameters: Sequence[Tensor], vector: Sequence[Tensor]
    ) -> list[Tensor]:
        """One gradient at most."""
        return self._times(self._at(number, step, parameters), vector)

    def _at(self, number: int, step: StepRecord, parameters: Sequence[Tensor]) -> Gradient:
        setting = self._setting
        if number in self._recorded and not holds_forgotten(step, setting.forget_set.masked):
            return [*setting.replay.load(self._log.gradient(number))]
        return setting.gradient(step, parameters)

    def _times(self, gradient: Gradient, vector: Sequence[Tensor]) -> list[Tensor]:
        pairs = [(g, part) for g, part in zip(gradient, vector, strict=True) if g is not None]
        slope = sum(float(torch.sum(g * part, dtype=torch.float64)) for g, part in pairs)
        product = [torch.zeros_like(v) if g is None else g * slope for g, v in zip(gradient, vector, strict=True)]
        return _damped(product, vector, self._setting.damping)


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
        return FisherPrediction(log, setting)
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
    for part, direction in zip(product, vector, strict=True):
        part.add_(direction, alpha=damping)
    return product


def _difference(gradient: Gradient, product: Sequence[Tensor]) -> Gradient:
    """In the gradient's memory; a parameter that the loss doesn't reach at θ has none at θ′ either."""
    for part, change in zip(gradient, product, strict=True):
        if part is not None:
            part.sub_(change)
    return gradient
