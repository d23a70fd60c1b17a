"""Each metric against a case worked out by hand."""

import math
import zlib

import numpy as np
import pytest

from lmcleaner.evaluation.forget_quality import forget_quality
from lmcleaner.evaluation.membership import area_under_curve, min_k, privacy_leakage, reference_score, zlib_score
from lmcleaner.evaluation.memorization import exact_memorization, extraction_strength
from lmcleaner.evaluation.metrics import METRICS, possible_metrics
from lmcleaner.evaluation.probability import answer_probability, normalised_probability
from lmcleaner.evaluation.rouge import rouge_recalls
from lmcleaner.evaluation.scores import Array, Part, Scores
from lmcleaner.evaluation.truth_ratio import forget_truth_ratio, kept_truth_ratio, truth_ratios
from lmcleaner.evaluation.utility import model_utility


def _array(*values: float) -> Array:
    return np.array(values, np.float64)


def test_probability_is_the_geometric_mean_of_the_tokens() -> None:
    """Tokens of probability 1/2 and 1/8: the mean loss is ln 4."""
    assert answer_probability(_array((math.log(2) + math.log(8)) / 2)) == pytest.approx(0.25)


def test_normalised_probability_is_the_share_among_the_choices() -> None:
    found = normalised_probability(_array(0.6, 0.1), np.array([[0.1, 0.1], [0.2, 0.1]]))
    assert found == pytest.approx(_array(0.75, 0.25))


def test_truth_ratio_is_wrong_over_right() -> None:
    """Wrong answers of probability 1/2 and 1/8 have a geometric mean of 1/4; the right one 1/2."""
    wrong = np.array([[math.log(2), math.log(8)], [math.log(2), math.log(2)]])
    ratios = truth_ratios(_array(math.log(2), math.log(8)), wrong)
    assert ratios == pytest.approx(_array(0.5, 4.0))
    assert forget_truth_ratio(ratios) == pytest.approx((0.5 + 0.25) / 2)
    assert kept_truth_ratio(ratios) == pytest.approx((0.5 + 0.0) / 2)


def test_forget_quality_of_equal_and_of_apart_ratios() -> None:
    """Of 3 and 3 values that don't overlap, 2 of the 20 orders are so extreme."""
    assert forget_quality(_array(1, 2, 3), _array(1, 2, 3)) == 1.0
    assert forget_quality(_array(1, 2, 3), _array(4, 5, 6)) == pytest.approx(2 / 20)


def test_model_utility_is_a_harmonic_mean() -> None:
    assert model_utility([1.0, 0.5, 0.25]) == pytest.approx(3 / 7)
    assert model_utility([1.0, 0.0, 1.0]) == 0.0


@pytest.mark.parametrize(
    ("hits", "strength", "exact"),
    [
        ([True, True, True, True], 1.0, 1.0),
        ([True, False, True, True], 0.5, 0.75),  # two tokens must be given
        ([False, False, False, True], 0.25, 0.25),
        ([True, True, True, False], 0.25, 0.75),  # nothing comes back, and the least value is 1/4
    ],
)
def test_extraction_strength_and_exact_memorization(hits: list[bool], strength: float, exact: float) -> None:
    assert extraction_strength(np.array(hits)) == strength
    assert exact_memorization(np.array(hits)) == exact


def test_scores_of_the_membership_attacks() -> None:
    assert min_k(_array(-1, -4, -2, -3, 0)) == 3.5  # the lowest two of five
    assert min_k(_array(-1, -4)) == 4.0  # one at least
    assert zlib_score(1.0, "ada ada ada ada") == 1 / len(zlib.compress(b"ada ada ada ada"))
    assert reference_score(_array(1, 2), _array(3, 1)).tolist() == [-2, 1]


def test_the_area_under_the_curve_counts_pairs() -> None:
    """Pairs (member, other): 1<2, 1<3, 3>2, and 3=3 as a half."""
    assert area_under_curve(_array(1, 3), _array(2, 3)) == 2.5 / 4
    assert area_under_curve(_array(1, 1), _array(2, 3)) == 1.0


def test_privacy_leakage_is_the_change_of_the_attacks_failure() -> None:
    assert privacy_leakage(0.9, 0.5) == pytest.approx(-80.0)
    assert privacy_leakage(0.4, 0.5) == pytest.approx(20.0)
    assert privacy_leakage(0.5, 0.5) == 0.0


def test_rouge_recall_counts_stemmed_words_in_order() -> None:
    """Of four words three stand in order, "lives" and "lived" have one stem; a longer answer costs nothing."""
    assert rouge_recalls(["ada lives in north"], ["in ada lived north the end"]).tolist() == [0.75]
    assert rouge_recalls(["ada", "ben"], ["", "ben"]).tolist() == [0.0, 1.0]


def _scores() -> Scores:
    """Two rows each, with all columns."""
    answers = {
        "probability": _array(0.5, 0.25), "loss": _array(math.log(2), math.log(4)),
        "paraphrase_loss": _array(math.log(2), math.log(4)), "wrong_loss": np.log([[4.0], [4.0]]),
        "wrong_probability": np.array([[0.25], [0.25]]), "rougeL_recall": _array(1, 0.5), "kl": _array(0.5, 1.5),
        "agreement": _array(1, 0), "extraction_strength": _array(0.5, 1), "exact_memorization": _array(0.5, 0),
    }  # fmt: skip
    attacks = {
        f"mia_{name}": _array(1, 3) for name in ("loss", "zlib", "min_k", "min_k_plus_plus", "gradnorm", "reference")
    }
    holdout = {name: _array(2, 4) for name in attacks}
    return {part: answers | attacks for part in Part if part is not Part.HOLDOUT} | {Part.HOLDOUT: holdout}


def test_each_metric_takes_its_own_columns() -> None:
    scores = _scores()
    values = {metric.name: metric.of(scores, scores) for metric in possible_metrics(scores, scores)}
    kept, among = (0.5 + 0.0) / 2, (2 / 3 + 1 / 2) / 2
    parts = [0.375, 0.75, kept, among, 0.75, kept, among, 0.75, kept]
    expected = {
        "forget_Q_A_Prob": 0.375, "forget_Q_A_ROUGE": 0.75, "forget_truth_ratio": 0.75, "forget_quality": 1.0,
        "extraction_strength": 0.75, "exact_memorization": 0.25, "forget_kl": 1.0, "forget_agreement": 0.5,
        "mia_loss": 0.75, "mia_zlib": 0.75, "mia_min_k": 0.75, "mia_min_k_plus_plus": 0.75, "mia_gradnorm": 0.75,
        "mia_reference": 0.75, "privleak": 0.0, "retain_Q_A_Prob": 0.375, "retain_Q_A_ROUGE": 0.75,
        "retain_Truth_Ratio": kept, "ra_Q_A_Prob_normalised": among, "ra_Q_A_ROUGE": 0.75, "ra_Truth_Ratio": kept,
        "wf_Q_A_Prob_normalised": among, "wf_Q_A_ROUGE": 0.75, "wf_Truth_Ratio": kept, "retain_kl": 1.0,
        "retain_agreement": 0.5, "model_utility": 9 / sum(1 / value for value in parts),
    }  # fmt: skip
    assert values == pytest.approx(expected)
    assert len(expected) == len(METRICS)


def test_metrics_without_their_columns_are_left_out() -> None:
    scores: Scores = {Part.FORGET: {"probability": _array(0.5), "loss": _array(1.0)}}
    assert [metric.name for metric in possible_metrics(scores, None)] == ["forget_Q_A_Prob"]
    with_wrong: Scores = {Part.FORGET: {"paraphrase_loss": _array(1.0), "wrong_loss": np.array([[1.0]])}}
    assert [metric.name for metric in possible_metrics(with_wrong, scores)] == ["forget_truth_ratio"]
