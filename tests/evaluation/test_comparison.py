"""Three models side by side: intervals, which is closer to gold, and when nothing is shown at all."""

import math

import numpy as np
import pytest

from lmcleaner.evaluation.comparison import Closer, Comparison, Side, compare, void_reason
from lmcleaner.evaluation.scores import Array, Part, Scores

ROWS = 100


def _around(mean: float, spread: float = 0.1, seed: int = 0) -> Array:
    values: Array = mean + np.random.default_rng(seed).normal(0, spread, ROWS)
    return values


def _compared(before: Array, unlearned: Array, gold: Array) -> Comparison:
    values = {Side.BEFORE: before, Side.UNLEARNED: unlearned, Side.GOLD: gold}
    scores: dict[Side, Scores] = {side: {Part.FORGET: {"probability": found}} for side, found in values.items()}
    (comparison,) = compare(scores)
    assert comparison.metric.name == "forget_Q_A_Prob"
    return comparison


def test_the_interval_of_a_mean_is_that_of_its_standard_error() -> None:
    values = _around(0.5)
    estimate = _compared(values, values, values).sides[Side.BEFORE]
    assert estimate.value == values.mean()
    assert estimate.low is not None
    assert estimate.high is not None
    half = 1.96 * values.std() / math.sqrt(ROWS)
    assert (estimate.low, estimate.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.2 * half)


def test_a_single_row_has_no_interval_and_is_compared_as_it_is() -> None:
    found = _compared(np.array([0.9]), np.array([0.2]), np.array([0.1]))
    assert [(side.value, side.low, side.high) for side in found.sides.values()] == [
        (0.9, None, None), (0.2, None, None), (0.1, None, None),
    ]  # fmt: skip
    assert found.closer is Closer.YES


@pytest.mark.parametrize(
    ("before", "unlearned", "gold", "closer"),
    [
        (0.9, 0.2, 0.1, Closer.YES),
        (0.9, 0.1, 0.1, Closer.YES),
        (0.2, 0.9, 0.1, Closer.NO),
        (0.2, -0.9, 0.1, Closer.NO),  # past gold, and further away than before
        (0.1, 0.1, 0.1, Closer.SAME),
    ],
)
def test_closer_is_by_the_distance_to_gold(before: float, unlearned: float, gold: float, closer: Closer) -> None:
    assert _compared(_around(before), _around(unlearned), _around(gold)).closer is closer


def test_a_difference_that_other_rows_could_turn_is_unclear() -> None:
    found = _compared(_around(0.5, seed=1), _around(0.5, seed=2), _around(0.3, seed=3))
    assert found.closer is Closer.UNCLEAR


def test_rows_are_drawn_together_and_always_the_same() -> None:
    """All rows differ by 0.1: the difference is sure, though the intervals overlap."""
    gold = _around(0.1, spread=1.0)
    found = _compared(gold + 0.2, gold + 0.1, gold)
    before, unlearned = found.sides[Side.BEFORE], found.sides[Side.UNLEARNED]
    assert before.low is not None
    assert unlearned.high is not None
    assert before.low < unlearned.high
    assert found.closer is Closer.YES
    assert _compared(gold + 0.2, gold + 0.1, gold) == found


def test_a_p_value_has_no_interval() -> None:
    """Forget quality tells the distributions of truth ratios apart; equal ones have 1."""
    near, far = np.linspace(0, 1, 20), np.linspace(2, 3, 20)
    losses = {Side.BEFORE: far, Side.UNLEARNED: near, Side.GOLD: near}
    scores: dict[Side, Scores] = {
        side: {Part.FORGET: {"paraphrase_loss": loss, "wrong_loss": np.ones((20, 1))}} for side, loss in losses.items()
    }
    found = {comparison.metric.name: comparison for comparison in compare(scores)}
    quality = found["forget_quality"]
    assert [quality.sides[side].low for side in Side] == [None, None, None]
    assert quality.sides[Side.BEFORE].value < 1e-6
    assert quality.sides[Side.UNLEARNED].value == quality.sides[Side.GOLD].value == 1.0
    assert quality.closer is Closer.YES


@pytest.mark.parametrize(("before", "gold", "is_void"), [(0.130, 0.126, True), (0.1, 0.3, True), (0.57, 0.03, False)])
def test_a_model_that_never_knew_its_rows_shows_nothing(before: float, gold: float, is_void: bool) -> None:
    scores: dict[Side, Scores] = {
        side: {Part.FORGET: {"probability": _around(mean, spread=0.01, seed=seed)}}
        for seed, (side, mean) in enumerate({Side.BEFORE: before, Side.GOLD: gold}.items())
    }
    reason = void_reason(scores)
    assert (reason is not None) is is_void
    if reason is not None:
        assert "the model never knew what it was to forget" in reason
