"""What rounding brought back, from values by row."""

import numpy as np
import pytest

from lmcleaner.evaluation.comparison import Comparison, Finding, Side, compare
from lmcleaner.evaluation.deployment import Return, returns
from lmcleaner.evaluation.scores import Part, Scores

ROWS = 60


def _compared(before: float, unlearned: float, gold: float, spread: float = 0.05, seed: int = 0) -> list[Comparison]:
    generator = np.random.default_rng(seed)
    means = {Side.BEFORE: before, Side.UNLEARNED: unlearned, Side.GOLD: gold}
    scores: dict[Side, Scores] = {
        side: {Part.FORGET: {name: mean + generator.normal(0, spread, ROWS) for name in ("probability", "kl")}}
        for side, mean in means.items()
    }
    return compare(scores)


def _returned(exact: list[Comparison], rounded: list[Comparison]) -> Return:
    found = returns(exact, rounded)
    assert list(found) == ["forget_Q_A_Prob"]  # a distance from gold tells nothing
    return found["forget_Q_A_Prob"]


@pytest.mark.parametrize(
    ("unlearned", "came_back"),
    [
        (0.2, Finding.NO),
        (0.21, Finding.NO),  # a growth, but of less than a tenth
        (0.45, Finding.YES),
        (0.1, Finding.NO),  # further away from before
        (0.26, Finding.UNCLEAR),  # as much as the margin, give or take
    ],
)
def test_it_came_back_if_the_share_that_is_there_grew(unlearned: float, came_back: Finding) -> None:
    found = _returned(_compared(0.7, 0.2, 0.1), _compared(0.7, unlearned, 0.1, seed=1))
    assert found.exact == pytest.approx(1 / 6, abs=0.03)
    assert found.rounded == pytest.approx((unlearned - 0.1) / 0.6, abs=0.03)
    assert found.low < found.rounded - found.exact < found.high
    assert found.came_back is came_back


def test_models_are_measured_against_those_that_are_rounded_alike() -> None:
    """Rounding took half of what the model before knew; the unlearned model has the same share of what is left."""
    found = _returned(_compared(0.7, 0.4, 0.1), _compared(0.4, 0.25, 0.1, seed=1))
    assert found.exact == pytest.approx(found.rounded, abs=0.05)
    assert found.came_back is Finding.NO


def test_a_metric_that_does_not_tell_before_from_gold_says_nothing() -> None:
    alike = _compared(0.101, 0.1, 0.1, spread=0.2)
    assert returns(alike, _compared(0.7, 0.5, 0.1)) == {}
    assert returns(_compared(0.7, 0.2, 0.1), alike) == {}
