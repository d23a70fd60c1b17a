"""Whether what was forgotten comes back when weights are rounded.

Unlearning may change weights by less than a step of the rounding, which then gives back the model before (Zhang et al.,
"Catastrophic Failure of LLM Unlearning via Quantization", 2024).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lmcleaner.evaluation.comparison import Comparison, Finding, Side, interval, verdict
from lmcleaner.evaluation.scores import Array

MARGIN = 0.1  # of what was to forget; less than that is no return
# How much of the forgotten answers a model gives. Distances from gold don't serve: rounding moves all models apart.
KNOWLEDGE = ("forget_Q_A_Prob", "forget_Q_A_ROUGE", "extraction_strength", "exact_memorization")


@dataclass(frozen=True, slots=True, kw_only=True)
class Return:
    """What rounding brought back, by one metric.

    Attributes:
        exact: which share of what was to forget is still there, without rounding: 0 as in gold, 1 as before.
        rounded: the same when all three models are rounded alike.
        low: lower end of the interval of the growth of the share.
        high: upper end.
        came_back: whether it grew by more than 0.1.
    """

    exact: float
    rounded: float
    low: float
    high: float
    came_back: Finding


def returns(exact: Sequence[Comparison], rounded: Sequence[Comparison]) -> dict[str, Return]:
    """What rounding brought back.

    The share that is still there is (unlearned − gold) / (before − gold). It came back if the share is larger by more
    than 0.1 when all three models are rounded, in all but 2.5 % of the draws of rows, the same draws for both.

    Args:
        exact: of the models as they are.
        rounded: of the rounded ones, on the same rows.

    Returns:
        For each metric of `KNOWLEDGE` whose interval tells the model before from gold, rounded and not.
    """
    after = {comparison.metric.name: comparison for comparison in rounded}
    return {
        comparison.metric.name: _returned(comparison, after[comparison.metric.name])
        for comparison in exact
        if comparison.metric.name in KNOWLEDGE and _tells(comparison) and _tells(after[comparison.metric.name])
    }


def _returned(exact: Comparison, rounded: Comparison) -> Return:
    growth = _shares(rounded) - _shares(exact)
    low, high = interval(growth)
    return Return(
        exact=_gap(exact, Side.UNLEARNED) / _gap(exact, Side.BEFORE),
        rounded=_gap(rounded, Side.UNLEARNED) / _gap(rounded, Side.BEFORE),
        low=low,
        high=high,
        came_back=verdict(low, high, MARGIN),
    )


def _tells(comparison: Comparison) -> bool:
    low, high = interval(_drawn_gap(comparison, Side.BEFORE))
    return low > 0 or high < 0


def _shares(comparison: Comparison) -> Array:
    """In each draw; what is divided by is that of all rows, since it may be 0 in a draw."""
    shares: Array = _drawn_gap(comparison, Side.UNLEARNED) / _gap(comparison, Side.BEFORE)
    return shares


def _gap(comparison: Comparison, side: Side) -> float:
    return comparison.sides[side].value - comparison.sides[Side.GOLD].value


def _drawn_gap(comparison: Comparison, side: Side) -> Array:
    assert comparison.draws is not None, comparison.metric.name
    gap: Array = comparison.draws[side] - comparison.draws[Side.GOLD]
    return gap
