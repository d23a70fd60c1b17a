"""Experiments from a file: the documented examples run, resume, report failures; errors name key and line."""

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner, Result

from lmcleaner.choices import Rounding
from lmcleaner.cli.main import app
from lmcleaner.experiments.description import read_experiments
from lmcleaner.experiments.running import run_experiments
from lmcleaner.formats.errors import LmcleanerError, MismatchError, NotFoundError, ResourceError, UsageError
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.progress import Silent
from lmcleaner.recording.training import record
from tiny_runs import TinyRun, parameters_in, rows, same_bits, unlearn_tiny, write_rows

DOCS = Path(__file__).resolve().parents[2] / "docs"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["run", *(str(argument) for argument in arguments)])


@pytest.fixture
def place(base_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with what the examples name."""
    shutil.copytree(base_model, tmp_path / "my-base")
    write_rows(tmp_path / "train.jsonl", rows(12))
    write_rows(tmp_path / "forget.jsonl", rows(12)[-1:])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_documented_grid_runs_once(place: Path) -> None:
    page = (DOCS / "experiments.md").read_text(encoding="utf-8")
    example = re.search(r"^```yaml\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert example is not None
    file = place / "experiments.yaml"
    file.write_text(example[1])
    listed = run(file, "--dry-run", "--json")
    names = [cell["cell"] for cell in json.loads(listed.stdout)["cells"]]
    assert names[0] == "tofu_epochs=1_forget=forget_K=2_hessian_mode=secant"
    assert not (place / "saves").exists()
    first = run(file)
    assert [name in first.stdout for name in names] == [True] * 4
    summary = json.loads((place / "saves/experiments/tofu/summary.json").read_text())
    assert [cell["cell"] for cell in summary["cells"]] == names
    assert first.exit_code == summary["exit_code"] == int(any(c["verdict"] == "poor" for c in summary["cells"]))
    assert [c["relative_error"] for c in summary["cells"] if c["unlearn.K"] == "all"] == [0.0, 0.0]
    with (place / "saves/experiments/tofu/summary.csv").open(newline="") as table:
        assert [row["cell"] for row in csv.DictReader(table)] == names
    assert sorted(p.name for p in (place / "saves/train_logs").iterdir()) == ["tofu_epochs=1", "tofu_epochs=2"]
    folder = place / "saves/unlearn" / names[0]
    assert {"model.safetensors", "audit.json", "audit", "evals"} <= {p.name for p in folder.iterdir()}
    before = {p: p.stat().st_mtime_ns for p in (place / "saves/unlearn").rglob("*")}
    shutil.rmtree(place / "saves/train_logs")  # what is finished needs no log
    again = run(file, "--json")
    assert {p: p.stat().st_mtime_ns for p in (place / "saves/unlearn").rglob("*")} == before
    assert json.loads(again.stdout) == summary
    file.write_text(example[1].replace("oracle: true", "oracle: true\n  damping: 0.5"))
    changed = json.loads(run(file, "--json").stdout)
    assert changed["exit_code"] == 11
    assert all("finished with another unlearn.damping" in cell["error"] for cell in changed["cells"])


def test_a_cell_is_evaluated_where_the_harness_looks(place: Path) -> None:
    settings = {
        "name": "cell",
        "record": {"model": "my-base", "data": "train.jsonl", "batch_size": 4, "lr": 1e-2, "epochs": 10},
        "unlearn": {"forget": "forget", "K": "all", "hessian_mode": "secant"},
        "audit": {"evaluate": "log", "html": True},
    }
    (place / "experiments.yaml").write_text(yaml.safe_dump(settings))
    done = run(place / "experiments.yaml")
    assert done.exit_code == 0, done.output
    folder = place / "saves/unlearn/cell"
    found = json.loads((folder / "evals/audit.json").read_text())["evaluation"]
    assert found == json.loads((folder / "audit/audit_records.json").read_text())["evaluation"]
    summary = json.loads((folder / "evals/TOFU_SUMMARY.json").read_text())
    assert summary["forget_Q_A_Prob"] == found["metrics"]["forget_Q_A_Prob"]["gold"]["value"]
    page = (folder / "evals/audit.html").read_text()
    assert "<h1>Audit of cell</h1>" in page
    assert "lmcleaner audit verify saves/unlearn/cell --log saves/train_logs/cell" in page
    assert "<td>just now</td>" in page
    assert run("--dry-run", place / "experiments.yaml").exit_code == 0
    settings["audit"] = {"html": "page.html"}
    (place / "experiments.yaml").write_text(yaml.safe_dump(settings))
    refused = run(place / "experiments.yaml")
    assert refused.exit_code == 2
    assert "audit.html: expected true or false, found 'page.html'" in refused.stderr


@pytest.mark.parametrize("level", ["sample", "batch"])
def test_the_templates_run(level: str, place: Path) -> None:
    done = run(DOCS / "examples" / f"{level}-level.yaml", "--quiet")
    assert done.exit_code == 0, done.output
    name = {"sample": "rows", "batch": "batches"}[level]
    records = json.loads((place / "saves/audits" / name / "audit_records.json").read_text())
    assert records == json.loads((place / "saves/unlearn" / name / "audit/audit_records.json").read_text())
    assert records["request"]["level"] == level


def test_a_failed_cell_is_reported_and_the_others_go_on(adamw_run: TinyRun, tmp_path: Path) -> None:
    file = tmp_path / "some.yaml"
    file.write_text(
        f"saves: {tmp_path}/saves\nunlearn: {{training_log_dir: {adamw_run.log}, hessian_mode: secant, K: all}}\n"
        "requests:\n- {name: nobody, forget: nobody}\n- {name: two, forget: forget}\n"
    )
    done = run(file)
    assert done.exit_code == NotFoundError.exit_code
    assert "failed   some_nobody: no such forget set: nobody" in done.stdout
    assert sorted(p.name for p in (tmp_path / "saves/unlearn").iterdir()) == ["some_two"]
    unlearn_tiny(adamw_run, tmp_path / "expected")
    assert same_bits(parameters_in(tmp_path / "saves/unlearn/some_two"), parameters_in(tmp_path / "expected"))


class Failing(Silent):
    """Raises an error when the first sweep begins, as a bug or a machine would, and keeps what is said."""

    def __init__(self, error: Exception) -> None:
        self._error: Exception | None = error
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def begin(self, what: str, total: int) -> None:
        if what == "unlearning" and self._error is not None:
            error, self._error = self._error, None
            raise error


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (ZeroDivisionError("as a bug would"), LmcleanerError, "unexpected: ZeroDivisionError: as a bug would"),
        (MemoryError("no page left"), ResourceError, "out of memory: no page left"),
        (torch.OutOfMemoryError("no block left"), ResourceError, "out of memory: no block left"),
    ],
    ids=["a bug", "the machine's memory", "an accelerator's"],
)
def test_an_unexpected_error_of_a_cell_is_told_with_its_traceback_and_the_others_go_on(
    error: Exception, kind: type[LmcleanerError], message: str, adamw_run: TinyRun, tmp_path: Path
) -> None:
    file = tmp_path / "some.yaml"
    file.write_text(
        f"saves: {tmp_path}/saves\nunlearn: {{training_log_dir: {adamw_run.log}, hessian_mode: secant, K: all}}\n"
        "requests:\n- {name: broken, forget: forget}\n- {name: two, forget: forget}\n"
    )
    failing = Failing(error)
    assert run_experiments(read_experiments(file), failing).exit_code == kind.exit_code
    assert any("Traceback (most recent call last)" in line for line in failing.lines)
    cells = json.loads((tmp_path / "saves/experiments/some/summary.json").read_text())["cells"]
    assert [cell["state"] for cell in cells] == ["failed", "finished"]
    assert (cells[0]["error"], cells[0]["kind"]) == (message, kind.kind)
    assert ("in begin\n" in cells[0].get("traceback", "")) is (kind is LmcleanerError)  # of what nobody foresaw
    assert run(file, "--quiet").exit_code == 0  # the finished one isn't repeated


REFUSED: dict[str, tuple[str, str, str]] = {
    "an unknown key": ("unlearn:\n  hesian_mode: GGN", "line 2: unlearn.hesian_mode: no such key", "hessian_mode?"),
    "another case": ("unlearn: {k: 3}", "line 1: unlearn.k: no such key", "did you mean K?"),
    "an unknown section": ("\nunlern: {}", "line 2: unlern: no such key", "did you mean unlearn?"),
    "a value out of range": ("record: {model: a, data: b,\n  lr: -1}", "line 2: record.lr: --lr: expected more", ""),
    "another type": ("unlearn:\n  forget: a\n  oracle: 3", "line 3: unlearn.oracle: expected true or false", ""),
    "another type of K": ("unlearn:\n  forget: a\n  K: most", "line 3: unlearn.K: expected a whole number", ""),
    "a mode in a grid": (
        "unlearn: {forget: a, training_log_dir: b}\ngrid:\n  unlearn:\n    hessian_mode: [GGN, newton]",
        r"line 4: grid.unlearn.hessian_mode\[1\]: --hessian-mode: expected one of", "",
    ),
    "a tolerance beside no mode": (
        "unlearn:\n  forget: a\n  tolerance: 0.1", "line 3: unlearn.tolerance: --tolerance belongs", "auto takes the",
    ),
    "a key twice": ("unlearn:\n  K: 3\n  K: 4", "line 3: unlearn: K stands here a second time", ""),
    "no model": ("record:\n  data: b\nunlearn: {forget: a}", "line 1: record: model is missing", ""),
    "no list": ("grid:\n  unlearn:\n    K: 3", "line 3: grid.unlearn.K: expected a list, found 3", ""),
    "no YAML": ("record: [", "not YAML: some.yaml: line", ""),
    "one audit_dir for two requests": (
        "unlearn: {training_log_dir: a,\n  audit_dir: b}\nrequests:\n- {name: c, forget: c}\n- {name: d, forget: d}",
        "line 2: unlearn.audit_dir: several cells would write b/audit_records.json", "leave audit_dir out",
    ),
    "one audit_dir for a grid": (
        "requests:\n- {name: c, forget: c, training_log_dir: a,\n   audit_dir: b}\ngrid: {unlearn: {K: [1, 2]}}",
        r"line 3: requests\[0\].audit_dir: several cells would write b/audit_records.json", "another one",
    ),
    "a threshold": ("unlearn:\n  thresholds:\n    setled: 1", "line 3: unlearn.thresholds.setled", "settled?"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_sense_is_named_with_its_key_and_line(case: str, tmp_path: Path) -> None:
    text, message, hint = REFUSED[case]
    file = tmp_path / "some.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        read_experiments(file)
    assert hint in str(caught.value.hint)


def test_a_recording_that_was_interrupted_is_resumed(place: Path) -> None:
    """Killed after its model was written, before its log said that it was finished."""
    file = DOCS / "examples" / "sample-level.yaml"
    assert run(file, "--quiet").exit_code == 0
    expected = parameters_in(place / "saves/finetune/rows")
    shutil.rmtree(place / "saves")
    options = read_experiments(file).cells[0].recording.options
    assert options is not None
    log = place / "saves/train_logs/rows"

    class Killed(Silent):
        steps = 0

        def advance(self) -> None:
            self.steps += 1
            if self.steps == 4:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record(log, options, Killed())
    shutil.copytree(place / "my-base", place / "saves/finetune/rows")
    assert not TrainingLog(log).commit.finished
    done = run(file)
    assert done.exit_code == 0, done.output
    assert "resuming after" in done.stderr
    assert same_bits(parameters_in(place / "saves/finetune/rows"), expected)


def test_a_log_of_other_options_fails_its_cells(place: Path) -> None:
    file = place / "rows.yaml"
    text = (DOCS / "examples" / "sample-level.yaml").read_text()
    file.write_text(text)
    assert run(file, "--quiet").exit_code == 0
    shutil.rmtree(place / "saves/unlearn")
    file.write_text(text.replace("epochs: 2", "epochs: 3"))
    done = run(file)
    assert done.exit_code == MismatchError.exit_code
    assert "recorded with another epochs" in done.stdout
    file.write_text(text.replace("batch_size_at_training: 4", "batch_size_at_training: 5"))
    assert "batch_size_at_training: expected 4, as in the log, found 5" in run(file).stdout
    assert not (place / "saves/unlearn").exists()


def test_values_may_be_shared_by_reference_and_written_as_people_do(tmp_path: Path) -> None:
    file = tmp_path / "some.yaml"
    file.write_text(
        "record: {model: &name a, data: *name, lr: 1e-4}\nunlearn: {forget: [x, y], settle-tolerance: 1}\n"
        "grid: {unlearn: {hessian_mode: [auto, ggn]}}\n"
        "audit: {evaluate: log, deploy: [int4], relearn_lr: 1e-4, stress: yes}\n"
    )
    cells: Any = read_experiments(file).cells
    assert [cell.recording.options.lr for cell in cells] == [1e-4, 1e-4]
    assert [(cell.options.tolerance, cell.options.hessian_mode.value) for cell in cells] == [
        (0.1, "secant"), (None, "GGN")
    ]  # fmt: skip
    assert cells[0].recording.options.data == "a"
    assert (cells[0].audit.deploy, cells[0].audit.relearn_lr, cells[0].audit.stress) == ((Rounding.INT4,), 1e-4, True)
    assert cells[0].options.requests == ("x", "y")
