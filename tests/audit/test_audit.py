"""An audit passes on what was made, and fails on every way to bend it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lmcleaner.audit.check import audit_model
from lmcleaner.audit.options import AuditOptions
from lmcleaner.formats.audit_document import read_audit, schema_problems
from lmcleaner.formats.errors import DamagedError, NotFoundError, VersionError
from serving import failed_checks
from tiny_runs import TinyRun, record_tiny, unlearn_tiny

Document = dict[str, Any]


@pytest.fixture(scope="module")
def made(adamw_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "out"
    unlearn_tiny(adamw_run, folder, "GGN", oracle=True)
    return folder


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copied"))


def test_what_was_made_passes_with_its_oracle(made: Path, adamw_run: TinyRun) -> None:
    report = audit_model(made, adamw_run.log, AuditOptions(oracle=True))
    assert failed_checks(report) == {}
    assert report.oracle is not None
    assert report.oracle["relative_error"] == pytest.approx(report.document["oracle"]["relative_error"], abs=1e-9)
    assert report.oracle["oracle"]["forgotten"]["kl_from_oracle"] == 0.0
    assert set(report.checks) >= {"schema", "log", "samples", "coverage", "windows", "model", "trained model", "change"}


@pytest.mark.parametrize("request_", ["steps:2,5", "forget"])
def test_batch_level_passes_too(request_: str, adamw_run: TinyRun, tmp_path: Path) -> None:
    unlearn_tiny(adamw_run, tmp_path / "out", "secant", forget=request_, level="batch", oracle=True)
    assert failed_checks(audit_model(tmp_path / "out", adamw_run.log, AuditOptions(oracle=True))) == {}


def test_the_document_holds_no_content_of_a_sample(made: Path, adamw_run: TinyRun) -> None:
    text = (made / "audit.json").read_text()
    for line in adamw_run.data.read_text().splitlines():
        assert json.loads(line)["question"] not in text
    assert "forget.jsonl" not in text


def _drop_sample(document: Document) -> None:
    document["request"]["samples"].pop()


def _drop_step(document: Document) -> None:
    document["request"]["steps"].pop()


def _unknown_sample(document: Document) -> None:
    document["request"]["samples"][0] = "ab" * 32


def _fewer_occurrences(document: Document) -> None:
    document["coverage"]["occurrences"] -= 1


def _longer_window(document: Document) -> None:
    document["windows"][0]["tz"] += 1


def _other_log(document: Document) -> None:
    document["hashes"]["log_root"] = "0" * 64


def _other_model(document: Document) -> None:
    document["hashes"]["model_after"] = "0" * 64


def _other_trained_model(document: Document) -> None:
    document["hashes"]["model_before"] = "0" * 64


def _bigger_change(document: Document) -> None:
    document["result"]["change_norm"] *= 1.01


def _hidden_reasons(document: Document) -> None:
    document["result"]["reasons"] = ["because"]


def _missed(document: Document) -> None:
    document["coverage"]["missed"] = 1


def _no_hashes(document: Document) -> None:
    del document["hashes"]


BENT: dict[str, tuple[Callable[[Document], None], str]] = {
    "a sample left out": (_drop_sample, "samples"),
    "a step left out": (_drop_step, "coverage"),
    "a sample that the run never saw": (_unknown_sample, "samples"),
    "fewer occurrences": (_fewer_occurrences, "coverage"),
    "another window": (_longer_window, "windows"),
    "another log": (_other_log, "log"),
    "another model": (_other_model, "model"),
    "another trained model": (_other_trained_model, "trained model"),
    "another change": (_bigger_change, "change"),
    "reasons for a good verdict": (_hidden_reasons, "verdict"),
    "a missed occurrence": (_missed, "schema"),
    "no hashes": (_no_hashes, "schema"),
}


@pytest.mark.parametrize("case", BENT)
def test_a_bent_document_fails(case: str, copied: Path, adamw_run: TinyRun) -> None:
    bend, check = BENT[case]
    document = json.loads((copied / "audit.json").read_text())
    bend(document)
    (copied / "audit.json").write_text(json.dumps(document))
    report = audit_model(copied, adamw_run.log)
    assert not report.passed
    assert check in failed_checks(report)


def _forget_files(folder: Path) -> None:
    """Makes the document one that names no files, as earlier releases wrote it."""
    document = json.loads((folder / "audit.json").read_text())
    del document["files"]
    (folder / "audit.json").write_text(json.dumps(document))


def test_old_weights_in_the_folder_fail(copied: Path, adamw_run: TinyRun) -> None:
    """The reference implementation wrote the trained weights back and reported success."""
    shutil.copy(adamw_run.trained / "model.safetensors", copied / "model.safetensors")
    assert set(failed_checks(audit_model(copied, adamw_run.log))) == {"files"}
    _forget_files(copied)
    assert {"model", "change"} <= set(failed_checks(audit_model(copied, adamw_run.log)))


def test_one_changed_weight_fails(copied: Path, adamw_run: TinyRun) -> None:
    weights = load_file(copied / "model.safetensors")
    name = next(iter(weights))
    weights[name].view(-1)[0] = torch.nextafter(weights[name].view(-1)[0], torch.tensor(9.0))
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    assert set(failed_checks(audit_model(copied, adamw_run.log))) == {"files"}
    _forget_files(copied)
    assert "model" in failed_checks(audit_model(copied, adamw_run.log))


def test_another_log_fails(made: Path, base_model: Path, tmp_path: Path) -> None:
    other = record_tiny(base_model, tmp_path, seed=7)
    assert "log" in failed_checks(audit_model(made, other.log))


def test_a_folder_without_a_document_is_not_found(tmp_path: Path, adamw_run: TinyRun) -> None:
    with pytest.raises(NotFoundError, match=r"no audit document"):
        audit_model(tmp_path, adamw_run.log)


def test_a_document_that_is_no_json_is_damaged(copied: Path, adamw_run: TinyRun) -> None:
    (copied / "audit.json").write_text("{")
    with pytest.raises(DamagedError, match="not JSON"):
        audit_model(copied, adamw_run.log)


def test_a_later_version_is_refused(copied: Path) -> None:
    document = json.loads((copied / "audit.json").read_text())
    (copied / "audit.json").write_text(json.dumps(document | {"version": 2}))
    with pytest.raises(VersionError, match="expected 1, found 2"):
        read_audit(copied)


def test_a_field_of_a_later_minor_version_is_kept(made: Path) -> None:
    assert schema_problems(read_audit(made) | {"later": 1}) == []
