"""After a redaction the log is that of the run without the rows: their bytes are gone, it replays, requests compose."""

import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from numpy.typing import NDArray

from killing import killed_while_unlearning
from lmcleaner.audit.check import audit_model
from lmcleaner.audit.history import tombstones
from lmcleaner.audit.options import AuditOptions
from lmcleaner.choices import HessianMode
from lmcleaner.formats.canonical import sha256_hex
from lmcleaner.formats.errors import (
    ExistsError,
    InsufficientLogError,
    LmcleanerError,
    MismatchError,
    NotFoundError,
    UsageError,
)
from lmcleaner.formats.layout import TABLES
from lmcleaner.formats.lock import WriterLock
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.samples import IGNORED_LABEL
from lmcleaner.formats.store import open_store
from lmcleaner.formats.writer import LogWriter
from lmcleaner.inspection.redacted import find_redacted
from lmcleaner.inspection.verify import verify
from lmcleaner.recording.describe import RunDescription
from lmcleaner.recording.options import RecordOptions
from lmcleaner.recording.recorder import Recorder
from lmcleaner.training.models import load_model
from lmcleaner.unlearning.options import UnlearnOptions
from lmcleaner.unlearning.run import unlearn
from serving import lmcleaner
from tiny_runs import (
    SETTINGS,
    Recording,
    TinyRun,
    parameters_in,
    record_tiny,
    same_bits,
    unlearn_tiny,
    write_base_model,
)

SECANT = HessianMode.SECANT
RUNS: dict[str, dict[str, Any]] = {
    "adamw": {},
    "sgd with momentum": {"checkpoint_every": 3, **SETTINGS["sgd with momentum"]},
    "accumulation with a partial last step": SETTINGS["accumulation with a partial last step"],
    "weight decay with no-decay groups": SETTINGS["weight decay with no-decay groups"],
    "int8 updates and gradients": {"updates": "int8", "gradients": "int8"},
    "no updates, lossless gradients": {"updates": "none", "gradients": "lossless"},
    "bfloat16 and int4 updates": {"updates": "int4", "dtype": "bfloat16", "lr": 1e-2},
}


@pytest.fixture(scope="module")
def dropout_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base_model(tmp_path_factory.mktemp("dropout") / "model", dropout=0.1)


@pytest.fixture
def copied(adamw_run: TinyRun, tmp_path: Path) -> TinyRun:
    return adamw_run.copied(tmp_path / "copied")


def _redact(run: TinyRun, output: Path, forget: str, **options: Any) -> dict[str, Any]:
    document = unlearn_tiny(run, output, forget=forget, redact=True, **options).document
    assert document is not None
    return document


def _tables(log: TrainingLog) -> dict[str, bytes]:
    return {table.name: log.table(table.name).tobytes() for table in TABLES}


# --- Nothing of the rows is left.


def _needles(log: TrainingLog, digests: list[bytes]) -> list[bytes]:
    """Every four neighbouring tokens or labels of the samples that no other sample holds."""
    rows = log.sample_rows

    def windows(digest: bytes) -> set[bytes]:
        sample = log.sample(rows[digest])
        arrays = (sample.tokens, sample.labels)
        return {a[i : i + 4].astype("<i4").tobytes() for a in arrays for i in range(len(a) - 3)}

    others = set().union(*(windows(digest) for digest in rows if digest not in digests))
    return sorted(set().union(*(windows(digest) for digest in digests)) - others)


def _contents(log: Path) -> Iterator[bytes]:
    """All files as they lie there, and all arrays as another reader of Zarr decodes them.

    Yields:
        The bytes of each.
    """
    yield from (file.read_bytes() for file in log.rglob("*") if file.is_file())
    group = zarr.open_group(log, mode="r")
    for _, array in group.members(max_depth=None):
        if isinstance(array, zarr.Array):
            values: NDArray[Any] = np.asarray(array[...])
            yield values.tobytes()


def test_no_byte_of_the_rows_is_left(copied: TinyRun, tmp_path: Path) -> None:
    log = copied.open()
    forget = copied.digests(5, 8)
    needles = _needles(log, [bytes.fromhex(digest) for digest in forget.split(",")])
    assert needles
    found = [needle for needle in needles if any(needle in content for content in _contents(copied.log))]
    assert found == needles, "they can be found before"
    _redact(copied, tmp_path / "out", forget)
    for content in _contents(copied.log):
        assert not any(needle in content for needle in needles)


def test_a_tombstone_keeps_length_digest_and_place(adamw_run: TinyRun, copied: TinyRun, tmp_path: Path) -> None:
    before, forget = adamw_run.open(), copied.digests(5, 7)
    _redact(copied, tmp_path / "out", forget)
    after = copied.open()
    assert list(after.sample_rows) == list(before.sample_rows)
    assert tombstones(after) == {bytes.fromhex(digest) for digest in forget.split(",")}
    for name in ("samples/stop", "occurrences/sample", "occurrences/start", "microbatches/width", "steps/lr"):
        assert np.array_equal(after.table(name), before.table(name)), name
    for row in (5, 6):
        sample = after.sample(row)
        assert set(sample.tokens.tolist()) == {after.manifest.padding_token}
        assert set(sample.labels.tolist()) == {IGNORED_LABEL}
    assert np.array_equal(after.sample(4).tokens, before.sample(4).tokens)


# --- The log is that of the counterfactual run.


@pytest.mark.parametrize("setting", RUNS)
def test_the_log_is_sound_replays_and_ends_with_the_unlearned_model(
    setting: str, dropout_model: Path, tmp_path: Path
) -> None:
    run = record_tiny(dropout_model, tmp_path, **RUNS[setting])
    before, forget = run.copied(tmp_path / "before").open(), run.digests(13, 15)
    document = _redact(run, tmp_path / "out", forget, oracle=True)
    assert document["oracle"]["relative_error"] == 0.0
    log = run.open()
    found = verify(log, replay_steps=log.num_steps)
    assert found.problems == []
    assert found.replay is not None
    assert found.replay.is_exact
    trained = run.replay_model().load(log.parameters(log.num_steps))
    made = parameters_in(tmp_path / "out")
    assert all(torch.equal(p.float(), made[e.name]) for p, e in zip(trained, log.manifest.parameters, strict=True))
    first = document["request"]["steps"][0]
    assert first > 0
    for step in range(log.num_steps + 1):
        is_same = log.parameters_digest(step) == before.parameters_digest(step)
        assert is_same == (step <= first), step
    assert log.commit.checkpoints.keys() == before.commit.checkpoints.keys()
    assert log.checkpoint(log.num_steps).generators == before.checkpoint(log.num_steps).generators


@pytest.mark.parametrize("denominator", ["logged", "retained"])
@pytest.mark.parametrize("setting", RUNS)
def test_one_request_after_the_other_is_both_at_once(
    setting: str, denominator: str, dropout_model: Path, tmp_path: Path
) -> None:
    apart = record_tiny(dropout_model, tmp_path, **RUNS[setting])
    together = apart.copied(tmp_path / "together")
    first, second = apart.digests(3, 5), apart.digests(8, 12)
    both = f"{first},{second}"
    _redact(apart, tmp_path / "a", first, denominator=denominator)
    _redact(apart, tmp_path / "ab", second, denominator=denominator)
    _redact(together, tmp_path / "both", both, denominator=denominator)
    _assert_same(apart.open(), together.open())
    assert same_bits(parameters_in(tmp_path / "ab"), parameters_in(tmp_path / "both"))
    assert not same_bits(parameters_in(tmp_path / "a"), parameters_in(tmp_path / "both"))


def _assert_same(left: TrainingLog, right: TrainingLog) -> None:
    """All but the history and the generation's number."""
    assert _tables(left) == _tables(right)
    assert left.commit.checkpoints == right.commit.checkpoints
    assert left.commit.corrections == right.commit.corrections
    for step in range(left.num_steps + 1):
        assert left.parameters_digest(step) == right.parameters_digest(step)
        if left.has_updates:
            assert np.array_equal(left.parameters(step), right.parameters(step))


def test_a_request_without_redaction_goes_on_from_a_redacted_log(copied: TinyRun, tmp_path: Path) -> None:
    both = f"{copied.digests(3, 5)},{copied.digests(8, 12)}"
    unlearn_tiny(copied, tmp_path / "both", forget=both)
    _redact(copied, tmp_path / "a", copied.digests(3, 5))
    unlearn_tiny(copied, tmp_path / "ab", forget=copied.digests(8, 12))
    assert same_bits(parameters_in(tmp_path / "ab"), parameters_in(tmp_path / "both"))


@pytest.mark.parametrize("denominator", ["logged", "retained"])
def test_a_microbatch_of_forgotten_rows_alone(denominator: str, base_model: Path, tmp_path: Path) -> None:
    run = record_tiny(base_model, tmp_path, batch_size=2, grad_accum=2)
    forget = ",".join(sample.digest.hex() for sample in run.open().step(2).microbatches[1].samples)
    _redact(run, tmp_path / "out", forget, denominator=denominator)
    log = run.open()
    assert log.step(2).microbatches[1].loss == 0.0
    assert verify(log, replay_steps=log.num_steps).is_sound
    _redact(run, tmp_path / "more", run.digests(15, 16), denominator=denominator)


def test_a_label_that_padding_predicts_goes_with_its_row(base_model: Path, tmp_path: Path) -> None:
    """A row that starts behind padding and has a label at its first token; another loop than `record`'s, no counts."""
    model = load_model(str(base_model), torch.float32).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    description = RunDescription(model_source=str(base_model), padding_token=2)
    tokens = torch.arange(3, 27).reshape(4, 6)
    mask = torch.ones_like(tokens)
    tokens[1, :2], mask[1, :2] = 2, 0
    with Recorder(tmp_path / "log", model, optimizer, description):
        for step in range(3):
            labels = torch.where(mask.bool(), tokens, IGNORED_LABEL)
            rows = [0, 1] if step == 1 else [2, 3]
            model(input_ids=tokens[rows], labels=labels[rows], attention_mask=mask[rows]).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    run = _run_of(base_model, tmp_path / "log")
    record = run.open().step(1)
    assert [record.microbatches[0].num_targets(row) for row in (0, 1)] == [5, 4]
    _redact(run, tmp_path / "out", record.samples[1].digest.hex(), denominator="retained")
    log = run.open()
    assert [log.step(1).microbatches[0].num_targets(row) for row in (0, 1)] == [5, 0]
    assert log.step(1).microbatches[0].denominator == 5
    assert verify(log, replay_steps=3).is_sound


# --- Whole steps.


@pytest.mark.parametrize("setting", ["adamw", "int8 updates and gradients", "no updates, lossless gradients"])
def test_skipped_steps_leave_the_log(setting: str, base_model: Path, tmp_path: Path) -> None:
    apart = record_tiny(base_model, tmp_path, **RUNS[setting])
    before, together = apart.copied(tmp_path / "before").open(), apart.copied(tmp_path / "together")
    _redact(apart, tmp_path / "a", "steps:2,3")
    log = apart.open()
    assert log.num_steps == before.num_steps - 2
    assert np.array_equal(log.table("steps/lr"), np.delete(before.table("steps/lr"), [2, 3], axis=0))
    assert verify(log, replay_steps=log.num_steps).is_sound
    _redact(apart, tmp_path / "ab", "steps:4")  # it was step 6
    _redact(together, tmp_path / "both", "steps:2-3,6")
    _assert_same(apart.open(), together.open())
    assert same_bits(parameters_in(tmp_path / "ab"), parameters_in(tmp_path / "both"))


def test_rows_whose_steps_are_skipped_leave_the_log(copied: TinyRun, tmp_path: Path) -> None:
    forget = copied.digests(5, 6)
    document = _redact(copied, tmp_path / "out", forget, level="batch")
    log = copied.open()
    assert bytes.fromhex(forget) not in log.sample_rows
    assert [sample.digest for sample in find_redacted(log).samples] == [forget]
    assert audit_model(tmp_path / "out", copied.log).passed
    assert document["request"]["level"] == "batch"
    with pytest.raises(NotFoundError, match="never saw") as caught:
        unlearn_tiny(copied, tmp_path / "again", forget=forget)
    assert "--redacted" in str(caught.value.hint)


# --- A process that is killed.

DYING = """
def write(self, key, parts):
    if moment == "while writing" and key.startswith("generation-1/checkpoints/00000008"):
        die()
    if moment == "before the switch" and key.startswith("commit/"):
        die()
    super().write(key, parts)
    if moment == "after the switch" and key.startswith("commit/"):
        die()

def delete(self, prefix):
    if moment == "while deleting" and prefix == "generation-0":
        super().delete("generation-0/samples/stop")
        die()
    super().delete(prefix)
"""


@pytest.mark.parametrize("moment", ["while writing", "before the switch", "after the switch", "while deleting"])
def test_a_killed_redaction_leaves_the_old_log_or_the_new_one(moment: str, copied: TinyRun, tmp_path: Path) -> None:
    root, forget = copied.open().root, copied.digests(5, 7)
    needles = _needles(copied.open(), [bytes.fromhex(digest) for digest in forget.split(",")])
    killed_while_unlearning(DYING, copied.log, moment, tmp_path / "out", forget, redact=True)
    is_switched = moment in {"after the switch", "while deleting"}
    log = copied.open()
    assert (log.root == root) == (not is_switched)
    assert (tmp_path / "out").exists() == (moment != "while writing")
    found = verify(log, replay_steps=log.num_steps)
    assert found.is_sound
    assert {problem.kind for problem in found.problems} == {"leftover"}
    assert find_redacted(log).is_gone == (not is_switched)
    _finish(copied, tmp_path, forget, is_switched)
    assert find_redacted(copied.open()).is_gone
    assert verify(copied.open()).problems == []
    for content in _contents(copied.log):
        assert not any(needle in content for needle in needles)


def _finish(run: TinyRun, folder: Path, forget: str, is_switched: bool) -> None:
    """Gives the same request again."""
    shown = lmcleaner("inspect", run.log, "--redacted")
    assert shown.exit_code == int(is_switched)
    assert ("NOT GONE" in shown.stdout) == is_switched
    if not is_switched:
        _redact(run, folder / "again", forget)
        return
    assert audit_model(folder / "out", run.log).passed
    with pytest.raises(NotFoundError, match="already redacted on 2"):
        _redact(run, folder / "again", forget)
    assert not (folder / "again").exists()


def test_an_error_leaves_the_log_as_it_was(copied: TinyRun, tmp_path: Path) -> None:
    before = _files(copied.log)
    (tmp_path / "file").write_text("")
    with pytest.raises((LmcleanerError, OSError)):
        _redact(copied, tmp_path / "file" / "out", copied.digests(5, 6))
    assert _files(copied.log) == before


def _files(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


# --- The chain of audits.


def test_the_audits_of_two_redactions_hang_together(copied: TinyRun, tmp_path: Path) -> None:
    roots = [copied.open().root]
    assert unlearn_tiny(copied, tmp_path / "before", forget=copied.digests(0, 1)).document is not None
    documents = []
    for name, (start, stop) in {"a": (3, 5), "b": (8, 12)}.items():
        documents.append(_redact(copied, tmp_path / name, copied.digests(start, stop)))
        roots.append(copied.open().root)
        report = audit_model(tmp_path / name, copied.log, AuditOptions(oracle=True))
        assert {k: v for k, v in report.checks.items() if v} == {}
        assert {"coverage", "windows", "redaction", "redacted log", "previous"} <= set(report.checks)
        assert set(report.unchecked) == {"log", "trained model", "change", "oracle"}
    digests = [sha256_hex((tmp_path / name / "audit.json").read_bytes()) for name in ("a", "b")]
    assert [document["hashes"]["log_root"] for document in documents] == roots[:2]
    assert [document["previous"] for document in documents] == [None, digests[0]]
    history = copied.open().commit.history
    assert [change.root_before for change in history] == roots[:2]
    assert [change.details["audit_sha256"] for change in history] == digests
    earlier = audit_model(tmp_path / "a", copied.log)
    assert earlier.passed
    assert "redacted again" in earlier.unchecked["redacted log"]
    unrelated = audit_model(tmp_path / "before", copied.log)
    assert unrelated.passed
    assert {"coverage", "windows", "trained model"} <= set(unrelated.unchecked)
    later = unlearn_tiny(copied, tmp_path / "later", forget=copied.digests(15, 16)).document
    assert later is not None
    assert later["previous"] == digests[1]
    assert audit_model(tmp_path / "later", copied.log).passed


@pytest.mark.parametrize(
    ("part", "value", "check"),
    [
        (("coverage", "occurrences"), 99, "redaction"),
        (("hashes", "model_after"), "0" * 64, "model"),
        (("hashes", "log_root"), "0" * 64, "log"),
        (("previous",), "0" * 64, "previous"),
        (("hashes", "forget_set"), "0" * 64, "samples"),
    ],
)
def test_a_bent_audit_of_a_redaction_fails(
    part: tuple[str, ...], value: object, check: str, copied: TinyRun, tmp_path: Path
) -> None:
    document = _redact(copied, tmp_path / "out", copied.digests(5, 7))
    holder = document
    for name in part[:-1]:
        holder = holder[name]
    holder[part[-1]] = value
    (tmp_path / "out" / "audit.json").write_text(json.dumps(document))
    report = audit_model(tmp_path / "out", copied.log)
    assert report.checks[check] is not None


def test_an_audit_of_a_redaction_that_never_came_fails(adamw_run: TinyRun, copied: TinyRun, tmp_path: Path) -> None:
    _redact(copied, tmp_path / "out", copied.digests(5, 7))
    report = audit_model(tmp_path / "out", adamw_run.log)
    assert report.checks["redaction"] is not None
    assert "not redacted" in report.checks["redaction"]


# --- What is said.


def test_redacted_samples_are_listed(copied: TinyRun, tmp_path: Path) -> None:
    forget = copied.digests(5, 7)
    options = ("--output", tmp_path / "out", "--redact", "--hessian-mode", "secant", "--K", "all")
    made = lmcleaner("unlearn", copied.log, "--forget", forget, *options)
    assert made.exit_code == 0, made.output
    assert "the log is rewritten" in made.stderr
    assert "deleted for good" in made.stderr
    assert "log      redacted" in made.stdout
    listed = json.loads(lmcleaner("inspect", copied.log, "--redacted", "--json").stdout)
    assert sorted(sample["digest"] for sample in listed["samples"]) == sorted(forget.split(","))
    assert {sample["num_occurrences"] for sample in listed["samples"]} == {2}
    audit = sha256_hex((tmp_path / "out" / "audit.json").read_bytes())
    assert {sample["audit_sha256"] for sample in listed["samples"]} == {audit}
    shown = lmcleaner("inspect", copied.log, "--redacted")
    assert shown.exit_code == 0
    assert "2 samples redacted" in shown.stdout
    checked = lmcleaner("audit", tmp_path / "out", "--log", copied.log)
    assert checked.exit_code == 0, checked.output
    assert "not checked: redacted on 2" in checked.stdout


def test_what_is_gone_already_is_told_and_the_rest_is_unlearned(copied: TinyRun, tmp_path: Path) -> None:
    _redact(copied, tmp_path / "a", copied.digests(3, 5))
    reported = Recording()
    options = UnlearnOptions(forget=copied.digests(3, 9), output=None, dry_run=True, K=None, hessian_mode=SECANT)
    result = unlearn(copied.log, options, progress=reported)
    assert len(result.forget_set.digests) == 4
    assert any(
        line.startswith("already redacted on 2") and line.endswith(": 2 of 6 samples") for line in reported.lines
    )
    with pytest.raises(UsageError, match="everything that redactions have left"):
        unlearn_tiny(copied, tmp_path / "rest", forget=f"{copied.digests(0, 3)},{copied.digests(5, 99)}")


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, "GGN, 800, optimizer"),
        ({"hessian_mode": "secant"}, "secant, 800, optimizer"),
        ({"hessian_mode": "exact", "K": None}, "exact, all, optimizer"),
        ({"hessian_mode": "exact", "K": None, "propagation": "paper"}, "exact, all, paper"),
    ],
)
def test_anything_but_an_exact_sweep_to_the_end_is_refused(changes: dict[str, Any], found: str) -> None:
    with pytest.raises(UsageError, match=f"--redact .*found {found}") as caught:
        UnlearnOptions(forget="a b", output=Path("out"), redact=True, **changes)
    command = "lmcleaner unlearn LOG --forget 'a b' --output out --redact --hessian-mode secant --K all"
    assert caught.value.hint == command


def test_another_denominator_than_before_is_refused(copied: TinyRun, tmp_path: Path) -> None:
    """One after the other would be no run at all: some steps divided by all rows, others by the retained ones."""
    _redact(copied, tmp_path / "a", copied.digests(3, 5))
    with pytest.raises(UsageError, match="redacted with --denominator logged before, found retained"):
        _redact(copied, tmp_path / "b", copied.digests(8, 9), denominator="retained")


def test_an_interrupted_run_is_refused(base_model: Path, tmp_path: Path) -> None:
    run = _own_loop(base_model, tmp_path / "log", end=KeyboardInterrupt())
    with pytest.raises(InsufficientLogError, match="interrupted") as caught:
        _redact(run, tmp_path / "out", run.digests(0, 1))
    assert "--resume" in str(caught.value.hint)


def _own_loop(
    base: Path, log: Path, *, scale: float = 1.0, end: BaseException | None = None, self_check: bool = True
) -> TinyRun:
    """Four steps of two rows each, whose gradients are scaled in a way that the log doesn't tell."""
    model = load_model(str(base), torch.float32).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    description = RunDescription(model_source=str(base), padding_token=2)
    with suppress(KeyboardInterrupt), Recorder(log, model, optimizer, description, self_check=self_check):
        for step in range(4):
            tokens = torch.arange(3, 15).reshape(2, 6) + step
            model(input_ids=tokens, labels=tokens.clone()).loss.backward()
            for parameter in model.parameters():
                assert parameter.grad is not None
                parameter.grad.mul_(scale)
            optimizer.step()
            optimizer.zero_grad()
        if end is not None:
            raise end
    return _run_of(base, log)


def _run_of(base: Path, log: Path) -> TinyRun:
    return TinyRun(base, log, log, log, RecordOptions(model="", data="", output=log))


def test_a_log_that_cant_be_written_is_refused(copied: TinyRun, tmp_path: Path) -> None:
    forget = copied.digests(5, 6)
    with WriterLock.acquire(open_store(copied.log, writable=True)), pytest.raises(ExistsError, match="being written"):
        _redact(copied, tmp_path / "out", forget)
    shutil.make_archive(str(tmp_path / "log"), "zip", copied.log)
    options = UnlearnOptions(forget=forget, output=tmp_path / "out", K=None, hessian_mode=SECANT, redact=True)
    with pytest.raises(UsageError, match=r"log\.zip"):
        unlearn(tmp_path / "log.zip", options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("self_check", "message"),
    [(False, "bit for bit: the parameters after step 0 differ"), (True, "come close only: .*off by 0.0017 of a step")],
)
def test_a_replay_that_is_not_the_runs_changes_nothing(
    self_check: bool, message: str, base_model: Path, tmp_path: Path
) -> None:
    run = _own_loop(base_model, tmp_path / "log", scale=1.001, self_check=self_check)  # close enough for the check
    before = _files(run.log)
    with pytest.raises(MismatchError, match=message):
        _redact(run, tmp_path / "out", run.open().step(2).samples[0].digest.hex())
    assert _files(run.log) == before
    assert not (tmp_path / "out").exists()


def test_a_run_of_other_libraries_is_refused(base_model: Path, tmp_path: Path) -> None:
    run = _own_loop(base_model, tmp_path / "log")
    manifest = replace(run.open().manifest, environment=run.open().manifest.environment | {"torch": "0.4"})
    with LogWriter.create(tmp_path / "other", manifest, run.open().checkpoint(0)) as writer:
        for number in range(4):
            writer.append(run.open().step(number), run.open().parameters(number + 1))
        writer.write_checkpoint(run.open().checkpoint(4))
        writer.commit(finished=True)
    before = _files(tmp_path / "other")
    with pytest.raises(MismatchError, match=r"torch: the run had 0\.4"):
        _redact(_run_of(base_model, tmp_path / "other"), tmp_path / "out", run.digests(0, 1))
    assert _files(tmp_path / "other") == before
