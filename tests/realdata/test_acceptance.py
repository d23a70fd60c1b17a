"""A real model on real data: what the modes reach against a retrained model, and that replay is exact there too."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from independent_trainer import train_without
from lmcleaner.audit.check import audit_model
from lmcleaner.audit.options import AuditOptions
from lmcleaner.data.rows import read_rows
from lmcleaner.evaluation.metrics import METRICS
from lmcleaner.formats.errors import DivergedError
from lmcleaner.inspection.verify import verify
from lmcleaner.recording.options import RecordOptions
from lmcleaner.recording.training import record
from tiny_runs import TinyRun, parameters_in, same_bits, unlearn_tiny, write_rows

SHARED = Path(__file__).resolve().parents[3] / "shared"
MODEL = SHARED / "models" / "stories260K_hf"

pytestmark = [
    pytest.mark.realdata,
    pytest.mark.slow,
    pytest.mark.skipif(not MODEL.is_dir(), reason="the real model and data don't lie beside the project"),
]

Unlearn = Callable[..., dict[str, Any]]


def _record(folder: Path, **options: Any) -> TinyRun:
    """96 short TOFU rows, of which 8 are to be forgotten; 8 epochs of batch 8."""
    subprocess.run([sys.executable, SHARED / "tools" / "tofu_slice.py", folder], check=True, env=dict(os.environ))
    data = folder / "train.jsonl"
    chosen = {"epochs": 8, "batch_size": 8, "lr": 1e-3, "scheduler": "linear", "warmup_ratio": 0.1, **options}
    settings = RecordOptions(model=str(MODEL), data=str(data), output=folder / "trained", max_grad_norm=1.0, **chosen)
    record(folder / "log", settings)
    return TinyRun(MODEL, data, folder / "log", folder / "trained", settings)


@pytest.fixture(scope="module")
def adamw(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    return _record(tmp_path_factory.mktemp("adamw"))


@pytest.fixture(scope="module")
def sgd(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    return _record(tmp_path_factory.mktemp("sgd"), optimizer="sgd", lr=0.1)


@pytest.fixture
def unlearned(tmp_path: Path) -> Unlearn:
    """Unlearns with K=all and the oracle, and gives the audit document."""

    def run(recorded: TinyRun, mode: str, **options: Any) -> dict[str, Any]:
        result = unlearn_tiny(recorded, tmp_path / "out", mode, oracle=True, **options)
        assert result.document is not None
        _print_row(recorded, mode, options, result.document)
        return result.document

    return run


def _rows_to_evaluate(recorded: TinyRun, folder: Path) -> Path:
    """The trained rows that TOFU has wrong answers for, and ten rows of each other part."""
    folder.mkdir()
    trained = {json.loads(line)["question"] for line in recorded.data.read_text().splitlines()}
    files = {"forget": "forget10_perturbed", "retain": "retain_perturbed", "holdout": "holdout10"}
    files |= {name: f"{name}_perturbed" for name in ("real_authors", "world_facts")}
    for name, file in files.items():
        rows = read_rows(str(SHARED / "data" / "tofu" / f"{file}.json")).rows
        own = [row for row in rows if row["question"] in trained] if name in {"forget", "retain"} else rows[:10]
        write_rows(folder / f"{name}.jsonl", own)
    return folder


def _print_row(recorded: TinyRun, mode: str, options: dict[str, Any], document: dict[str, Any]) -> None:
    """Shown with `pytest -rP`; the figures of docs/benchmarks.md come from here."""
    answers = document["oracle"]["unlearned"]
    print(  # noqa: T201 -- the figures are the point
        recorded.options.optimizer, mode, options, "forgotten", answers["forgotten"], "retained", answers["retained"],
        "relative error", document["oracle"]["relative_error"], "seconds", document["timing"]["sweep_seconds"],
        "linearization error", document["windows"][0]["linearization_error"],
    )  # fmt: skip


def _probability(document: dict[str, Any], model: str, rows: str) -> float:
    return float(document["oracle"][model][rows]["answer_probability"])


def test_the_model_knows_what_it_shall_forget_and_secant_forgets_it_exactly(
    adamw: TinyRun, unlearned: Unlearn, tmp_path: Path
) -> None:
    document = unlearned(adamw, "secant")
    assert _probability(document, "trained", "forgotten") >= 0.4
    assert _probability(document, "oracle", "forgotten") <= 0.06
    assert document["oracle"]["relative_error"] == 0.0
    assert document["result"]["verdict"] == "good"
    retrained = train_without(adamw.options, tmp_path / "scratch", forget=adamw.data.parent / "forget.jsonl")
    assert same_bits(parameters_in(tmp_path / "out"), retrained)
    options = AuditOptions(oracle=True, evaluate=str(_rows_to_evaluate(adamw, tmp_path / "rows")))
    report = audit_model(tmp_path / "out", adamw.log, options)
    assert report.passed
    assert report.evaluation is not None
    assert len(report.evaluation["metrics"]) == len(METRICS)
    assert all(metric["unlearned"] == metric["gold"] for metric in report.evaluation["metrics"].values())
    assert report.evaluation["metrics"]["forget_Q_A_Prob"]["closer_to_gold"] == "yes"


def test_the_retained_denominator_gives_the_bits_of_a_run_that_recounts(adamw: TinyRun, tmp_path: Path) -> None:
    unlearn_tiny(adamw, tmp_path / "out", denominator="retained")
    forget = adamw.data.parent / "forget.jsonl"
    retrained = train_without(adamw.options, tmp_path / "scratch", forget=forget, recount=True)
    assert same_bits(parameters_in(tmp_path / "out"), retrained)


def test_ggn_forgets_and_keeps_the_rest(adamw: TinyRun, unlearned: Unlearn) -> None:
    document = unlearned(adamw, "GGN")
    assert _probability(document, "unlearned", "forgotten") <= 0.10
    kept, wanted = _probability(document, "unlearned", "retained"), _probability(document, "oracle", "retained")
    assert abs(kept - wanted) <= 0.03
    assert document["oracle"]["relative_error"] <= 0.75


def test_the_exact_hessian_comes_closer(adamw: TinyRun, unlearned: Unlearn) -> None:
    assert unlearned(adamw, "exact")["oracle"]["relative_error"] <= 0.45


def test_the_papers_form_does_not_unlearn_what_adamw_trained(adamw: TinyRun, unlearned: Unlearn) -> None:
    document = unlearned(adamw, "GGN", propagation="paper")
    assert abs(document["oracle"]["relative_error"] - 1) <= 0.02
    assert document["result"]["verdict"] == "poor"


@pytest.mark.parametrize(("mode", "limit"), [("secant", 0.0), ("GGN", 0.65)])
def test_sgd_is_unlearned_as_well(mode: str, limit: float, sgd: TinyRun, unlearned: Unlearn) -> None:
    assert unlearned(sgd, mode)["oracle"]["relative_error"] <= limit


def test_the_papers_form_diverges_on_clipped_sgd_and_writes_no_model(sgd: TinyRun, tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="grows without bound"):
        unlearn_tiny(sgd, tmp_path / "out", "GGN", propagation="paper")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("which", ["adamw", "sgd"])
def test_the_whole_log_replays_bit_for_bit(which: str, request: pytest.FixtureRequest) -> None:
    log = request.getfixturevalue(which).open()
    assert verify(log, replay_steps=log.num_steps).is_sound
