"""What is said of a poor result: the figure, what was expected, and only what can still be done about it."""

from pathlib import Path
from typing import Any

import pytest

from lmcleaner.unlearning.combine import Change
from lmcleaner.unlearning.options import UnlearnOptions
from lmcleaner.unlearning.sweep import WindowReport
from lmcleaner.unlearning.verdict import reasons_against
from lmcleaner.unlearning.windows import Window

NUM_STEPS = 100
SOUND = Change(norm=1.0, norm_ratio=1.0, cosine=1.0)


def reasons(
    *,
    end: int = NUM_STEPS,
    errors: tuple[float, ...] = (),
    left_out: float | None = 0.0,
    change: Change = SOUND,
    relative_error: float | None = None,
    **options: Any,
) -> list[str]:
    """Of a window from step 10 on with these measures."""
    report = WindowReport(
        window=Window(start=10, first=10, last=10, end=end), v0_norm=1.0, v_peak_norm=1.0, v_norm=1.0, norms={},
        gradients=1, products=1, handled=1, marks=dict(enumerate(errors)), settled=left_out, left_out=left_out,
        data_free=False, curvature_captured=None, estimated_error=None, replay_exact=None, states=(),
        counterfactual=None,
    )  # fmt: skip
    oracle = None if relative_error is None else {"relative_error": relative_error}
    chosen = UnlearnOptions(forget="x", output=Path("out"), **options)
    return reasons_against([report], change, oracle, NUM_STEPS, chosen)


def test_a_good_result_has_no_reasons() -> None:
    assert reasons(errors=(0.9,), relative_error=0.89) == reasons(end=50, left_out=0.1) == []


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({"hessian_mode": "GGN"}, "use --hessian-mode secant"),
        ({"hessian_mode": "GGN", "end": 50}, "use --hessian-mode secant, or a longer K"),
        ({"hessian_mode": "secant", "end": 50}, "use a longer K"),
        ({"hessian_mode": "secant"}, "`lmcleaner inspect --verify --replay all` tells whether this machine replays the "
            "run exactly"),
        ({"hessian_mode": "GGN", "propagation": "paper", "end": 50}, "use --propagation optimizer"),
    ],
)  # fmt: skip
def test_a_large_error_is_told_with_what_would_make_it_smaller(options: dict[str, Any], advice: str) -> None:
    found = reasons(relative_error=1.253, **options)
    assert found == [f"the relative error against the oracle is 1.253, expected below 0.9: {advice}"]


def test_predictions_that_are_off_are_told_with_their_median() -> None:
    assert reasons(errors=(0.1, 1.5, 1.25)) == [
        "window 10 to 100: the predicted gradients are off by 1.250 in the median, expected at most 0.9: "
        "use --hessian-mode secant"
    ]


@pytest.mark.parametrize(
    ("left_out", "reason"),
    [
        (
            0.25,
            "the deviation would move on by about 0.250 until the run's end, expected at most 0.1: use a longer K, or "
            "--K all",
        ),
        (None, "too short to say whether the deviation settled: use a longer K"),
    ],
)
def test_only_a_window_that_was_cut_has_to_settle(left_out: float | None, reason: str) -> None:
    assert reasons(end=50, left_out=left_out) == [f"window 10 to 50: {reason}"]
    assert reasons(left_out=left_out) == []


def test_what_rounding_took_is_told() -> None:
    assert reasons(change=Change(norm=1.0, norm_ratio=0.5, cosine=0.75)) == [
        "rounding to the storage dtype leaves a norm ratio of 0.500 and a cosine of 0.750 of the wanted change, "
        "expected at least 0.9: keep the weights in float32"
    ]
