"""Several requests in one run, and requests after requests: nobody's data comes back, and everybody has a document."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from named_requests import find_forget_set
from typer.testing import CliRunner, Result

from independent_trainer import train_without
from lmcleaner.audit.check import AuditReport, audit_model
from lmcleaner.audit.history import tombstones
from lmcleaner.audit.options import AuditOptions
from lmcleaner.choices import HessianMode, Level
from lmcleaner.cli.main import app
from lmcleaner.formats.audit_document import schema_problems
from lmcleaner.formats.canonical import sha256_hex
from lmcleaner.formats.errors import DamagedError, ExistsError, MismatchError, UsageError
from lmcleaner.formats.ledger import Ledger, ServedRequest, read_ledger
from lmcleaner.formats.ledger_writer import writing_ledger
from lmcleaner.formats.lock import WriterLock
from lmcleaner.formats.store import open_store
from lmcleaner.inspection.verify import verify
from lmcleaner.unlearning.options import UnlearnOptions
from lmcleaner.unlearning.run import UnlearnResult, unlearn
from tiny_runs import (
    SETTINGS,
    Recording,
    TinyRun,
    parameters_in,
    record_tiny,
    rows,
    same_bits,
    unlearn_tiny,
    write_rows,
)

Document = dict[str, Any]


@pytest.fixture
def run(adamw_run: TinyRun, tmp_path: Path) -> TinyRun:
    """A copy whose ledger may be written."""
    log = Path(shutil.copytree(adamw_run.log, tmp_path / "copied"))
    return TinyRun(adamw_run.base, adamw_run.data, log, adamw_run.trained, adamw_run.options)


def _digests(run: TinyRun, start: int, stop: int) -> str:
    """Samples of the log in the order of their first use."""
    return ",".join(digest.hex() for digest in list(run.open().sample_rows)[start:stop])


def _served(run: TinyRun, output: Path, forget: str | list[str], **options: Any) -> Document:
    document = unlearn_tiny(run, output, forget=forget, **{"ledger": True, **options}).document
    assert document is not None
    return document


def _ledger(run: TinyRun) -> Ledger:
    return read_ledger(run.open())


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def _failed(report: AuditReport) -> dict[str, str]:
    return {name: problem for name, problem in report.checks.items() if problem is not None}


# --- Several in one run.


def test_several_requests_give_the_bits_of_one_that_names_all(run: TinyRun, tmp_path: Path) -> None:
    first, second = _digests(run, 3, 5), _digests(run, 8, 11)
    several = _served(run, tmp_path / "several", [first, second], ledger=False)
    one = _served(run, tmp_path / "one", f"{first},{second}", ledger=False)
    assert same_bits(parameters_in(tmp_path / "several"), parameters_in(tmp_path / "one"))
    assert several["hashes"] == one["hashes"]
    assert several["coverage"] == one["coverage"]
    assert [part["coverage"]["samples"] for part in several["requests"]] == [2, 3]


def test_what_two_requests_share_counts_for_each_and_once_for_both(run: TinyRun, tmp_path: Path) -> None:
    document = _served(run, tmp_path / "out", [_digests(run, 3, 6), _digests(run, 5, 7)], ledger=False)
    counts = [part["coverage"] for part in document["requests"]]
    assert [(count["samples"], count["occurrences"]) for count in counts] == [(3, 6), (2, 4)]
    assert (document["coverage"]["samples"], document["coverage"]["occurrences"]) == (4, 8)
    assert sum(window["occurrences"] for window in document["windows"]) == 8
    assert _failed(audit_model(tmp_path / "out", run.log)) == {}


@pytest.mark.parametrize("setting", ["adamw", "sgd with momentum"])
def test_both_levels_at_once_give_the_bits_of_a_run_that_masks_and_skips(
    setting: str, base_model: Path, tmp_path: Path
) -> None:
    run = record_tiny(base_model, tmp_path, **SETTINGS[setting])
    document = _served(run, tmp_path / "out", ["forget", "steps:2,6-7"], oracle=True)
    forget = tmp_path / "forget.jsonl"
    retrained = train_without(run.options, tmp_path / "scratch", forget=forget, skip=frozenset({2, 6, 7}))
    assert same_bits(parameters_in(tmp_path / "out"), retrained)
    assert document["oracle"]["relative_error"] == 0.0
    assert document["request"]["level"] == "mixed"
    assert document["request"]["skipped"] == [2, 6, 7]
    assert document["request"]["masked"] == document["requests"][0]["samples"]
    assert _failed(audit_model(tmp_path / "out", run.log, AuditOptions(oracle=True))) == {}


def test_a_level_that_is_given_is_that_of_all(run: TinyRun, tmp_path: Path) -> None:
    document = _served(run, tmp_path / "out", ["forget", "steps:2"], level=Level.SAMPLE, ledger=False)
    assert [part["level"] for part in document["requests"]] == ["sample", "sample"]
    assert document["request"]["level"] == "sample"


def test_every_row_that_leaves_is_counted_once_whatever_its_level(run: TinyRun) -> None:
    log = run.open()
    in_skipped, elsewhere = log.step(2).samples[0].digest, log.step(3).samples[0].digest
    named = ["steps:2", in_skipped.hex(), elsewhere.hex()]
    found = find_forget_set(log, named, None, lambda: None)
    assert found.level is None
    assert found.num_occurrences == 4 + 1 + 2, "the step, the other use of its sample, the other sample"
    assert sum(found.count_in(number, log.step(number)) for number in range(log.num_steps)) == found.num_occurrences


def test_the_same_request_twice_is_one(run: TinyRun, tmp_path: Path) -> None:
    document = _served(run, tmp_path / "out", [_digests(run, 3, 5), _digests(run, 3, 5)], ledger=False)
    assert len(document["requests"]) == 1


@pytest.mark.parametrize("forget", [["steps:0-4", "steps:5-9"], ["steps:0-8", "steps:9"], []])
def test_requests_for_everything_or_nothing_are_refused(forget: list[str], run: TinyRun, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"names everything|--forget is missing"):
        _served(run, tmp_path / "out", forget)
    assert _ledger(run).entries == ()


# --- A document for each.


def _all_digests(document: Document) -> set[str]:
    return {digest for part in document["requests"] for digest in part["samples"]}


def test_each_request_has_a_document_that_names_nothing_of_the_others(run: TinyRun, tmp_path: Path) -> None:
    _served(run, tmp_path / "before", _digests(run, 0, 2))
    document = _served(run, tmp_path / "out", [_digests(run, 3, 5), "steps:6"])
    everybody = _all_digests(document) | {d for part in document["request"]["earlier"] for d in part["samples"]}
    for part in document["requests"]:
        text = (tmp_path / "out" / part["document"]).read_text()
        own = json.loads(text)
        assert schema_problems(own) == []
        assert own["request"] == {name: part[name] for name in ("level", "samples", "steps")}
        assert own["coverage"] == part["coverage"]
        assert own["hashes"]["forget_set"] == part["forget_set"]
        assert own["hashes"]["union"] == document["hashes"]["forget_set"]
        assert own["hashes"]["audit"] == sha256_hex((tmp_path / "out" / "audit.json").read_bytes())
        assert part["document"] == f"requests/{part['forget_set'][:16]}.json"
        assert {digest for digest in everybody if digest in text} == set(part["samples"])
        assert "earlier" not in text
        assert not [other for other in document["requests"] if other is not part and other["forget_set"] in text]


def _more_samples(folder: Path, document: Document) -> None:
    document["requests"][0]["samples"].append(document["requests"][1]["samples"][0])


def _other_part(folder: Path, document: Document) -> None:
    document["requests"][0]["coverage"]["occurrences"] += 1


def _other_step(folder: Path, document: Document) -> None:
    document["requests"][1]["steps"].append(9)


def _no_earlier(folder: Path, document: Document) -> None:
    del document["request"]["earlier"]


def _bent_own(folder: Path, document: Document) -> None:
    place = folder / document["requests"][0]["document"]
    place.write_text(place.read_text().replace('"good"', '"poor"'))


def _lost_own(folder: Path, document: Document) -> None:
    (folder / document["requests"][0]["document"]).unlink()


def _one_more(folder: Path, document: Document) -> None:
    (folder / "requests" / "note.txt").write_text("")


BENT = {
    "a sample more in one request": (_more_samples, "samples"),
    "another count in one request": (_other_part, "coverage"),
    "a step more in one request": (_other_step, "samples"),
    "earlier requests left out": (_no_earlier, "samples"),
    "another verdict in a request's own document": (_bent_own, "requests"),
    "a request's own document lost": (_lost_own, "requests"),
    "a document of nobody": (_one_more, "requests"),
}


@pytest.mark.parametrize("case", BENT)
def test_a_bent_document_of_several_requests_fails(case: str, run: TinyRun, tmp_path: Path) -> None:
    _served(run, tmp_path / "before", _digests(run, 0, 2))
    document = _served(run, tmp_path / "out", [_digests(run, 3, 5), "steps:6"])
    assert _failed(audit_model(tmp_path / "out", run.log)) == {}
    bend, check = BENT[case]
    bend(tmp_path / "out", document)
    if check != "requests":
        (tmp_path / "out" / "audit.json").write_text(json.dumps(document))
    failed = _failed(audit_model(tmp_path / "out", run.log))
    assert check in failed
    assert ("ledger" in failed) == (check != "requests")


# --- One after the other.


def test_a_request_after_a_request_gives_the_bits_of_both(run: TinyRun, tmp_path: Path) -> None:
    root, first, second = run.open().root, _digests(run, 3, 5), "steps:6"
    _served(run, tmp_path / "both", [first, second], ledger=False)
    _served(run, tmp_path / "a", first)
    reported = Recording()
    chosen = UnlearnOptions(forget=second, output=tmp_path / "ab", K=None, hessian_mode=HessianMode.SECANT)
    document = unlearn(run.log, chosen, progress=reported).document
    assert document is not None
    assert same_bits(parameters_in(tmp_path / "ab"), parameters_in(tmp_path / "both"))
    assert not same_bits(parameters_in(tmp_path / "ab"), parameters_in(tmp_path / "a"))
    entries = _ledger(run).entries
    assert any("1 earlier request about 2 samples" in line for line in reported.lines[:1])
    assert [part["entry"] for part in document["request"]["earlier"]] == [entries[0].sha256]
    assert [part["level"] for part in document["requests"]] == ["batch"]
    assert document["config"]["ledger"] is document["config"]["entered"] is True
    assert run.open().root == root
    assert verify(run.open()).problems == []
    for name, entry in zip(("a", "ab"), entries, strict=True):
        assert entry.audit_sha256 == sha256_hex((tmp_path / name / "audit.json").read_bytes())
        assert _failed(audit_model(tmp_path / name, run.log, AuditOptions(oracle=True))) == {}


def test_the_same_request_again_is_an_entry_more_and_the_same_union(run: TinyRun, tmp_path: Path) -> None:
    first = _served(run, tmp_path / "a", _digests(run, 3, 5))
    asked_anew = {forget: unlearn(run.log, forget, dry_run=True) for forget in (_digests(run, 3, 4), "steps:6")}
    assert [any("repetition" in line for line in planned.lines) for planned in asked_anew.values()] == [True, False]
    again = _served(run, tmp_path / "b", _digests(run, 3, 5))
    assert again["hashes"] == first["hashes"]
    assert again["coverage"] == first["coverage"]
    assert len(_ledger(run).entries) == 2
    assert _failed(audit_model(tmp_path / "b", run.log)) == {}


def test_a_poor_result_is_entered_too(run: TinyRun, tmp_path: Path) -> None:
    document = _served(run, tmp_path / "out", "steps:1", K=2)
    assert document["result"]["verdict"] == "poor"
    assert len(_ledger(run).entries) == 1


def test_without_the_ledger_nothing_is_read_or_written(run: TinyRun, tmp_path: Path) -> None:
    _served(run, tmp_path / "a", _digests(run, 3, 5))
    (run.log / "ledger" / "00000000" / "zarr.json").write_text("{")
    with pytest.raises(DamagedError, match="ledger/00000000"):
        _served(run, tmp_path / "b", _digests(run, 8, 9))
    assert not (tmp_path / "b").exists()
    document = _served(run, tmp_path / "b", _digests(run, 8, 9), ledger=False)
    assert document["config"]["ledger"] is False
    assert "entered" not in document["config"]
    assert document["coverage"]["samples"] == 1
    report = audit_model(tmp_path / "b", run.log)
    assert report.passed
    assert "ledger" not in report.checks
    with pytest.raises(UsageError, match="don't go together"):
        _served(run, tmp_path / "c", _digests(run, 8, 9), ledger=False, redact=True)


def test_a_dry_run_and_a_plan_read_the_ledger_and_write_nothing(run: TinyRun, tmp_path: Path) -> None:
    _served(run, tmp_path / "a", _digests(run, 3, 5))
    before = {file: file.read_bytes() for file in run.log.rglob("*") if file.is_file()}
    for command in (["unlearn", "--dry-run"], ["inspect", "--plan"]):
        name, option = command
        shown = json.loads(_run(name, run.log, option, "--forget", "steps:1", "--forget", "steps:6", "--json").stdout)
        assert (shown["requests"], shown["earlier"]) == (2, 1)
        alone = json.loads(_run(name, run.log, option, "--forget", "steps:1", "--json", "--no-ledger").stdout)
        assert (alone["requests"], alone["earlier"]) == (1, 0)
    assert "with 1 earlier request" in _run("inspect", run.log, "--forget", "steps:1", "--plan").stdout
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
    document = _served(run, tmp_path / "out", "forget")
    assert [part["steps"] for part in document["request"]["earlier"]] == [uses, [uses[0]]]
    assert _failed(audit_model(tmp_path / "out", run.log)) == {}


def test_a_ledger_that_names_what_the_log_doesnt_hold_is_damaged(run: TinyRun, tmp_path: Path) -> None:
    unknown = ServedRequest(level="sample", named="samples", samples=("ab" * 32,), steps=(1,))
    with writing_ledger(run.log) as writer:
        writer.prepare(requests=[unknown], forget_set="ab" * 32, audit_sha256="ab" * 32, model_after="ab" * 32)
    with pytest.raises(DamagedError, match="names samples or steps that the log doesn't hold"):
        _served(run, tmp_path / "out", "forget")


# --- Redaction.


def test_a_redaction_serves_the_ledger_for_good(run: TinyRun, tmp_path: Path) -> None:
    first, second, third = _digests(run, 3, 5), _digests(run, 8, 10), _digests(run, 12, 13)
    _served(run, tmp_path / "all", f"{first},{second},{third}", ledger=False)
    _served(run, tmp_path / "a", first)
    document = _served(run, tmp_path / "ab", second, redact=True)
    assert document["request"]["samples"] == sorted(f"{first},{second}".split(","))
    assert {digest.hex() for digest in tombstones(run.open())} == set(document["request"]["samples"])
    assert len(_ledger(run).entries) == 2
    assert _ledger(run).pending == ()
    shown = json.loads(_run("inspect", run.log, "--requests", "--json").stdout)
    assert [entry["state"] for entry in shown["entries"]] == ["settled", "settled"]
    last = _served(run, tmp_path / "abc", third)
    assert "earlier" not in last["request"]
    assert same_bits(parameters_in(tmp_path / "abc"), parameters_in(tmp_path / "all"))
    for name in ("a", "ab", "abc"):
        assert _failed(audit_model(tmp_path / name, run.log)) == {}, name
    assert [entry.number for entry in _ledger(run).pending] == [2]
    assert verify(run.open()).problems == []


def test_both_levels_are_redacted_together(run: TinyRun, tmp_path: Path) -> None:
    plain = unlearn_tiny(run, tmp_path / "plain", forget=[_digests(run, 3, 5), "steps:6"])
    assert plain.document is not None
    _served(run, tmp_path / "a", "steps:6")
    document = _served(run, tmp_path / "ab", _digests(run, 3, 5), redact=True)
    log = run.open()
    assert document["request"]["level"] == "mixed"
    assert document["hashes"]["model_after"] == plain.document["hashes"]["model_after"]
    assert log.num_steps == 9
    assert {digest.hex() for digest in tombstones(log)} == set(_digests(run, 3, 5).split(","))
    assert verify(log, replay_steps=log.num_steps).is_sound
    assert _failed(audit_model(tmp_path / "ab", run.log)) == {}
    assert _failed(audit_model(tmp_path / "a", run.log)) == {}
    _served(run, tmp_path / "more", "steps:0", redact=True)
    assert _failed(audit_model(tmp_path / "ab", run.log)) == {}


# --- When nothing can be entered.


def test_a_log_that_cant_be_written_is_read_and_says_so(run: TinyRun, tmp_path: Path) -> None:
    _served(run, tmp_path / "a", _digests(run, 3, 5))
    archive = shutil.make_archive(str(tmp_path / "log"), "zip", run.log)
    content = Path(archive).read_bytes()
    options = ("--forget", "steps:6", "--output", tmp_path / "ab", "--hessian-mode", "secant", "--K", "all")
    made = _run("unlearn", archive, *options)
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
        refused = _run(*options)
        assert refused.exit_code == 11, refused.output
        assert "being written" in refused.stderr
        assert not (tmp_path / "out").exists()
        assert _run(*options, "--no-ledger", "--K", "all").exit_code == 0


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
    assert _failed(audit_model(tmp_path / "out", run.log)) == {}
    assert _ledger(run).entries == ()


def test_a_request_that_was_overtaken_is_poor_and_entered(run: TinyRun, tmp_path: Path) -> None:
    result = _interfered(run, tmp_path / "out", lambda: _served(run, tmp_path / "other", _digests(run, 3, 5)))
    assert not result.is_good
    assert result.document is not None
    assert "another request was entered" in result.document["result"]["reasons"][0]
    assert result.document == json.loads((tmp_path / "out" / "audit.json").read_text())
    assert len(_ledger(run).entries) == 2
    assert _failed(audit_model(tmp_path / "out", run.log)) == {}
    again = _served(run, tmp_path / "again", "steps:6")
    assert again["result"]["verdict"] == "good"
    assert len(again["request"]["earlier"]) == 2


def test_a_log_that_was_changed_meanwhile_is_not_entered(run: TinyRun, tmp_path: Path) -> None:
    def prune() -> None:
        assert _run("prune", run.log, "--keep-checkpoints-every", 8, "--apply").exit_code == 0

    with pytest.raises(MismatchError, match="the log was changed while the request ran"):
        _interfered(run, tmp_path / "out", prune, "steps:9")
    assert (tmp_path / "out" / "audit.json").exists()
    assert _ledger(run).entries == ()


# --- Kills.

UNLEARN = """
import os, signal, sys
from pathlib import Path
import torch
from lmcleaner.formats.local_files import LocalFiles
from lmcleaner.unlearning.options import UnlearnOptions
from lmcleaner.unlearning.run import unlearn

log, output, forget, moment = sys.argv[1:]
torch.set_num_threads(1)

class Mortal(LocalFiles):
    def write(self, key, parts):
        if moment == "before it is prepared" and key.startswith("ledger/prepared"):
            os.kill(os.getpid(), signal.SIGKILL)
        if moment == "before it is entered" and key.startswith("ledger/0"):
            os.kill(os.getpid(), signal.SIGKILL)
        super().write(key, parts)
        if moment == "before the output is there" and key.startswith("ledger/prepared"):
            os.kill(os.getpid(), signal.SIGKILL)
        if moment == "after it is entered" and key.startswith("ledger/0"):
            os.kill(os.getpid(), signal.SIGKILL)

options = UnlearnOptions(forget=forget, output=Path(output), K=None, hessian_mode="secant")
unlearn(Mortal(Path(log), writable=True), options)
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
    first = _digests(run, 3, 5)
    command = [sys.executable, "-c", UNLEARN, str(run.log), str(tmp_path / "a"), first, moment]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (tmp_path / "a").exists() == has_output
    ledger = _ledger(run)
    assert len(ledger.entries) == num_entries
    assert verify(run.open()).problems == []
    shown = _run("inspect", run.log, "--requests")
    assert ("begun, and perhaps not served" in shown.stdout) == ledger.has_prepared
    if has_output:
        assert _failed(audit_model(tmp_path / "a", run.log)) == {}
    document = _served(run, tmp_path / "ab", "steps:6")
    assert len(document["request"].get("earlier", ())) == num_entries
    assert _ledger(run).entries[:-1] == ledger.entries
    assert not _ledger(run).has_prepared
    assert _failed(audit_model(tmp_path / "ab", run.log)) == {}


# --- What is said.


def test_the_ledger_is_shown(run: TinyRun, tmp_path: Path) -> None:
    assert "0 entries" in _run("inspect", run.log, "--requests").stdout
    document = _served(run, tmp_path / "a", [_digests(run, 3, 5), "steps:6"])
    shown = _run("inspect", run.log, "--requests").stdout
    assert "sample level, 2 samples" in shown
    assert "batch level, 4 samples in 1 step" in shown
    assert "1 entry, 1 of which the next unlearn serves again" in shown
    (entry,) = json.loads(_run("inspect", run.log, "--requests", "--json").stdout)["entries"]
    assert entry["state"] == "pending"
    assert [part["forget_set"] for part in entry["requests"]] == [part["forget_set"] for part in document["requests"]]
    assert entry["audit_sha256"] == sha256_hex((tmp_path / "a" / "audit.json").read_bytes())
    assert entry["model_after"] == document["hashes"]["model_after"]


def test_a_damaged_ledger_makes_a_log_unsound(run: TinyRun, tmp_path: Path) -> None:
    for number, name in enumerate("abc"):
        _served(run, tmp_path / name, _digests(run, number, number + 1))
    shutil.rmtree(run.log / "ledger" / "00000001")
    shown = _run("inspect", run.log, "--verify")
    assert shown.exit_code == 1
    assert "damaged: ledger/00000001: entry 1 is missing" in shown.stdout
    assert _run("inspect", run.log, "--requests").exit_code == 12
    assert "ledger" in _failed(audit_model(tmp_path / "a", run.log))


def test_an_entry_that_is_gone_or_another_ones_fails_the_audit(run: TinyRun, tmp_path: Path) -> None:
    _served(run, tmp_path / "a", _digests(run, 3, 5))
    shutil.rmtree(run.log / "ledger")
    assert "no entry" in _failed(audit_model(tmp_path / "a", run.log))["ledger"]


def _lines(folder: Path, names: Iterable[str]) -> list[object]:
    return [argument for name in names for argument in ("--forget", folder / f"{name}.jsonl")]


def test_several_requests_as_a_user_would_type_them(run: TinyRun, tmp_path: Path) -> None:
    for number, name in enumerate(("ada", "ben")):
        write_rows(tmp_path / f"{name}.jsonl", rows(20)[number : number + 1])
    options = ("--output", tmp_path / "out", "--hessian-mode", "secant", "--K", "all")
    made = _run("unlearn", run.log, *_lines(tmp_path, ("ada", "ben")), *options)
    assert made.exit_code == 0, made.output
    assert made.stdout.count("its own document: requests/") == 2
    assert "ledger   entered" in made.stdout
    config = tmp_path / "config.yaml"
    config.write_text("forget: [steps:1, steps:2]\n")
    planned = json.loads(_run("unlearn", run.log, "--config", config, "--dry-run", "--json").stdout)
    assert (planned["requests"], planned["earlier"]) == (2, 2)
    checked = _run("audit", tmp_path / "out", "--log", run.log)
    assert checked.exit_code == 0, checked.output
    assert "ledger         ok" in checked.stdout
