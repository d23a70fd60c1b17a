"""Two ways to carry a deviation through a step: the real optimizer, and the paper's form."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lmcleaner.choices import HessianMode, Propagation
from lmcleaner.formats.steps import Checkpoint, StepRecord
from lmcleaner.training.batches import holds_forgotten
from lmcleaner.training.state import Gradient
from lmcleaner.training.vectors import evenly_spaced
from lmcleaner.unlearning.prediction import Prediction
from lmcleaner.unlearning.setting import Setting


class Carrier(ABC):
    """A deviation δ = θ - θ′ on its way through a window."""

    @abstractmethod
    def deviation(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """δ[t], given θ[t]."""

    @abstractmethod
    def advance(
        self, number: int, step: StepRecord, parameters: Sequence[Tensor] | None, *, measure: bool
    ) -> float | None:
        """Takes δ[t] to δ[t+1].

        Args:
            number: t.
            step: the logged step.
            parameters: θ[t], or None where it isn't known.
            measure: compares the predicted gradient with the true one.

        Returns:
            The relative error of the prediction if it was measured, else None.
        """


class OptimizerCarrier(Carrier):
    """Carries θ′ and the optimizer's state through the real optimizer; δ is what they differ from the run by.

    Attributes:
        state: (θ′, o′).
    """

    def __init__(self, setting: Setting, prediction: Prediction, checkpoint: Checkpoint) -> None:
        """Begins with the run's own state, without deviation."""
        self._setting, self._prediction = setting, prediction
        self.state = setting.replay.state(checkpoint)

    def replay(self, number: int, step: StepRecord) -> None:
        """Takes a step of the run as it was, forgotten rows and all, while nothing has deviated yet."""
        given = self._prediction.given(number)
        if given is not None:
            self.state.apply_given(given, step.lr)
            return
        self._setting.spent.gradients += 1
        self.state.apply(self._setting.replay.gradient(step, self.state.parameters), step.lr)

    def go_on_from(self, parameters: Sequence[Tensor]) -> None:
        """Takes θ′ to the logged θ where a lead-in didn't give the run's bits: no deviation but the request's."""
        for own, logged in zip(self.state.parameters, parameters, strict=True):
            own.data.copy_(logged)

    def deviation(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """θ[t] - θ′[t], in float32 at least."""
        return deviation(parameters, self.state.parameters)

    def advance(
        self, number: int, step: StepRecord, parameters: Sequence[Tensor] | None, *, measure: bool
    ) -> float | None:
        """One step of the counterfactual; see `Carrier.advance`."""
        error = self._take(number, step, parameters, measure=measure)
        self._setting.keeper.offer(number + 1, self.state)
        return error

    def _take(
        self, number: int, step: StepRecord, parameters: Sequence[Tensor] | None, *, measure: bool
    ) -> float | None:
        setting = self._setting
        setting.count_handled(number, step)
        if number in setting.forget_set.skipped:
            return None
        if parameters is None or not self._is_linearized_at(parameters):
            given = self._prediction.given(number)
            if given is not None:
                self.state.apply_given(given, step.lr)
            else:
                self.state.apply(setting.gradient(step, self.state.parameters), step.lr)
            return None
        # Before anything of its size is there, so that a sweep holds no more than θ, θ′, δ and a gradient.
        true = _elements(setting.gradient(step, self.state.parameters)) if measure else None
        directions = [p - q for p, q in _on_one_device(parameters, self.state.parameters)]
        gradient = self._prediction.gradient(number, step, parameters, directions)
        error = relative_error(_elements(gradient), true) if true is not None else None
        self.state.apply(gradient, step.lr)
        return error

    def _is_linearized_at(self, parameters: Sequence[Tensor]) -> bool:
        """Whether the gradient at θ′ is predicted from θ; not in secant mode, nor while θ′ is θ itself."""
        if self._setting.mode is HessianMode.SECANT:
            return False
        return not all(torch.equal(p, q) for p, q in _on_one_device(parameters, self.state.parameters))


class PaperCarrier(Carrier):
    """Algorithm 1 of LMCleaner to the letter: v ← v - η(H + λI)v; it ignores the run's optimizer and clipping.

    A forgotten row adds -(η/B)∇ℓ when its step comes (sample level), a skipped step its whole update (batch level).
    """

    def __init__(self, setting: Setting, prediction: Prediction, shapes: Sequence[Tensor]) -> None:
        """Begins without deviation."""
        self._setting, self._prediction = setting, prediction
        self._deviation = [torch.zeros_like(_wide(tensor)) for tensor in shapes]
        self._before: list[Tensor] | None = None

    def deviation(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """v[t]; at batch level a step that was skipped just now adds its update u = θ[t+1] - θ[t]."""
        if self._before is not None:
            for v, after, before in zip(self._deviation, parameters, self._before, strict=True):
                v.add_(_wide(after) - before)
            self._before = None
        return self._deviation

    def advance(
        self, number: int, step: StepRecord, parameters: Sequence[Tensor] | None, *, measure: bool
    ) -> float | None:
        """One step of the recursion; see `Carrier.advance`."""
        assert parameters is not None
        setting = self._setting
        setting.count_handled(number, step)
        if number in setting.forget_set.skipped:
            self._before = [_wide(parameter).clone() for parameter in parameters]
            return None
        rates = self._rates(step)
        error = (
            self._carry(number, step, parameters, rates, measure)
            if any(bool(v.any()) for v in self._deviation)
            else None
        )
        if holds_forgotten(step, setting.forget_set.masked):
            self._add_initial(step, parameters, rates)
        return error

    def _carry(
        self, number: int, step: StepRecord, parameters: Sequence[Tensor], rates: list[float], measure: bool
    ) -> float | None:
        directions = [v.to(p.dtype) for v, p in zip(self._deviation, parameters, strict=True)]
        # Before the product is there, so that a sweep holds no more than θ, v, θ - v and a gradient.
        ends = self._gradients_at_both_ends(step, parameters, directions) if measure else None
        product = self._prediction.product(number, step, parameters, directions)
        for v, change, rate in zip(self._deviation, product, rates, strict=True):
            v.sub_(_wide(change), alpha=rate)
        if ends is None:
            return None
        here, there, is_reached = ends
        change = evenly_spaced([part for part, reached in zip(product, is_reached, strict=True) if reached])
        return relative_error(here - change, there)

    def _gradients_at_both_ends(
        self, step: StepRecord, parameters: Sequence[Tensor], directions: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor, list[bool]]:
        """Elements of the true gradients at θ and at θ - v, and which parameters they reach."""
        gradient = self._setting.gradient(step, parameters)
        here, is_reached = _elements(gradient), [part is not None for part in gradient]
        del gradient
        there = self._setting.gradient(step, [p - d for p, d in zip(parameters, directions, strict=True)])
        return here, _elements(there), is_reached

    def _add_initial(self, step: StepRecord, parameters: Sequence[Tensor], rates: list[float]) -> None:
        """Adds -(η/B)∇ℓ of the forgotten rows alone."""
        setting = self._setting
        retained = frozenset(s.digest for s in step.samples) - setting.forget_set.masked
        setting.spent.gradients += 1
        gradient = setting.replay.gradient(step, parameters, retained)
        for v, part, rate in zip(self._deviation, gradient, rates, strict=True):
            if part is not None:
                v.sub_(_wide(part), alpha=rate)

    def _rates(self, step: StepRecord) -> list[float]:
        """η of each parameter."""
        return [step.lr[entry.group] for entry in self._setting.replay.manifest.parameters]


def make_carrier(propagation: Propagation, setting: Setting, prediction: Prediction, checkpoint: Checkpoint) -> Carrier:
    """The carrier of a propagation, at the state of a checkpoint."""
    if propagation is Propagation.PAPER:
        return PaperCarrier(setting, prediction, setting.replay.parameters)
    return OptimizerCarrier(setting, prediction, checkpoint)


def deviation(parameters: Sequence[Tensor], counterfactual: Sequence[Tensor]) -> list[Tensor]:
    """θ - θ′ where θ lies, in float32 at least."""
    return [_wide(p) - _wide(q) for p, q in _on_one_device(parameters, counterfactual)]


def relative_error(predicted: Tensor, true: Tensor) -> float:
    """‖predicted - true‖ / ‖true‖; 0 where both vanish."""
    true, predicted = true.double(), predicted.double()
    norm, difference = float(true.norm()), float((predicted - true).norm())
    return difference / norm if norm else float(difference > 0)


def _elements(gradient: Gradient) -> Tensor:
    """Evenly spaced elements of a gradient; the backward pass reaches the same parameters in every mode."""
    return evenly_spaced([part for part in gradient if part is not None])


def _on_one_device(parameters: Sequence[Tensor], others: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Both of each parameter, where the first one lies."""
    own = (q.detach().to(p.device) for p, q in zip(parameters, others, strict=True))
    return zip(parameters, own, strict=True)


def _wide(tensor: Tensor) -> Tensor:
    """The tensor in float32, or as it is where it is wider."""
    return tensor.float() if tensor.element_size() < 4 else tensor
