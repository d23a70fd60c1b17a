"""The sampled oracle estimates the error that the whole one measures."""

from pathlib import Path
from typing import Any

import pytest

from lmcleaner.formats.errors import UsageError
from lmcleaner.unlearning.options import UnlearnOptions
from tiny_runs import TinyRun, record_tiny, unlearn_tiny


@pytest.fixture(scope="module")
def run(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """60 steps of AdamW."""
    return record_tiny(base_model, tmp_path_factory.mktemp("run"), num_rows=40, epochs=6, checkpoint_every=20)


def _document(run: TinyRun, output: Path, mode: str, percent: float, **options: Any) -> dict[str, Any]:
    document = unlearn_tiny(run, output, mode, oracle_sample=percent, **options).document
    assert document is not None
    return document


@pytest.mark.parametrize("mode", ["GGN", "exact"])
@pytest.mark.parametrize("percent", [20, 100])
def test_an_estimate_is_near_the_error(mode: str, percent: float, run: TinyRun, tmp_path: Path) -> None:
    document = _document(run, tmp_path / "out", mode, percent, oracle=True)
    estimated, true = document["result"]["estimated_error"], document["oracle"]["relative_error"]
    assert true / 3 < estimated < true * 3
    assert document["windows"][0]["estimated_error"] == pytest.approx(estimated)


def test_estimates_order_the_modes_as_their_errors_do(run: TinyRun, tmp_path: Path) -> None:
    documents = [
        _document(run, tmp_path / mode, mode, 50, oracle=True) for mode in ("exact", "GGN", "fisher", "secant")
    ]
    estimates = [document["result"]["estimated_error"] for document in documents]
    errors = [document["oracle"]["relative_error"] for document in documents]
    assert sorted(range(4), key=estimates.__getitem__) == sorted(range(4), key=errors.__getitem__)


def test_secant_has_no_error_to_sample_and_spends_nothing(run: TinyRun, tmp_path: Path) -> None:
    document = _document(run, tmp_path / "out", "secant", 50)
    plain = _document(run, tmp_path / "plain", "secant", 0)
    assert document["result"]["estimated_error"] == 0.0
    assert document["windows"][0]["gradients"] == plain["windows"][0]["gradients"]


def test_sampled_steps_cost_a_gradient_each_and_change_nothing(run: TinyRun, tmp_path: Path) -> None:
    sampled, plain = (_document(run, tmp_path / str(percent), "GGN", percent) for percent in (50, 0))
    more = sampled["windows"][0]["gradients"] - plain["windows"][0]["gradients"]
    carried = sampled["windows"][0]["tau"] - sampled["windows"][0]["tz"]
    assert 0.3 * carried < more <= 0.6 * carried
    assert sampled["plan"]["gradients"] == sum(window["gradients"] for window in sampled["windows"])
    assert sampled["hashes"]["model_after"] == plain["hashes"]["model_after"]
    assert plain["result"]["estimated_error"] is None


def test_a_window_without_room_for_a_block_has_no_estimate(run: TinyRun, tmp_path: Path) -> None:
    document = _document(run, tmp_path / "out", "GGN", 20, forget="steps:59")
    assert document["result"]["estimated_error"] is None


def test_a_bad_estimate_makes_the_result_poor(run: TinyRun, tmp_path: Path) -> None:
    document = _document(run, tmp_path / "out", "fisher", 50)
    assert document["result"]["estimated_error"] >= 0.9
    assert any("estimated" in reason for reason in document["result"]["reasons"])


@pytest.mark.parametrize(
    "options", [{"oracle_sample": -1}, {"oracle_sample": 101}, {"oracle_sample": 10, "propagation": "paper"}]
)
def test_other_shares_and_the_papers_form_are_refused(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="oracle-sample"):
        UnlearnOptions(forget="forget", output=tmp_path / "out", **options)
