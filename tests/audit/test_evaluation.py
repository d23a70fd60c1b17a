"""`audit --evaluate`: what it compares, writes and refuses."""

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lmcleaner.audit.check import audit_model
from lmcleaner.audit.options import AuditOptions
from lmcleaner.cli.main import app
from lmcleaner.evaluation.harness import scores_of
from lmcleaner.evaluation.scores import Part
from lmcleaner.formats.audit_document import read_audit, schema_problems
from lmcleaner.formats.errors import NotFoundError, UsageError
from tiny_runs import TinyRun, record_tiny, rows, unlearn_tiny, write_rows


@dataclass(frozen=True)
class Made:
    """A run that learned its rows, two results of it, and rows to evaluate on."""

    run: TinyRun
    secant: Path
    approximate: Path
    rows: Path


@pytest.fixture(scope="module")
def made(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("learned")
    run = record_tiny(base_model, folder, epochs=10)
    unlearn_tiny(run, folder / "secant", ledger=True)
    unlearn_tiny(run, folder / "approximate", "GGN", ledger=True)
    (folder / "rows").mkdir()
    others = {"paraphrased_answer": "ben lives", "perturbed_answer": ["the mill", "a river"]}
    parts = {"forget": rows(20)[-2:], "retain": rows(20)[:6], "real_authors": rows(3, 7), "world_facts": rows(3, 8)}
    for name, content in parts.items():
        write_rows(folder / "rows" / f"{name}.jsonl", [row | others for row in content])
    write_rows(folder / "rows" / "holdout.jsonl", rows(4, 9))
    return Made(run, folder / "secant", folder / "approximate", folder / "rows")


@pytest.fixture
def copied(made: Made, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made.secant, tmp_path / "copied"))


@pytest.fixture(scope="module")
def evaluated(made: Made) -> dict[str, Any]:
    """The secant's result with every part, against the oracle."""
    options = AuditOptions(evaluate=str(made.rows), oracle=True)
    report = audit_model(made.secant, made.run.log, options)
    assert report.passed
    assert report.oracle is not None
    assert report.evaluation is not None
    return report.evaluation


def test_secant_with_all_steps_equals_gold_in_every_metric(evaluated: dict[str, Any]) -> None:
    assert len(evaluated["metrics"]) == 27
    assert all(metric["unlearned"] == metric["gold"] for metric in evaluated["metrics"].values())
    assert not any(metric["closer_to_gold"] == "no" for metric in evaluated["metrics"].values())
    probability = evaluated["metrics"]["forget_Q_A_Prob"]
    assert probability["before"]["value"] > probability["gold"]["value"]
    assert probability["closer_to_gold"] == "yes"
    assert evaluated["metrics"]["forget_quality"]["gold"] == {"value": 1.0, "low": None, "high": None}
    assert (evaluated["gold"], evaluated["void"], evaluated["requested"]) == ("oracle", None, 2)
    assert {name: part["rows"] for name, part in evaluated["rows"].items()} == {
        "forget": 2, "retain": 6, "holdout": 4, "real_authors": 3, "world_facts": 3
    }  # fmt: skip


def test_the_document_holds_it_and_still_passes(made: Made, evaluated: dict[str, Any]) -> None:
    document = read_audit(made.secant)
    assert document["evaluation"] == evaluated
    assert schema_problems(document) == []
    again = audit_model(made.secant, made.run.log)
    assert again.passed
    assert again.checks["ledger"] is None
    assert again.evaluation is None


def test_what_is_written_names_no_row(made: Made, evaluated: dict[str, Any]) -> None:
    files = [made.secant / "audit.json", *(made.secant / "evals").rglob("*.json")]
    assert len(files) == 7
    for line in made.run.data.read_text().splitlines():
        assert not any(json.loads(line)["question"] in file.read_text() for file in files)


def test_the_files_of_open_unlearning(made: Made, evaluated: dict[str, Any]) -> None:
    sides = {"unlearned": "", "before": "before", "gold": "gold"}
    for side, place in sides.items():
        folder = made.secant / "evals" / place
        document = json.loads((folder / "TOFU_EVAL.json").read_text())
        for name, metric in evaluated["metrics"].items():
            assert document[name]["agg_value"] == metric[side]["value"]
        summary = json.loads((folder / "TOFU_SUMMARY.json").read_text())
        assert summary.items() <= {name: entry["agg_value"] for name, entry in document.items()}.items()
        assert scores_of(document)[Part.FORGET]["wrong_loss"].shape == (2, 2)


def test_a_document_that_is_bent_after_its_evaluation_fails(
    copied: Path, made: Made, evaluated: dict[str, Any]
) -> None:
    document = read_audit(copied)
    document["config"]["damping"] = 1.0
    (copied / "audit.json").write_text(json.dumps(document))
    checks = audit_model(copied, made.run.log).checks
    assert checks["ledger"] is not None
    assert checks["requests"] is not None


def test_a_gold_model_takes_the_oracles_place(made: Made) -> None:
    """The secant's result is the oracle's bits; GGN's comes nearer to it than the trained model was."""
    report = audit_model(made.approximate, made.run.log, AuditOptions(evaluate="log", gold=made.secant))
    assert report.evaluation is not None
    assert report.oracle is None
    assert report.evaluation["gold"] == "model"
    divergence = report.evaluation["metrics"]["forget_kl"]
    assert divergence["gold"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert divergence["before"]["value"] > divergence["unlearned"]["value"] > 0
    assert divergence["closer_to_gold"] == "yes"


def test_the_rows_of_the_log_need_nothing_beside_it(copied: Path, made: Made) -> None:
    result = CliRunner().invoke(app, ["audit", str(copied), "--log", str(made.run.log), "--evaluate", "log"])
    assert result.exit_code == 0, result.output
    header = next(line for line in result.stdout.splitlines() if "Metric" in line)
    assert header.split() == ["Metric", "Better", "Before", "LMCleaner", "Gold", "Closer", "to", "gold"]
    assert "rows: 2 forget, 18 retain; 2 of those to forget are in the request" in result.stdout
    evaluation = read_audit(copied)["evaluation"]
    value = evaluation["metrics"]["forget_Q_A_Prob"]["before"]["value"]
    line = next(line for line in result.stdout.splitlines() if "forget_Q_A_Prob" in line)
    assert line.split()[:3] == ["forget_Q_A_Prob", "↓", f"{value:.4g}"]


def test_a_model_that_never_knew_its_rows_is_void(base_model: Path, tmp_path: Path) -> None:
    run = record_tiny(base_model, tmp_path, epochs=1, lr=1e-5)
    unlearn_tiny(run, tmp_path / "out")
    arguments = ["audit", str(tmp_path / "out"), "--log", str(run.log), "--evaluate", "log", "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    shown = json.loads(result.stdout)
    assert "the model never knew what it was to forget" in shown["checks"]["evaluation"]
    assert shown["evaluation"]["void"] == shown["checks"]["evaluation"]
    for_people = CliRunner().invoke(app, arguments[:-1])
    assert for_people.exit_code == 1
    assert "audit FAILED\nhint: " in for_people.stdout
    assert "more --epochs or a higher --lr" in for_people.stdout


def test_after_a_redaction_there_is_nothing_to_compare_with(base_model: Path, tmp_path: Path) -> None:
    run = record_tiny(base_model, tmp_path)
    unlearn_tiny(run, tmp_path / "out", redact=True)
    report = audit_model(tmp_path / "out", run.log, AuditOptions(evaluate="log", oracle=True))
    assert {"evaluation", "oracle"} <= report.unchecked.keys()
    assert "evaluation" not in read_audit(tmp_path / "out")
    arguments = ["audit", str(tmp_path / "out"), "--log", str(run.log)]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    for asked in (["--evaluate", "log"], ["--oracle"], ["--evaluate", "log", "--json"]):
        shown = CliRunner().invoke(app, [*arguments, *asked])
        name = "oracle" if "--oracle" in asked else "evaluation"
        assert shown.exit_code == 14
        assert f"error: not measured, though asked for: {name}: the log no longer holds the rows" in shown.stderr
        assert f"audit without {asked[0]}" in shown.stderr
    assert json.loads(shown.stdout)["unchecked"].keys() >= {"evaluation"}


@pytest.mark.parametrize("library", ["scipy", "rouge_score"])
def test_without_its_libraries_it_says_which_extra_has_them(
    library: str, copied: Path, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(NotFoundError, match="needs the") as caught:
        audit_model(copied, made.run.log, AuditOptions(evaluate="log"))
    assert caught.value.hint == "`pip install 'lmcleaner[evaluate]'`"


def test_what_cannot_be_evaluated_is_refused(copied: Path, made: Made, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected --evaluate beside --gold"):
        AuditOptions(gold=tmp_path)
    with pytest.raises(NotFoundError, match="nothing to evaluate on: nowhere"):
        audit_model(copied, made.run.log, AuditOptions(evaluate="nowhere", gold=made.secant))
    write_rows(tmp_path / "forget.jsonl", [{"question": "who", "perturbed_answer": "ada"}])
    with pytest.raises(UsageError, match=r"perturbed_answer: .*: expected a list of texts"):
        audit_model(copied, made.run.log, AuditOptions(evaluate=str(tmp_path), gold=made.secant))
