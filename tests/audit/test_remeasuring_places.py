"""`audit verify` of an evaluation: where its rows, gold and tasks lie, and what it says of what isn't there."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tampering import write_whole
from typer.testing import CliRunner, Result

from lmcleaner.audit.check import AuditReport, audit_model
from lmcleaner.audit.options import AuditOptions, VerifyOptions
from lmcleaner.audit.signature import sign_audit
from lmcleaner.audit.verify import verify_audit
from lmcleaner.cli.main import app
from lmcleaner.formats.audit_document import read_audit
from lmcleaner.formats.errors import DamagedError, NotFoundError, UsageError
from tiny_runs import TinyRun, record_tiny, rows, unlearn_tiny, write_rows

Evaluation = dict[str, Any]


@dataclass(frozen=True)
class Made:
    """A run, a result of it, and rows and a gold model that its evaluation was measured with."""

    run: TinyRun
    folder: Path
    rows: Path
    gold: Path


@pytest.fixture(scope="module")
def made(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("learned")
    run = record_tiny(base_model, folder, num_rows=8, checkpoint_every=2)
    unlearn_tiny(run, folder / "gold")
    unlearn_tiny(run, folder / "out", "GGN")
    (folder / "rows").mkdir()
    write_rows(folder / "rows" / "forget.jsonl", rows(8)[-2:])
    audit_model(folder / "out", run.log, AuditOptions(evaluate=str(folder / "rows"), gold=folder / "gold"))
    return Made(run, folder / "out", folder / "rows", folder / "gold")


@pytest.fixture
def copied(made: Made, tmp_path: Path) -> Made:
    """With rows and gold where the document says that they lie; both may be moved."""
    new = Made(made.run, tmp_path / "out", tmp_path / "rows", tmp_path / "gold")
    for old, place in ((made.folder, new.folder), (made.rows, new.rows), (made.gold, new.gold)):
        shutil.copytree(old, place)
    bend(new, lambda it: it["asked"].update(evaluate=str(new.rows), gold=str(new.gold)))
    return new


def bend(made: Made, how: Callable[[Evaluation], Any]) -> None:
    document = read_audit(made.folder)
    how(document["evaluation"])
    (made.folder / "audit.json").write_text(json.dumps(document, indent=2) + "\n")


def verified(made: Made, **options: Any) -> AuditReport:
    return verify_audit(made.folder, made.run.log, VerifyOptions(steps=1, **options))


def failed(report: AuditReport) -> dict[str, str]:
    return {name: problem for name, problem in report.checks.items() if problem is not None}


def cli(made: Made, *options: object) -> Result:
    arguments = ["audit", "verify", made.folder, "--log", made.run.log, "--steps", 1, *options]
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def _halve(evaluation: Evaluation) -> None:
    evaluation["metrics"]["forget_Q_A_Prob"]["unlearned"]["value"] /= 2


def test_the_command_finds_a_metric_and_a_score_that_were_changed(copied: Made) -> None:
    good = cli(copied)
    assert good.exit_code == 0, good.output
    assert "evaluation     ok" in good.stdout
    assert "values measured again: the same to the bit" in good.stdout
    bend(copied, _halve)
    (copied.folder / "evals" / "gold" / "TOFU_SUMMARY.json").unlink()
    bad = cli(copied)
    assert bad.exit_code == 1
    assert "evaluation     FAILED: evaluation/metrics/forget_Q_A_Prob/unlearned/value: stated is 0." in bad.stdout
    assert "evals          FAILED: evals/gold/TOFU_SUMMARY.json: it is missing" in bad.stdout
    again = json.loads(cli(copied, "--evaluation-tolerance", 0.6, "--json").stdout)
    assert again["checks"]["evaluation"] is None
    assert again["remeasured"]["largest_difference"] == pytest.approx(0.5)
    assert again["remeasured"]["at"] == "evaluation/metrics/forget_Q_A_Prob/unlearned/value"


def test_rows_and_gold_that_moved_are_asked_for(copied: Made, tmp_path: Path) -> None:
    copied.rows.rename(tmp_path / "moved")
    report = verified(copied)
    assert report.passed
    assert report.unchecked["evaluation"].startswith(f"nothing to evaluate on: {copied.rows}: ")
    copied.gold.rename(tmp_path / "moved gold")
    without_gold = verified(copied, evaluate=str(tmp_path / "moved"))
    assert without_gold.unchecked["evaluation"].startswith(f"no such model: {copied.gold}")
    found = verified(copied, evaluate=str(tmp_path / "moved"), gold=tmp_path / "moved gold")
    assert (failed(found), found.checks["evaluation"]) == ({}, None)
    last = cli(copied).stdout.splitlines()[-1]
    assert last == "verified; not checked: document, evaluation, evals"


def test_files_that_came_later_are_named(copied: Made) -> None:
    assert "other files" not in verified(copied, evaluation=False).unchecked
    for name in ("adapter.py", "evals/notes.json"):
        (copied.folder / name).write_text("{}")
    assert verified(copied, evaluation=False).unchecked["other files"] == (
        "adapter.py, evals/notes.json: they came later, and nothing vouches for them"
    )


def test_other_rows_and_another_gold_are_found(copied: Made, made: Made) -> None:
    other = failed(verified(copied, gold=made.folder))["evaluation"]
    assert other.startswith("gold_model: the document says ")
    assert other.endswith(": --gold DIR says where that model lies now")
    write_rows(copied.rows / "forget.jsonl", rows(8)[-1:])
    found = failed(verified(copied))["evaluation"]
    assert found.startswith("SHA-256 of the rows: the document says ")
    assert found.endswith(": --evaluate SPEC says where those rows lie now")


def test_what_was_left_out_is_told(copied: Made) -> None:
    bend(copied, _halve)
    report = verified(copied, evaluation=False)
    assert (report.passed, report.unchecked["evaluation"]) == (True, "left out by --no-evaluation")
    assert "evaluation     not checked: left out by --no-evaluation" in cli(copied, "--no-evaluation").stdout
    bend(copied, lambda it: (it.pop("asked"), it.pop("environment")))
    assert "'asked' is a required property" in failed(verified(copied))["schema"]
    document = read_audit(copied.folder)
    del document["evaluation"]
    (copied.folder / "audit.json").write_text(json.dumps(document, indent=2) + "\n")
    assert verified(copied).unchecked["evals"] == "evals/ holds scores of an evaluation, and the document none"


def _ask(asked: Evaluation, evaluation: Evaluation) -> None:
    evaluation["asked"] = asked


def test_parts_that_do_not_go_with_what_was_asked_for_are_found(copied: Made) -> None:
    honest = read_audit(copied.folder)["evaluation"]["asked"]
    for name, value in {"deploy": ["int8"], "stress": True, "relearn_lr": 0.1, "tasks": ["mmlu"], "gold": None}.items():
        other = honest | {name: value}
        bend(copied, partial(_ask, other))
        assert "the document says" in failed(verified(copied))["evaluation"], name
    bend(copied, partial(_ask, honest))
    assert failed(verified(copied)) == {}


def test_where_it_was_measured_decides_how_far_numbers_may_be_apart(copied: Made) -> None:
    def shift(evaluation: Evaluation) -> None:
        evaluation["metrics"]["forget_Q_A_Prob"]["gold"]["value"] *= 1 + 1e-6

    bend(copied, shift)
    assert "1.0e-06 apart" in failed(verified(copied))["evaluation"]
    bend(copied, lambda it: it["environment"].update(torch="1.13"))
    report = verified(copied)
    assert failed(report) == {}
    assert report.unchecked["environment"].startswith(
        "by its own word the evaluation was measured with torch 1.13, here"
    )
    assert report.remeasured is not None
    found = report.remeasured
    assert (found["largest_difference"], found["tolerance"]) == (pytest.approx(1e-6, rel=1e-3), 1e-3)
    assert "evaluation" in failed(verified(copied, evaluation_tolerance=0.0))


def test_another_problem_is_told_before_anything_is_measured(copied: Made) -> None:
    (copied.folder / "model.safetensors").write_bytes(b"")
    assert verified(copied).remeasured is None
    shutil.copy(copied.gold / "model.safetensors", copied.folder / "model.safetensors")
    document = read_audit(copied.folder)
    del document["files"]
    (copied.folder / "audit.json").write_text(json.dumps(document, indent=2) + "\n")
    report = verified(copied)
    assert "model" in failed(report)
    assert report.unchecked["evaluation"] == f"another check failed: {next(iter(failed(report)))}"


def test_a_signature_does_not_make_an_evaluation_true(copied: Made, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    key = Ed25519PrivateKey.generate()
    (tmp_path / "key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (tmp_path / "pub").write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    bend(copied, _halve)
    sign_audit(copied.folder, tmp_path / "key")
    report = verified(copied, public_key=tmp_path / "pub")
    assert report.checks["signature"] is None
    assert failed(report).keys() == {"evaluation"}


def test_the_oracle_is_compared_on_demand(made: Made, tmp_path: Path) -> None:
    assert "audit --oracle makes one" in verified(made, oracle=True, evaluation=False).unchecked["oracle"]
    unlearn_tiny(made.run, tmp_path / "out", "GGN", oracle=True)
    measured = Made(made.run, tmp_path / "out", made.rows, made.gold)
    assert verified(measured, oracle=True).checks["oracle"] is None
    document = read_audit(measured.folder)
    document["oracle"]["unlearned"]["forgotten"]["kl_from_oracle"] *= 1.01
    write_whole(measured.folder, document)
    found = failed(verified(measured, oracle=True))
    assert found.keys() == {"oracle"}
    assert found["oracle"].startswith("oracle/unlearned/forgotten/kl_from_oracle: stated is ")


def test_tasks_that_cannot_be_run_are_unchecked_by_themselves(
    copied: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tasks of a folder are never run because a document says so: their files can hold code."""
    bend(copied, lambda it: it.update(tasks={"harness": "0.4", "limit": None, "results": {}}))
    bend(copied, lambda it: it["asked"].update(tasks=["streets"], tasks_path=str(tmp_path)))
    report = verified(copied)
    assert (failed(report), report.checks["evaluation"]) == ({}, None)
    assert report.unchecked["tasks"].endswith("--tasks-path DIR says where it lies")
    assert verified(copied, tasks_path=tmp_path).unchecked["tasks"].startswith("--tasks: no such task: streets: ")
    bend(copied, lambda it: it["asked"].update(tasks=["mmlu"], tasks_path=None))
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert "pip install 'lmcleaner[tasks]'" in verified(copied).unchecked["tasks"]
    assert verified(copied).checks["evaluation"] is None


def test_without_its_libraries_an_evaluation_is_unchecked(copied: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rouge_score", None)
    assert "pip install 'lmcleaner[evaluate]'" in verified(copied).unchecked["evaluation"]


def test_a_key_that_stands_twice_is_refused(copied: Made) -> None:
    text = (copied.folder / "audit.json").read_text()
    (copied.folder / "audit.json").write_text(text.replace('"level": 0.95', '"level": 0.5, "level": 0.95'))
    with pytest.raises(DamagedError, match="the key 'level' twice in one object"):
        verified(copied)


def test_options_that_name_nothing_are_refused(copied: Made, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="nothing to evaluate on"):
        verified(copied, evaluate="nowhere")
    with pytest.raises(NotFoundError, match="no such model"):
        verified(copied, gold=tmp_path / "nowhere")
    with pytest.raises(NotFoundError, match="no such folder of tasks"):
        verified(copied, tasks_path=tmp_path / "nowhere")
    with pytest.raises(UsageError, match="expected no --no-evaluation beside --gold"):
        VerifyOptions(evaluation=False, gold=tmp_path)
    with pytest.raises(UsageError, match="--evaluation-tolerance: expected 0 or more, found -1"):
        VerifyOptions(evaluation_tolerance=-1.0)
    bend(copied, lambda it: it.update(gold="oracle"))
    with pytest.raises(UsageError, match="--gold: the document says that its evaluation was against the oracle"):
        verified(copied, gold=copied.gold)
    document = read_audit(copied.folder)
    del document["evaluation"]
    (copied.folder / "audit.json").write_text(json.dumps(document))
    with pytest.raises(UsageError, match="--evaluate serves an evaluation, and the document holds none"):
        verified(copied, evaluate="log")
