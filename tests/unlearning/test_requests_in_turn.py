"""Requests after requests: the ledger remembers whom a log has served, so that nobody's data comes back."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from killing import killed_while_unlearning
from lmcleaner.audit.check import audit_model
from lmcleaner.audit.history import tombstones
from lmcleaner.audit.options import AuditOptions
from lmcleaner.choices import HessianMode
from lmcleaner.formats.canonical import sha256_hex
from lmcleaner.formats.errors import DamagedError, ExistsError, MismatchError, UsageError
from lmcleaner.formats.ledger import ServedRequest, read_ledger
from lmcleaner.formats.ledger_writer import writing_ledger
from lmcleaner.formats.lock import WriterLock
from lmcleaner.formats.store import open_store
from lmcleaner.inspection.verify import verify
from lmcleaner.unlearning.options import UnlearnOptions
from lmcleaner.unlearning.run import UnlearnResult, unlearn
from serving import failed_checks, lmcleaner, served
from tiny_runs import (
    Recording,
    TinyRun,
    parameters_in,
    record_tiny,
    same_bits,
    unlearn_tiny,
)


@pytest.fixture
def run(adamw_run: TinyRun, tmp_path: Path) -> TinyRun:
    """A copy whose ledger may be written."""
    return adamw_run.copied(tmp_path / "copied")


# --- One after the other.


def test_a_request_after_a_request_gives_the_bits_of_both(run: TinyRun, tmp_path: Path) -> None:
    root, first, second = run.open().root, run.digests(3, 5), "steps:6"
    served(run, tmp_path / "both", [first, second], ledger=False)
    served(run, tmp_path / "a", first)
    reported = Recording()
    chosen = UnlearnOptions(forget=second, output=tmp_path / "ab", K=None, hessian_mode=HessianMode.SECANT)
    document = unlearn(run.log, chosen, progress=reported).document
    assert document is not None
    assert same_bits(parameters_in(tmp_path / "ab"), parameters_in(tmp_path / "both"))
    assert not same_bits(parameters_in(tmp_path / "ab"), parameters_in(tmp_path / "a"))
    entries = read_ledger(run.open()).entries
    assert any("1 earlier request about 2 samples" in line for line in reported.lines[:1])
    assert [part["entry"] for part in document["request"]["earlier"]] == [entries[0].sha256]
    assert [part["level"] for part in document["requests"]] == ["batch"]
    assert document["config"]["ledger"] is document["config"]["entered"] is True
    assert run.open().root == root
    assert verify(run.open()).problems == []
    for name, entry in zip(("a", "ab"), entries, strict=True):
        assert entry.audit_sha256 == sha256_hex((tmp_path / name / "audit.json").read_bytes())
        assert failed_checks(audit_model(tmp_path / name, run.log, AuditOptions(oracle=True))) == {}


def test_the_same_request_again_is_an_entry_more_and_the_same_union(run: TinyRun, tmp_path: Path) -> None:
    first = served(run, tmp_path / "a", run.digests(3, 5))
    asked_anew = {forget: unlearn(run.log, forget, dry_run=True) for forget in (run.digests(3, 4), "steps:6")}
    assert [any("repetition" in line for line in planned.lines) for planned in asked_anew.values()] == [True, False]
    again = served(run, tmp_path / "b", run.digests(3, 5))
    assert again["hashes"] == first["hashes"]
    assert again["coverage"] == first["coverage"]
    assert len(read_ledger(run.open()).entries) == 2
    assert failed_checks(audit_model(tmp_path / "b", run.log)) == {}


def test_a_poor_result_is_entered_too(run: TinyRun, tmp_path: Path) -> None:
    document = served(run, tmp_path / "out", "steps:1", K=2)
    assert document["result"]["verdict"] == "poor"
    assert len(read_ledger(run.open()).entries) == 1


def test_without_the_ledger_nothing_is_read_or_written(run: TinyRun, tmp_path: Path) -> None:
    served(run, tmp_path / "a", run.digests(3, 5))
    (run.log / "ledger" / "00000000" / "zarr.json").write_text("{")
    with pytest.raises(DamagedError, match="ledger/00000000"):
        served(run, tmp_path / "b", run.digests(8, 9))
    assert not (tmp_path / "b").exists()
    document = served(run, tmp_path / "b", run.digests(8, 9), ledger=False)
    assert document["config"]["ledger"] is False
    assert "entered" not in document["config"]
    assert document["coverage"]["samples"] == 1
    report = audit_model(tmp_path / "b", run.log)
    assert report.passed
    assert "ledger" not in report.checks
    with pytest.raises(UsageError, match="don't go together"):
        served(run, tmp_path / "c", run.digests(8, 9), ledger=False, redact=True)


def test_a_dry_run_and_a_plan_read_the_ledger_and_write_nothing(run: TinyRun, tmp_path: Path) -> None:
    served(run, tmp_path / "a", run.digests(3, 5))
    before = {file: file.read_bytes() for file in run.log.rglob("*") if file.is_file()}
    for command in (["unlearn", "--dry-run"], ["inspect", "--plan"]):
        name, option = command
        shown = json.loads(
            lmcleaner(name, run.log, option, "--forget", "steps:1", "--forget", "steps:6", "--json").stdout
        )
        assert (shown["requests"], shown["earlier"]) == (2, 1)
        alone = json.loads(lmcleaner(name, run.log, option, "--forget", "steps:1", "--json", "--no-ledger").stdout)
        assert (alone["requests"], alone["earlier"]) == (1, 0)
    assert "with 1 earlier request" in lmcleaner("inspect", run.log, "--forget", "steps:1", "--plan").stdout
    assert {file: file.read_bytes() for file in run.log.rglob("*") if file.is_file()} == before


def test_a_run_that_went_on_uses_the_samples_in_further_steps(base_model: Path, tmp_path: Path) -> None:
    """A request to an interrupted run counts for the steps that came later, too, unless it named steps."""
    run = record_tiny(base_model, tmp_path)
    log, digest = run.open(), next(iter(run.open().sample_rows))
    uses = [number for number in range(log.num_steps) if digest in {s.digest for s in log.step(number).samples}]
    assert len(uses) == 2
    asked = ServedRequest(level="sample", named="samples", samples=(digest.hex(),), steps=(uses[0],))
    of_step = sorted({sample.digest.hex() for sample in log.step(uses[0]).samples})
    step = ServedRequest(level="batch", named="steps", samples=tuple(of_step), steps=(uses[0],))
    with writing_ledger(run.log) as writer:
        writer.prepare(requests=[asked, step], forget_set="ab" * 32, audit_sha256="ab" * 32, model_after="ab" * 32)
    document = served(run, tmp_path / "out", "forget")
    assert [part["steps"] for part in document["request"]["earlier"]] == [uses, [uses[0]]]
    assert failed_checks(audit_model(tmp_path / "out", run.log)) == {}


def test_a_ledger_that_names_what_the_log_doesnt_hold_is_damaged(run: TinyRun, tmp_path: Path) -> None:
    unknown = ServedRequest(level="sample", named="samples", samples=("ab" * 32,), steps=(1,))
    with writing_ledger(run.log) as writer:
        writer.prepare(requests=[unknown], forget_set="ab" * 32, audit_sha256="ab" * 32, model_after="ab" * 32)
    with pytest.raises(DamagedError, match="names samples or steps that the log doesn't hold"):
        served(run, tmp_path / "out", "forget")


# --- Redaction.


def test_a_redaction_serves_the_ledger_for_good(run: TinyRun, tmp_path: Path) -> None:
    first, second, third = run.digests(3, 5), run.digests(8, 10), run.digests(12, 13)
    served(run, tmp_path / "all", f"{first},{second},{third}", ledger=False)
    served(run, tmp_path / "a", first)
    document = served(run, tmp_path / "ab", second, redact=True)
    assert document["request"]["samples"] == sorted(f"{first},{second}".split(","))
    assert {digest.hex() for digest in tombstones(run.open())} == set(document["request"]["samples"])
    assert len(read_ledger(run.open()).entries) == 2
    assert read_ledger(run.open()).pending == ()
    shown = json.loads(lmcleaner("inspect", run.log, "--requests", "--json").stdout)
    assert [entry["state"] for entry in shown["entries"]] == ["settled", "settled"]
    last = served(run, tmp_path / "abc", third)
    assert "earlier" not in last["request"]
    assert same_bits(parameters_in(tmp_path / "abc"), parameters_in(tmp_path / "all"))
    for name in ("a", "ab", "abc"):
        assert failed_checks(audit_model(tmp_path / name, run.log)) == {}, name
    assert [entry.number for entry in read_ledger(run.open()).pending] == [2]
    assert verify(run.open()).problems == []


def test_both_levels_are_redacted_together(run: TinyRun, tmp_path: Path) -> None:
    plain = unlearn_tiny(run, tmp_path / "plain", forget=[run.digests(3, 5), "steps:6"])
    assert plain.document is not None
    served(run, tmp_path / "a", "steps:6")
    document = served(run, tmp_path / "ab", run.digests(3, 5), redact=True)
    log = run.open()
    assert document["request"]["level"] == "mixed"
    assert document["hashes"]["model_after"] == plain.document["hashes"]["model_after"]
    assert log.num_steps == 9
    assert {digest.hex() for digest in tombstones(log)} == set(run.digests(3, 5).split(","))
    assert verify(log, replay_steps=log.num_steps).is_sound
    assert failed_checks(audit_model(tmp_path / "ab", run.log)) == {}
    assert failed_checks(audit_model(tmp_path / "a", run.log)) == {}
    served(run, tmp_path / "more", "steps:0", redact=True)
    assert failed_checks(audit_model(tmp_path / "ab", run.log)) == {}


# --- When nothing can be entered.


def test_a_log_that_cant_be_written_is_read_and_says_so(run: TinyRun, tmp_path: Path) -> None:
    served(run, tmp_path / "a", run.digests(3, 5))
    archive = shutil.make_archive(str(tmp_path / "log"), "zip", run.log)
    content = Path(archive).read_bytes()
    options = ("--forget", "steps:6", "--output", tmp_path / "ab", "--hessian-mode", "secant", "--K", "all")
    made = lmcleaner("unlearn", archive, *options)
    assert made.exit_code == 0, made.output
    assert "NOT ENTERED" in made.stderr
    assert "ledger   NOT ENTERED" in made.stdout
    document = json.loads((tmp_path / "ab" / "audit.json").read_text())
    assert document["config"]["entered"] is False
    assert len(document["request"]["earlier"]) == 1
    assert Path(archive).read_bytes() == content
    report = audit_model(tmp_path / "ab", archive)
    assert report.passed
    assert "could not be written" in report.unchecked["ledger"]


def test_a_log_that_somebody_writes_is_refused_before_the_sweep(run: TinyRun, tmp_path: Path) -> None:
    options = ("unlearn", run.log, "--forget", "steps:6", "--output", tmp_path / "out", "--hessian-mode", "secant")
    with WriterLock.acquire(open_store(run.log, writable=True)):
        refused = lmcleaner(*options)
        assert refused.exit_code == 11, refused.output
        assert "being written" in refused.stderr
        assert not (tmp_path / "out").exists()
        assert lmcleaner(*options, "--no-ledger", "--K", "all").exit_code == 0


class During(Recording):
    """Does something when the sweep begins."""

    def __init__(self, act: Any) -> None:
        super().__init__()
        self._act = act

    def begin(self, what: str, total: int) -> None:
        if what == "unlearning":
            self._act()


def _interfered(run: TinyRun, output: Path, act: Any, forget: str = "steps:6") -> UnlearnResult:
    options = UnlearnOptions(forget=forget, output=output, K=None, hessian_mode=HessianMode.SECANT)
    return unlearn(run.log, options, progress=During(act))


def test_a_lock_that_came_meanwhile_loses_no_output(run: TinyRun, tmp_path: Path) -> None:
    locks: list[WriterLock] = []
    with pytest.raises(ExistsError, match="NOT in the log's ledger") as caught:
        _interfered(run, tmp_path / "out", lambda: locks.append(WriterLock.acquire(open_store(run.log, writable=True))))
    assert "give the same request again" in str(caught.value.hint)
    locks[0].release()
    document = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert document["config"]["entered"] is False
    assert failed_checks(audit_model(tmp_path / "out", run.log)) == {}
    assert read_ledger(run.open()).entries == ()


def test_a_request_that_was_overtaken_is_poor_and_entered(run: TinyRun, tmp_path: Path) -> None:
    result = _interfered(run, tmp_path / "out", lambda: served(run, tmp_path / "other", run.digests(3, 5)))
    assert not result.is_good
    assert result.document is not None
    assert "another request was entered" in result.document["result"]["reasons"][0]
    assert result.document == json.loads((tmp_path / "out" / "audit.json").read_text())
    assert len(read_ledger(run.open()).entries) == 2
    assert failed_checks(audit_model(tmp_path / "out", run.log)) == {}
    again = served(run, tmp_path / "again", "steps:6")
    assert again["result"]["verdict"] == "good"
    assert len(again["request"]["earlier"]) == 2


def test_a_log_that_was_changed_meanwhile_is_not_entered(run: TinyRun, tmp_path: Path) -> None:
    def prune() -> None:
        assert lmcleaner("prune", run.log, "--keep-checkpoints-every", 8, "--apply").exit_code == 0

    with pytest.raises(MismatchError, match="the log was changed while the request ran"):
        _interfered(run, tmp_path / "out", prune, "steps:9")
    assert (tmp_path / "out" / "audit.json").exists()
    assert read_ledger(run.open()).entries == ()


# --- Kills.

DYING = """
def write(self, key, parts):
    if moment == "before it is prepared" and key.startswith("ledger/prepared"):
        die()
    if moment == "before it is entered" and key.startswith("ledger/0"):
        die()
    super().write(key, parts)
    if moment == "before the output is there" and key.startswith("ledger/prepared"):
        die()
    if moment == "after it is entered" and key.startswith("ledger/0"):
        die()
"""
MOMENTS = {
    "before it is prepared": (False, 0),
    "before the output is there": (False, 1),
    "before it is entered": (True, 1),
    "after it is entered": (True, 1),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_between_output_and_entry_loses_no_request(moment: str, run: TinyRun, tmp_path: Path) -> None:
    has_output, num_entries = MOMENTS[moment]
    killed_while_unlearning(DYING, run.log, moment, tmp_path / "a", run.digests(3, 5))
    assert (tmp_path / "a").exists() == has_output
    ledger = read_ledger(run.open())
    assert len(ledger.entries) == num_entries
    assert verify(run.open()).problems == []
    shown = lmcleaner("inspect", run.log, "--requests")
    assert ("begun, and perhaps not served" in shown.stdout) == ledger.has_prepared
    if has_output:
        assert failed_checks(audit_model(tmp_path / "a", run.log)) == {}
    document = served(run, tmp_path / "ab", "steps:6")
    assert len(document["request"].get("earlier", ())) == num_entries
    assert read_ledger(run.open()).entries[:-1] == ledger.entries
    assert not read_ledger(run.open()).has_prepared
    assert failed_checks(audit_model(tmp_path / "ab", run.log)) == {}


# --- What is said.


def test_the_ledger_is_shown(run: TinyRun, tmp_path: Path) -> None:
    assert "0 entries" in lmcleaner("inspect", run.log, "--requests").stdout
    document = served(run, tmp_path / "a", [run.digests(3, 5), "steps:6"])
    shown = lmcleaner("inspect", run.log, "--requests").stdout
    assert "sample level, 2 samples" in shown
    assert "batch level, 4 samples in 1 step" in shown
    assert "1 entry, 1 of which the next unlearn serves again" in shown
    (entry,) = json.loads(lmcleaner("inspect", run.log, "--requests", "--json").stdout)["entries"]
    assert entry["state"] == "pending"
    assert [part["forget_set"] for part in entry["requests"]] == [part["forget_set"] for part in document["requests"]]
    assert entry["audit_sha256"] == sha256_hex((tmp_path / "a" / "audit.json").read_bytes())
    assert entry["model_after"] == document["hashes"]["model_after"]


def test_a_damaged_ledger_makes_a_log_unsound(run: TinyRun, tmp_path: Path) -> None:
    for number, name in enumerate("abc"):
        served(run, tmp_path / name, run.digests(number, number + 1))
    shutil.rmtree(run.log / "ledger" / "00000001")
    shown = lmcleaner("inspect", run.log, "--verify")
    assert shown.exit_code == 1
    assert "damaged: ledger/00000001: entry 1 is missing" in shown.stdout
    assert lmcleaner("inspect", run.log, "--requests").exit_code == 12
    assert "ledger" in failed_checks(audit_model(tmp_path / "a", run.log))


def test_an_entry_that_is_gone_or_another_ones_fails_the_audit(run: TinyRun, tmp_path: Path) -> None:
    served(run, tmp_path / "a", run.digests(3, 5))
    shutil.rmtree(run.log / "ledger")
    assert "no entry" in failed_checks(audit_model(tmp_path / "a", run.log))["ledger"]
