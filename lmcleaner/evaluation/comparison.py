"""Before, unlearned and gold side by side: every metric with its interval, and which model is closer to gold."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from lmcleaner.evaluation.metrics import Metric, possible_metrics
from lmcleaner.evaluation.scores import Array, Part, Scores, chosen_rows, num_rows
from lmcleaner.progress import Progress, Silent

LEVEL = 0.95  # of the intervals
RESAMPLES = 1000
# Before unlearning, the answers must be more probable than gold holds them by this, or there was nothing to forget.
KNOWN_MARGIN = 0.01
SEED = 0
NEVER_KNEW = "the model never knew what it was to forget"


class Side(StrEnum):
    """Which model."""

    BEFORE = "before"
    UNLEARNED = "unlearned"
    GOLD = "gold"


class Closer(StrEnum):
    """Whether the unlearned model is closer to gold than the one before."""

    YES = "yes"
    NO = "no"
    UNCLEAR = "unclear"  # the interval of the difference holds 0
    SAME = "same"  # nothing had to change, and nothing did


class Finding(StrEnum):
    """Whether something was found."""

    YES = "yes"
    NO = "no"
    UNCLEAR = "unclear"  # the interval holds the margin


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A metric of a model.

    Attributes:
        value: of all rows.
        low: lower end of its interval; None where a metric has none.
        high: upper end.
    """

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A metric of all three models.

    Attributes:
        metric: which.
        sides: its value for each model.
        closer: whether it came closer to gold.
        draws: its values in each draw of the rows, `[draw]`; None where it has no interval.
    """

    metric: Metric
    sides: Mapping[Side, Estimate]
    closer: Closer
    draws: Mapping[Side, Array] | None = field(default=None, repr=False, compare=False)


def compare(scores: Mapping[Side, Scores], progress: Progress | None = None) -> list[Comparison]:
    """Compares three models by every metric that their scores are enough for.

    Rows are drawn again, with replacement, the same ones for all three models (Efron, "Bootstrap Methods", 1979); the
    intervals hold the middle 95 % of what 1,000 draws give. A single row has no other to be drawn instead, and so a
    metric of it no interval.

    Args:
        scores: of each model, on the same rows.
        progress: is told of every draw.

    Returns:
        One comparison a metric, in the order of `METRICS`.
    """
    metrics = possible_metrics(scores[Side.UNLEARNED], scores[Side.GOLD])
    resampled = [metric for metric in metrics if metric.has_interval]
    draws: dict[str, dict[Side, Array]] = {m.name: {side: np.zeros(RESAMPLES) for side in Side} for m in resampled}
    generator = np.random.default_rng(SEED)
    sizes = {part: num_rows(columns) for part, columns in scores[Side.GOLD].items()}
    progress = progress or Silent()
    progress.begin("bootstrap: drawing rows", RESAMPLES)
    for number in range(RESAMPLES):
        indices = {part: generator.integers(size, size=size) for part, size in sizes.items()}
        drawn = {side: chosen_rows(scores[side], indices) for side in Side}
        for metric in resampled:
            for side in Side:
                draws[metric.name][side][number] = metric.of(drawn[side], drawn[Side.GOLD])
        progress.advance()
    single = {part for part, size in sizes.items() if size == 1}
    return [_comparison(metric, scores, draws.get(metric.name), single) for metric in metrics]


def void_reason(scores: Mapping[Side, Scores], why: str = NEVER_KNEW) -> str | None:
    """Why a comparison shows nothing: the model never knew the rows that it was to forget.

    It knew them if the lower end of the interval of how much more probable it held their answers than gold does, in the
    mean over the rows, is above 0.01.

    Args:
        scores: of each model.
        why: what it means if it didn't.

    Returns:
        The reason; None where the model knew the rows.
    """
    before, gold = (scores[side][Part.FORGET]["probability"] for side in (Side.BEFORE, Side.GOLD))
    differences = before - gold
    rows = np.random.default_rng(SEED).integers(len(differences), size=(RESAMPLES, len(differences)))
    low, _ = interval(differences[rows].mean(axis=1))
    if low > KNOWN_MARGIN:
        return None
    return (
        f"void: {why}: answer probability {before.mean():.4f}, of gold {gold.mean():.4f}; expected a difference of "
        f"more than {KNOWN_MARGIN:g}, found one of at least {low:.4f}"
    )


def _comparison(
    metric: Metric, scores: Mapping[Side, Scores], draws: Mapping[Side, Array] | None, single: Set[Part]
) -> Comparison:
    values = {side: metric.of(scores[side], scores[Side.GOLD]) for side in Side}
    sides = {side: Estimate(value=value) for side, value in values.items()}
    gains = np.array([_gain(values)])
    if draws is not None and single.isdisjoint(part for part, _ in metric.needs):
        for side, drawn in draws.items():
            low, high = interval(drawn)
            sides[side] = Estimate(value=values[side], low=low, high=high)
        gains = np.array([_gain(dict(zip(Side, drawn, strict=True))) for drawn in zip(*draws.values(), strict=True)])
    return Comparison(metric=metric, sides=sides, closer=_closer(values, gains), draws=draws)


def _gain(values: Mapping[Side, float]) -> float:
    """How much closer to gold the unlearned model is than the one before."""
    gold = values[Side.GOLD]
    return float(abs(values[Side.BEFORE] - gold) - abs(values[Side.UNLEARNED] - gold))


def _closer(values: Mapping[Side, float], gains: Array) -> Closer:
    if len(set(values.values())) == 1:
        return Closer.SAME
    low, high = interval(gains)
    if low > 0:
        return Closer.YES
    return Closer.NO if high < 0 else Closer.UNCLEAR


def interval(values: Sequence[float] | Array) -> tuple[float, float]:
    """The middle 95 % of what draws give.

    Args:
        values: `[draw]`.

    Returns:
        Its lower and its upper end.
    """
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def verdict(low: float, high: float, margin: float) -> Finding:
    """Whether what an interval is of is above a margin."""
    if low > margin:
        return Finding.YES
    return Finding.NO if high <= margin else Finding.UNCLEAR
