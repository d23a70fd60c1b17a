"""All metrics: what each is called, what it is computed from, and which way is better.

Names are open-unlearning's where it has the metric.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from lmcleaner.evaluation.forget_quality import forget_quality
from lmcleaner.evaluation.membership import area_under_curve, privacy_leakage
from lmcleaner.evaluation.probability import normalised_probability
from lmcleaner.evaluation.scores import Array, Part, Scores, has_columns
from lmcleaner.evaluation.truth_ratio import forget_truth_ratio, kept_truth_ratio, truth_ratios
from lmcleaner.evaluation.utility import model_utility

ATTACKS = ("loss", "zlib", "min_k", "min_k_plus_plus", "gradnorm", "reference")
PREFIXES = {Part.FORGET: "forget", Part.RETAIN: "retain", Part.REAL_AUTHORS: "ra", Part.WORLD_FACTS: "wf"}
_CHOICES = (Part.REAL_AUTHORS, Part.WORLD_FACTS)


class Direction(StrEnum):
    """Which way a metric gets better; gold is what a model would be like that never saw the rows to forget."""

    HIGHER = "higher"
    LOWER = "lower"
    GOLD = "gold"  # neither: what counts is to be close to gold


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A number for a model.

    Attributes:
        name: of the metric.
        direction: which way is better.
        needs: columns that each part must have.
        of: computes it from a model's scores and the gold model's, if there is one.
        against_gold: whether it is none without gold's scores, which must have these columns, too.
        has_interval: whether resampling rows tells how far it may be off; a p-value says that itself.
    """

    name: str
    direction: Direction
    needs: tuple[tuple[Part, tuple[str, ...]], ...]
    of: Callable[[Scores, Scores | None], float]
    against_gold: bool = False
    has_interval: bool = True

    def is_possible(self, scores: Scores, gold: Scores | None) -> bool:
        """Whether the scores have what it needs."""
        compared = [scores] if not self.against_gold else [scores, gold or {}]
        return all(has_columns(found, part, names) for found in compared for part, names in self.needs)


def possible_metrics(scores: Scores, gold: Scores | None) -> list[Metric]:
    """The metrics that these scores are enough for.

    Args:
        scores: of a model.
        gold: of a model that never saw the rows to forget, if there is one.

    Returns:
        Metrics in the order in which they are shown.
    """
    return [metric for metric in METRICS if metric.is_possible(scores, gold)]


def row_truth_ratios(scores: Scores, part: Part) -> Array:
    """Truth ratios of a part's rows; the right answer is the paraphrase where rows were trained on."""
    columns = scores[part]
    return truth_ratios(columns[f"{_right(part)}loss"], columns["wrong_loss"])


def probability_among_choices(scores: Scores, part: Part) -> Array:
    """Normalised probability of each row of a part."""
    return normalised_probability(scores[part]["probability"], scores[part]["wrong_probability"])


def attack_auc(scores: Scores, attack: str) -> float:
    """Success of a membership attack: forgotten rows against rows that were never trained on."""
    column = f"mia_{attack}"
    return area_under_curve(scores[Part.FORGET][column], scores[Part.HOLDOUT][column])


def _right(part: Part) -> str:
    return "" if part in _CHOICES else "paraphrase_"


def _mean(name: str, part: Part, column: str, direction: Direction) -> Metric:
    return Metric(
        name=name,
        direction=direction,
        needs=((part, (column,)),),
        of=lambda scores, _: float(scores[part][column].mean()),
    )


def _truth_ratio(name: str, part: Part, direction: Direction, aggregate: Callable[[Array], float]) -> Metric:
    return Metric(
        name=name,
        direction=direction,
        needs=((part, (f"{_right(part)}loss", "wrong_loss")),),
        of=lambda scores, _: aggregate(row_truth_ratios(scores, part)),
    )


def _among_choices(part: Part) -> Metric:
    return Metric(
        name=f"{PREFIXES[part]}_Q_A_Prob_normalised",
        direction=Direction.HIGHER,
        needs=((part, ("probability", "wrong_probability")),),
        of=lambda scores, _: float(probability_among_choices(scores, part).mean()),
    )


def _attack(attack: str) -> Metric:
    column = (f"mia_{attack}",)
    return Metric(
        name=f"mia_{attack}",
        direction=Direction.GOLD,
        needs=((Part.FORGET, column), (Part.HOLDOUT, column)),
        of=lambda scores, _: attack_auc(scores, attack),
    )


def _kept(part: Part) -> list[Metric]:
    """The three metrics of a part that the model shall still know."""
    prefix, up = PREFIXES[part], Direction.HIGHER
    probability = _among_choices(part) if part in _CHOICES else _mean(f"{prefix}_Q_A_Prob", part, "probability", up)
    return [
        probability,
        _mean(f"{prefix}_Q_A_ROUGE", part, "rougeL_recall", up),
        _truth_ratio(f"{prefix}_Truth_Ratio", part, up, kept_truth_ratio),
    ]


def _utility(parts: Sequence[Metric]) -> Metric:
    return Metric(
        name="model_utility",
        direction=Direction.HIGHER,
        needs=tuple(need for metric in parts for need in metric.needs),
        of=lambda scores, gold: model_utility([metric.of(scores, gold) for metric in parts]),
    )


def _forget_quality(scores: Scores, gold: Scores | None) -> float:
    assert gold is not None
    return forget_quality(row_truth_ratios(scores, Part.FORGET), row_truth_ratios(gold, Part.FORGET))


def _privacy_leakage(scores: Scores, gold: Scores | None) -> float:
    return privacy_leakage(attack_auc(scores, "min_k"), 0.5 if gold is None else attack_auc(gold, "min_k"))


_UTILITY = [metric for part in (Part.RETAIN, *_CHOICES) for metric in _kept(part)]
METRICS: tuple[Metric, ...] = (
    _mean("forget_Q_A_Prob", Part.FORGET, "probability", Direction.LOWER),
    _mean("forget_Q_A_ROUGE", Part.FORGET, "rougeL_recall", Direction.LOWER),
    _truth_ratio("forget_truth_ratio", Part.FORGET, Direction.GOLD, forget_truth_ratio),
    Metric(
        name="forget_quality",
        direction=Direction.HIGHER,
        needs=((Part.FORGET, ("paraphrase_loss", "wrong_loss")),),
        of=_forget_quality,
        against_gold=True,
        has_interval=False,
    ),
    _mean("extraction_strength", Part.FORGET, "extraction_strength", Direction.LOWER),
    _mean("exact_memorization", Part.FORGET, "exact_memorization", Direction.LOWER),
    _mean("forget_kl", Part.FORGET, "kl", Direction.LOWER),
    _mean("forget_agreement", Part.FORGET, "agreement", Direction.HIGHER),
    *(_attack(attack) for attack in ATTACKS),
    Metric(
        name="privleak",
        direction=Direction.GOLD,
        needs=((Part.FORGET, ("mia_min_k",)), (Part.HOLDOUT, ("mia_min_k",))),
        of=_privacy_leakage,
    ),
    *_UTILITY,
    _mean("retain_kl", Part.RETAIN, "kl", Direction.LOWER),
    _mean("retain_agreement", Part.RETAIN, "agreement", Direction.HIGHER),
    _utility(_UTILITY),
)
