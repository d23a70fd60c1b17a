"""`record` goes on with an interrupted run: the bits of one that nobody interrupted, or an error that says why not."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from lmcleaner.choices import Codec, ModelDtype, OptimizerName, Scheduler
from lmcleaner.formats.commit import Change
from lmcleaner.formats.errors import (
    ExistsError,
    InsufficientLogError,
    LmcleanerError,
    MismatchError,
    NotFoundError,
    UsageError,
)
from lmcleaner.formats.lock import LOCK, holder
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.store import open_store
from lmcleaner.formats.writer import LogWriter, write_commit
from lmcleaner.progress import Silent
from lmcleaner.recording.options import RecordOptions
from lmcleaner.recording.training import record
from lmcleaner.recording.unfinished import resumed_options
from tiny_runs import Recording, TinyRun, parameters_in, record_tiny, rows, same_bits, write_base_model, write_rows

SETTINGS: dict[str, dict[str, Any]] = {
    "adamw, accumulation with a partial last step, warmup": {
        "grad_accum": 2, "num_rows": 22, "epochs": 4, "scheduler": Scheduler.COSINE, "gradients": Codec.INT8,
    },
    "sgd with momentum, int8 updates, stops within an epoch": {
        "optimizer": OptimizerName.SGD, "lr": 0.1, "momentum": 0.9, "updates": Codec.INT8, "epochs": 9, "max_steps": 12,
    },
    "bfloat16, int4 updates, weight decay": {
        "dtype": ModelDtype.BFLOAT16, "updates": Codec.INT4, "epochs": 3, "num_rows": 16, "weight_decay": 0.1,
    },
    "no updates, sgd, a learning rate that begins at 0": {
        "optimizer": OptimizerName.SGD, "lr": 0.1, "updates": Codec.NONE, "epochs": 3, "num_rows": 16,
        "checkpoint_every": 1,
    },
    "LoRA": {"lora_rank": 2, "epochs": 3, "num_rows": 16},
}  # fmt: skip


class Interruption(Silent):
    """Presses ctrl-C after some steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def advance(self) -> None:
        self.steps -= 1
        if not self.steps:
            raise KeyboardInterrupt


def interrupt(log: Path, options: RecordOptions, steps: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        record(log, options, Interruption(steps))
    assert not TrainingLog(log).commit.finished


def content(log: TrainingLog) -> tuple[Any, ...]:
    """What must be the same in every log of the run; its seconds never are."""
    tables = {name: table for name, table in log.commit.tables.items() if name != "steps/seconds"}
    return log.num_steps, log.commit.finished, tables, log.commit.checkpoints, log.commit.corrections


@pytest.fixture(scope="module")
def with_dropout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base_model(tmp_path_factory.mktemp("dropout") / "model", dropout=0.1)


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_run_ends_with_the_bits_of_one_that_nobody_interrupted(
    setting: str, with_dropout: Path, tmp_path: Path
) -> None:
    whole = record_tiny(with_dropout, tmp_path, **SETTINGS[setting])
    assert whole.open().num_steps == 12
    for steps in (1, 4, 7):
        log, output = tmp_path / f"log-{steps}", tmp_path / f"model-{steps}"
        interrupt(log, replace(whole.options, output=output), steps)
        told = Recording()
        record(log, resumed_options(log, output), told)
        assert content(TrainingLog(log)) == content(whole.open())
        assert same_bits(parameters_in(output), parameters_in(whole.trained))
        every = whole.options.checkpoint_every
        assert told.steps == 12 - steps // every * every


def test_it_can_be_interrupted_again_before_it_is_where_it_was(with_dropout: Path, tmp_path: Path) -> None:
    whole = record_tiny(with_dropout, tmp_path, epochs=3, num_rows=16)
    log, options = tmp_path / "again", replace(whole.options, output=tmp_path / "model")
    interrupt(log, options, 7)
    for _ in range(2):
        interrupt(log, replace(options, resume=True), 2)
        assert TrainingLog(log).num_steps == 7
    record(log, replace(options, resume=True))
    assert content(TrainingLog(log)) == content(whole.open())


def test_a_run_that_could_not_write_its_model_is_resumed_for_it(base_model: Path, tmp_path: Path) -> None:
    class InTheWay(Silent):
        def advance(self) -> None:
            output.mkdir(exist_ok=True)

    output = tmp_path / "model"
    data = write_rows(tmp_path / "train.jsonl", rows(12))
    options = RecordOptions(model=str(base_model), data=str(data), output=output, batch_size=4, checkpoint_every=4)
    with pytest.raises(ExistsError, match="the output exists"):
        record(tmp_path / "log", options, InTheWay())
    assert TrainingLog(tmp_path / "log").num_steps == 9
    output.rmdir()
    told = Recording()
    assert record(tmp_path / "log", replace(options, resume=True), told).num_steps == 9
    assert told.steps == 1
    assert (output / "model.safetensors").is_file()


def test_the_model_and_the_data_may_have_moved(base_model: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(base_model, tmp_path / "base"))
    data = write_rows(tmp_path / "train.jsonl", rows(12))
    options = RecordOptions(model=str(base), data=str(data), output=tmp_path / "model", batch_size=4)
    interrupt(tmp_path / "log", options, 2)
    moved = {"model": str(base.rename(tmp_path / "new-base")), "data": str(data.rename(tmp_path / "new.jsonl"))}
    with pytest.raises(NotFoundError, match="no such data"):
        record(tmp_path / "log", resumed_options(tmp_path / "log", tmp_path / "model"))
    record(tmp_path / "log", resumed_options(tmp_path / "log", tmp_path / "model", **moved))
    assert TrainingLog(tmp_path / "log").commit.finished


@pytest.fixture(scope="module")
def interrupted(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """A run that was interrupted after six steps; tests work on copies of its log."""
    folder = tmp_path_factory.mktemp("interrupted")
    data = write_rows(folder / "train.jsonl", rows(20))
    options = RecordOptions(
        model=str(base_model), data=str(data), output=folder / "out", batch_size=4, checkpoint_every=4
    )
    interrupt(folder / "log", options, 6)
    return TinyRun(base_model, data, folder / "log", folder / "out", options)


def _finish(log: Path) -> None:
    with LogWriter.resume(log) as writer:
        writer.commit(finished=True)


def _redact(log: Path) -> None:
    opened = TrainingLog(log)
    change = Change(kind="redaction", time="2026-01-01T00:00:00Z", root_before="0" * 64, details={})
    write_commit(open_store(log, writable=True), replace(opened.commit, history=(change,)), opened.manifest_digest)


def _kill_before_first_commit(log: Path) -> None:
    shutil.rmtree(log / "commit")


@dataclass(frozen=True)
class Refusal:
    """What stands against resuming."""

    error: type[LmcleanerError]
    message: str
    options: dict[str, Any]
    change: Callable[[Path], object] = lambda log: None


REFUSED = {
    "another learning rate": Refusal(UsageError, r"--lr: the log was recorded with 5e-05, found 0\.1", {"lr": 0.1}),
    "other steps": Refusal(UsageError, "--max-steps: the log was recorded with None, found 3", {"max_steps": 3}),
    "overwriting": Refusal(UsageError, "contradict each other", {"overwrite": True}),
    "other data": Refusal(MismatchError, "not the run of this log: data: the log has", {"data": "{other_data}"}),
    "another model": Refusal(MismatchError, "not the base model of this log", {"model": "{other_model}"}),
    "a run that is finished": Refusal(ExistsError, "nothing to resume: .*finished after 6 steps", {}, _finish),
    "a redacted log": Refusal(InsufficientLogError, "can't go on: .*redaction on 2026", {}, _redact),
    "no commit": Refusal(InsufficientLogError, "killed before its first commit", {}, _kill_before_first_commit),
    "no log": Refusal(NotFoundError, "no training log", {}, shutil.rmtree),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_stands_against_resuming_is_said_and_changes_nothing(
    case: str, interrupted: TinyRun, tmp_path: Path
) -> None:
    refusal, log, output = REFUSED[case], tmp_path / "log", tmp_path / "out"
    shutil.copytree(interrupted.log, log)
    refusal.change(log)
    before = sorted((file, file.read_bytes()) for file in log.rglob("*") if file.is_file())
    places = {
        "other_data": write_rows(tmp_path / "other.jsonl", rows(20, seed=1)),
        "other_model": write_base_model(tmp_path / "other", seed=3),
    }
    options = {name: v.format(**places) if isinstance(v, str) else v for name, v in refusal.options.items()}
    with pytest.raises(refusal.error, match=refusal.message) as caught:
        record(log, resumed_options(log, output, **options))
    assert caught.value.hint
    assert sorted((file, file.read_bytes()) for file in log.rglob("*") if file.is_file()) == before
    assert not output.exists()


def test_a_log_of_another_loop_has_no_options_to_resume_with(interrupted: TinyRun, tmp_path: Path) -> None:
    opened = interrupted.open()
    log = tmp_path / "log"
    manifest = replace(opened.manifest, training={})
    LogWriter.create(log, manifest, opened.checkpoint(0)).close()
    with pytest.raises(InsufficientLogError, match="doesn't hold the options"):
        resumed_options(log, tmp_path / "out")


HOLD = """
import sys
from lmcleaner.formats.lock import WriterLock
from lmcleaner.formats.store import open_store
WriterLock.acquire(open_store(sys.argv[1], writable=True))
print("taken", flush=True)
sys.stdin.read()
"""


def test_a_dead_writers_log_is_taken_over_and_a_living_ones_is_not(interrupted: TinyRun, tmp_path: Path) -> None:
    log = Path(shutil.copytree(interrupted.log, tmp_path / "log"))
    options = resumed_options(log, tmp_path / "out")
    writer = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(log)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "taken\n"
    with pytest.raises(ExistsError, match=f"being written: .*by process {writer.pid} on") as caught:
        record(log, options)
    assert caught.value.exit_code == 11
    writer.kill()
    writer.communicate()
    assert (log / LOCK).is_file()
    told = Recording()
    record(log, options, told)
    assert f"taking the log over from process {writer.pid} on" in told.lines[0]
    assert holder(open_store(log)) is None
