"""Every aggregate of the published logs of a 1 B model, from their values by row; every ROUGE from its texts."""

import json
from pathlib import Path
from typing import Any

import pytest

from lmcleaner.evaluation.harness import eval_document, scores_of, summary_document
from lmcleaner.evaluation.rouge import rouge_recalls

PUBLISHED = Path(__file__).resolve().parents[3] / "shared" / "evals" / "open-unlearning"
RETAINED = PUBLISHED / "tofu_Llama-3.2-1B-Instruct_retain90"
FULL = PUBLISHED / "tofu_Llama-3.2-1B-Instruct_full" / "evals_forget10"

pytestmark = [
    pytest.mark.realdata,
    pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published logs don't lie beside the project"),
]

Document = dict[str, Any]


def _read(folder: Path, name: str = "TOFU_EVAL.json") -> Document:
    document: Document = json.loads((folder / name).read_text())
    return document


@pytest.fixture(scope="module")
def retained() -> Document:
    return _read(RETAINED)


@pytest.fixture(scope="module")
def full() -> Document:
    return _read(FULL)


def _check(made: Document, published: Document) -> None:
    for name, value in published.items():
        assert made[name] == pytest.approx(value, abs=1e-2 if name == "privleak" else 1e-9), name


def _aggregates(document: Document) -> dict[str, float]:
    return {name: entry["agg_value"] for name, entry in document.items() if entry["agg_value"] is not None}


def test_every_aggregate_of_the_trained_model(full: Document, retained: Document) -> None:
    made = eval_document(scores_of(full), scores_of(retained))
    assert _aggregates(full).keys() <= made.keys()
    _check(_aggregates(made), _aggregates(full))
    _check(summary_document(made), _read(FULL, "TOFU_SUMMARY.json"))
    assert summary_document(made).keys() == _read(FULL, "TOFU_SUMMARY.json").keys()


def test_every_aggregate_of_the_retrained_model(retained: Document) -> None:
    """No gold model was given to it: its privacy leakage is against an attack that finds nothing."""
    made = eval_document(scores_of(retained), None)
    assert "forget_quality" not in made
    _check(_aggregates(made), _aggregates(retained))
    _check(summary_document(made), _read(RETAINED, "TOFU_SUMMARY.json"))


@pytest.mark.parametrize("which", ["full", "retained"])
def test_every_value_by_row_that_follows_from_others(which: str, request: pytest.FixtureRequest) -> None:
    published = request.getfixturevalue(which)
    made = eval_document(scores_of(published), None)
    for name in ("forget_truth_ratio", "retain_Truth_Ratio", "ra_Truth_Ratio", "wf_Truth_Ratio"):
        for row, value in published[name]["value_by_index"].items():
            assert made[name]["value_by_index"][row]["score"] == pytest.approx(value["score"], rel=1e-6)


def test_what_is_written_reads_as_the_same_scores(full: Document) -> None:
    scores = scores_of(full)
    again = scores_of(json.loads(json.dumps(eval_document(scores, None))))
    assert again.keys() == scores.keys()
    for part, columns in scores.items():
        assert columns.keys() == again[part].keys()
        assert all((columns[name] == again[part][name]).all() for name in columns)


@pytest.mark.parametrize("which", ["full", "retained"])
def test_rouge_of_every_logged_pair(which: str, request: pytest.FixtureRequest) -> None:
    published = request.getfixturevalue(which)
    for name in ("forget_Q_A_ROUGE", "retain_Q_A_ROUGE", "ra_Q_A_ROUGE", "wf_Q_A_ROUGE"):
        rows = list(published[name]["value_by_index"].values())
        recalls = rouge_recalls([row["ground_truth"] for row in rows], [row["generation"] for row in rows])
        assert recalls.tolist() == [row["rougeL_recall"] for row in rows]
