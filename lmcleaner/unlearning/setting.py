"""What every step of a sweep needs to know, and what the sweep has spent."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from lmcleaner.choices import Denominator, HessianMode
from lmcleaner.formats.steps import StepRecord
from lmcleaner.training.replay import ReplayModel
from lmcleaner.training.state import Gradient
from lmcleaner.unlearning.kept import StateKeeper
from lmcleaner.unlearning.request import ForgetSet


@dataclass(slots=True)
class Spent:
    """Work done so far.

    Attributes:
        gradients: gradients of a whole step.
        products: curvature products of a whole step.
        handled: forgotten rows that were left out.
    """

    gradients: int = 0
    products: int = 0
    handled: int = 0


@dataclass(frozen=True)
class Setting:
    """What every step of a sweep needs to know.

    Attributes:
        replay: the run's model.
        forget_set: what to leave out.
        mode: how gradients are found.
        denominator: what the counterfactual divides by.
        damping: λ.
        keeper: keeps some of the states.
        spent: counts the work.
    """

    replay: ReplayModel
    forget_set: ForgetSet
    mode: HessianMode
    denominator: Denominator
    damping: float
    keeper: StateKeeper = field(default_factory=lambda: StateKeeper(Path(), 0))
    spent: Spent = field(default_factory=Spent)

    def gradient(self, step: StepRecord, parameters: Sequence[Tensor]) -> Gradient:
        """The retained rows' gradient at `parameters`."""
        self.spent.gradients += 1
        return self.replay.gradient(step, parameters, self.forget_set.masked, self.denominator)

    def count_handled(self, number: int, step: StepRecord) -> None:
        """Counts the forgotten rows, which leave the step with it or are masked."""
        self.spent.handled += self.forget_set.count_in(number, step)
