"""The four commands as a user types them: output, exit codes, errors with hints, interruption."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner, Result

from lmcleaner.choices import HessianMode
from lmcleaner.cli import console
from lmcleaner.cli.main import app
from lmcleaner.formats.arrays import group_metadata
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.recording.describe import RunDescription
from lmcleaner.recording.recorder import Recorder
from lmcleaner.training.models import load_model
from tiny_runs import TinyRun, rows, write_base_model, write_rows


def _run(*arguments: object, **environment: str) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env=environment)


def _json(result: Result) -> Any:
    return json.loads(result.stdout)


def test_help_loads_neither_torch_nor_transformers() -> None:
    script = (
        "import sys\n"
        "from lmcleaner.cli.main import main\n"
        "sys.argv = ['lmcleaner', '--help']\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "assert not {'torch', 'transformers', 'zarr'} & set(sys.modules), sorted(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert all(command in done.stdout for command in ("record", "inspect", "unlearn", "audit"))


def test_the_whole_way_as_a_user_would_type_it(base_model: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "train.jsonl", rows(12))
    write_rows(tmp_path / "forget.jsonl", rows(12)[-1:])
    log, output = tmp_path / "log", tmp_path / "unlearned"
    recorded = _run(
        "record", log, "--model", base_model, "--data", data, "--output", tmp_path / "trained", "--epochs", 2,
        "--batch-size", 4, "--lr", 1e-2,
    )  # fmt: skip
    assert recorded.exit_code == 0, recorded.output
    assert "the log will take about" in recorded.stderr
    assert "recorded 6 steps on 12 samples" in recorded.stdout
    shown = _run("inspect", LMCLEANER_LOG=str(log))
    assert shown.exit_code == 0
    assert "6 of 6 planned" in shown.stdout
    assert "█" in shown.stdout
    planned = _run("inspect", log, "--forget", "forget", "--plan", "--K", "all")
    assert planned.exit_code == 0
    assert "as measured on this machine" in planned.stdout
    assert "are the most" not in planned.stdout
    assert "are the most" in _run("inspect", log, "--forget", "forget", "--plan", "--K", "auto", "--quick").stdout
    quick = _run("inspect", log, "--forget", "forget", "--plan", "--K", "all", "--quick")
    assert "parameter memory" in quick.stdout
    made = _run("unlearn", log, "--forget", "forget", "--output", output, "--K", "all", "--hessian-mode", "ggn")
    assert made.exit_code in {0, 1}, made.output
    assert "verdict" in made.stdout
    assert {"config.json", "model.safetensors", "tokenizer.json", "audit.json"} <= {f.name for f in output.iterdir()}
    checked = _run("audit", output, "--oracle")
    assert checked.exit_code == made.exit_code, checked.output
    assert "audit passed" in checked.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect"],
        ["inspect", "--step", "3"],
        ["inspect", "--find", "Question"],
        ["inspect", "--forget", "forget", "--plan"],
        ["inspect", "--verify", "--replay", "2"],
        ["unlearn", "--forget", "forget", "--dry-run"],
        ["inspect", "--step", "99"],
        ["unlearn", "--forget", "nobody", "--dry-run"],
    ],
)
def test_json_is_exactly_one_document_and_nothing_else(arguments: list[str], adamw_run: TinyRun) -> None:
    result = _run(*arguments, "--json", LMCLEANER_LOG=str(adamw_run.log))
    document = _json(result)
    assert isinstance(document, dict)
    assert ("error" in document) == (result.exit_code != 0)


def test_unlearn_prints_its_audit_document_as_json(adamw_run: TinyRun, tmp_path: Path) -> None:
    options = ("--forget", "forget", "--output", tmp_path / "out", "--hessian-mode", "secant", "--json", "--no-ledger")
    result = _run("unlearn", adamw_run.log, *options)
    assert result.exit_code == 0
    assert _json(result) == json.loads((tmp_path / "out" / "audit.json").read_text())


def test_a_poor_result_is_written_says_so_and_exits_with_1(adamw_run: TinyRun, tmp_path: Path) -> None:
    options = ("--forget", "steps:1", "--output", tmp_path / "out", "--K", 2, "--hessian-mode", "secant", "--no-ledger")
    result = _run("unlearn", adamw_run.log, *options)
    assert result.exit_code == 1
    assert "verdict  poor" in result.stdout
    assert json.loads((tmp_path / "out" / "audit.json").read_text())["result"]["verdict"] == "poor"


def test_an_audit_of_a_poor_result_passes_says_so_and_exits_with_1(adamw_run: TinyRun, tmp_path: Path) -> None:
    output = tmp_path / "out"
    options = ("--output", output, "--K", 2, "--hessian-mode", "secant", "--no-ledger")
    assert _run("unlearn", adamw_run.log, "--forget", "steps:1", *options).exit_code == 1
    shown = _run("audit", output, "--log", adamw_run.log)
    assert shown.exit_code == 1
    assert "FAILED" not in shown.stdout
    assert "verdict of the unlearning, as recorded: poor\n  window 1 to 4: " in shown.stdout
    assert shown.stdout.endswith("audit passed\nthe document is true, and says that the result is not good\n")
    told = _run("audit", output, "--log", adamw_run.log, "--json")
    assert told.exit_code == 1
    assert (_json(told)["passed"], _json(told)["verdict"], len(_json(told)["reasons"])) == (True, "poor", 1)


DRY = ("--forget", "forget", "--dry-run", "--K", "all")


@pytest.mark.parametrize("quiet", [(), ("--quiet",)])
def test_a_dry_runs_plan_is_its_output(quiet: tuple[str, ...], adamw_run: TinyRun) -> None:
    shown = _run("unlearn", adamw_run.log, *DRY, "--hessian-mode", "secant", *quiet)
    assert shown.exit_code == 0
    plan, *rest = shown.stdout.splitlines()
    assert plan.startswith("2 samples, 4 occurrences in 4 steps; 1 window (")
    assert rest == ["dry run: nothing was changed"]
    assert shown.stderr == ""


def test_a_plan_tells_beforehand_that_the_verdict_will_be_poor(adamw_run: TinyRun) -> None:
    paper = ("--propagation", "paper", "--hessian-mode", "GGN")
    for options, expected in (
        (("--hessian-mode", "secant"), []),
        (("--hessian-mode", "fisher"), ["measure it with --oracle"]),
        (("--hessian-mode", "fisher", "--oracle"), []),
        (paper, ["the run used AdamW: use --propagation optimizer", "the run clipped gradients at 1"]),
    ):
        document = _json(_run("unlearn", adamw_run.log, *DRY, *options, "--json"))
        assert len(document["warnings"]) == len(expected)
        shown = _run("unlearn", adamw_run.log, *DRY, *options).stdout
        assert shown.count("the verdict will be poor: ") == len(expected)
        assert all(part in shown for part in expected)


def test_the_request_for_one_sample_speaks_of_one(adamw_run: TinyRun) -> None:
    digest = adamw_run.open().step(9).samples[0].digest.hex()[:8]
    shown = _run("unlearn", adamw_run.log, "--forget", digest, "--dry-run", "--hessian-mode", "secant").stdout
    assert shown.startswith("1 sample, 2 occurrences in 2 steps; 1 window")
    found = _run("inspect", adamw_run.log, "--find", "nobody").stdout
    assert found == "found 'nobody' in 0 of 20 samples\n"


def test_plans_are_made_for_a_rank(adamw_run: TinyRun) -> None:
    def low_rank(*options: str) -> Any:
        document = _json(_run("inspect", adamw_run.log, "--forget", "forget", "--plan", "--quick", "--json", *options))
        return next(plan for plan in document["plans"] if plan["mode"] == "low_rank")

    few, many = low_rank("--rank", "2"), low_rank("--rank", "20")
    assert few["products"] < low_rank()["products"] == low_rank("--rank", "10")["products"] < many["products"]
    assert few["parameter_memory_bytes"] < many["parameter_memory_bytes"]


@pytest.mark.parametrize("mode", [("--hessian-mode", "low_rank"), ()])
def test_a_rank_that_makes_no_sense_is_refused(mode: tuple[str, ...], adamw_run: TinyRun) -> None:
    command = ("unlearn", adamw_run.log, *DRY, *mode) if mode else ("inspect", adamw_run.log, *DRY[:2], "--plan")
    size = adamw_run.open().manifest.num_elements
    for rank in (0, size + 1):
        refused = _run(*command, "--rank", rank)
        assert refused.exit_code == 2
        assert "--rank: expected" in refused.stderr


def test_a_rank_of_another_mode_is_refused(adamw_run: TinyRun) -> None:
    refused = _run("unlearn", adamw_run.log, *DRY, "--hessian-mode", "secant", "--rank", 10)
    assert refused.exit_code == 2
    assert "--rank belongs to --hessian-mode low_rank: found --hessian-mode secant" in refused.stderr


def test_a_text_that_no_sample_holds_is_told_by_the_exit_code(adamw_run: TinyRun) -> None:
    assert _run("inspect", adamw_run.log, "--find", rows(20)[3]["question"]).exit_code == 0
    assert _run("inspect", adamw_run.log, "--find", " ").exit_code == 2
    shown = _run("inspect", adamw_run.log, "--find", "nobody at all")
    assert (shown.exit_code, shown.stdout) == (1, "found 'nobody at all' in 0 of 20 samples\n")
    told = _run("inspect", adamw_run.log, "--find", "nobody at all", "--json")
    assert (told.exit_code, _json(told)) == (1, {"matches": []})


def test_help_names_the_modes_as_they_are_typed_and_explains_each() -> None:
    shown = " ".join(_run("unlearn", "--help").stdout.split())
    assert "|".join(HessianMode) in shown.replace(" ", "")
    explained = shown[shown.index("How the gradient without the rows is found") :]
    assert all(re.search(rf"\b{mode}\b", explained) for mode in HessianMode)
    assert "Take secant, with --K all, if the retained rows may be read" in explained


def test_learning_rates_are_told_apart_where_parameter_groups_differ(adamw_run: TinyRun, tmp_path: Path) -> None:
    """`record` makes two groups, with and without weight decay, that share their rate."""
    shown = _run("inspect", adamw_run.log, "--step", 3).stdout
    assert re.search(r", lr 0\.\d+, ", shown)
    assert re.search(r", gradient norm [\d.]+ after clipping, ", shown)
    model = load_model(str(adamw_run.base), torch.float32).train()
    first, *others = model.parameters()
    optimizer = torch.optim.SGD([{"params": [first], "lr": 0.5}, {"params": others, "lr": 0.25}])
    tokens = torch.arange(3, 15).reshape(2, 6)
    with Recorder(tmp_path / "log", model, optimizer, RunDescription(model_source=str(adamw_run.base))):
        model(input_ids=tokens, labels=tokens.clone()).loss.backward()
        optimizer.step()
    shown = _run("inspect", tmp_path / "log", "--step", 0).stdout
    rest = f"0.25 in group 1 ({len(others)} tensors)"
    assert f"lr of the optimizer's parameter groups 0.5 in group 0 (1 tensor), {rest}, " in shown


def test_a_reader_that_goes_away_is_no_bug(adamw_run: TinyRun) -> None:
    command = [sys.executable, "-m", "lmcleaner.cli", "inspect", str(adamw_run.log), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


@pytest.mark.parametrize(
    ("arguments", "message", "command"),
    [
        (("unlearn", "--bad"), "no such option: --bad", "lmcleaner unlearn"),
        (("unlearn",), "missing option '--forget'", "lmcleaner unlearn"),
        (("unlearn", "--forget", "x", "--level", "word"), "invalid value for '--level'", "lmcleaner unlearn"),
        (("audit", "verify"), "missing argument", "lmcleaner audit verify"),
        (("unlrn",), "no such command 'unlrn'", "lmcleaner"),
    ],
)
def test_a_wrong_command_line_is_an_error_as_every_other(
    arguments: tuple[str, ...], message: str, command: str
) -> None:
    said = _run(*arguments)
    assert (said.exit_code, said.stdout) == (2, "")
    assert said.stderr.startswith(f"error: {message}")
    assert said.stderr.endswith(f"\n\nhint: `{command} --help` explains the options\n")
    told = _run(*arguments, "--json")
    error = _json(told)["error"]
    assert (told.exit_code, error["kind"], error["exit_code"]) == (2, "usage", 2)
    assert error["message"].startswith(message)


def test_json_behind_a_script_is_the_scripts() -> None:
    refused = _run("record", "--bad", "--", "train.py", "--json")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert refused.stderr.startswith("error: no such option: --bad")


def test_without_a_word_the_commands_are_shown() -> None:
    shown = _run()
    assert shown.exit_code == 2
    assert "Record fine-tuning runs" in shown.output


def test_off_a_terminal_a_line_now_and_then_says_where_it_is(
    adamw_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("inspect", adamw_run.log, "--verify", "--replay", "all")
    assert "replay" not in _run(*command).stderr
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0.0)
    lines = _run(*command).stderr.splitlines()
    steps = adamw_run.open().num_steps
    assert any(re.fullmatch(rf"replaying: {steps - 1} of {steps}, about 0:00:0\d left", line) for line in lines), lines
    assert _run(*command, "--quiet").stderr == ""


def test_a_config_file_gives_defaults_and_a_flag_wins(adamw_run: TinyRun, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"forget": "forget", "K": "all", "hessian-mode": "secant", "dry_run": True}))
    arguments = ("unlearn", adamw_run.log, "--config", config, "--json")
    assert _json(_run(*arguments))["plan"]["mode"] == "secant"
    assert _json(_run(*arguments, "--hessian-mode", "exact"))["plan"]["mode"] == "exact"


@pytest.mark.parametrize(("content", "message"), [("epoch: 3", "no such option: epoch"), ("- 1", "expected a mapping")])
def test_a_config_file_that_makes_no_sense_is_refused(content: str, message: str, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(content)
    result = _run("unlearn", "--config", config)
    assert result.exit_code == 2
    assert message in result.stderr


def test_inspect_options_that_dont_go_together_are_refused(adamw_run: TinyRun) -> None:
    for options in (
        ["--verify", "--step", "1"],
        ["--plan"],
        ["--forget", "forget"],
        ["--replay", "all"],
        ["--rank", "3"],
    ):
        assert _run("inspect", adamw_run.log, *options).exit_code == 2


def _bent_log(run: TinyRun, folder: Path) -> Path:
    return Path(shutil.copytree(run.log, folder / "bent"))


def _cut_off(run: TinyRun, folder: Path) -> Path:
    """A log that lost its updates."""
    log = _bent_log(run, folder)
    shutil.rmtree(log / "generation-0" / "updates" / "c")
    return log


def _of_later_version(run: TinyRun, folder: Path) -> Path:
    log = _bent_log(run, folder)
    manifest = json.loads((log / "zarr.json").read_text())["attributes"]
    (log / "zarr.json").write_bytes(group_metadata(manifest | {"version": 9}))
    return log


ERRORS: dict[str, tuple[list[str], int, str]] = {
    "log not found": (["inspect", "{tmp}/none"], 10, "no training log"),
    "model of another run": (
        ["unlearn", "{log}", "--forget", "forget", "--output", "{tmp}/o", "--model", "{other}"],
        20,
        "not the base model of this log: .*expected fingerprint",
    ),
    "a row that the run never saw": (
        ["unlearn", "{log}", "--forget", "{unseen}", "--output", "{tmp}/o"],
        10,
        "never saw this: .*unseen.jsonl: row 1: 'who is zoe",
    ),
    "a request for everything": (
        ["unlearn", "{log}", "--forget", "{data}", "--output", "{tmp}/o"], 2, "names everything",
    ),
    "K below zero": (
        ["unlearn", "{log}", "--forget", "forget", "--output", "{tmp}/o", "--K", "-1"], 2, "--K: expected 0",
    ),
    "an output in a file": (
        ["unlearn", "{log}", "--forget", "forget", "--output", "{data}/o"], 30, "can't write: .*: not a folder: .*",
    ),
    "an output that exists": (["unlearn", "{log}", "--forget", "forget", "--output", "{tmp}"], 11, "exists already"),
    "a step outside the log": (["inspect", "{log}", "--step", "10"], 10, "expected 0 to 9, found 10"),
    "a step outside the log in a request": (
        ["unlearn", "{log}", "--forget", "steps:10", "--output", "{tmp}/o"], 10, "expected 0 to 9, found 10",
    ),
    "a log that lost its updates": (
        ["unlearn", "{cut}", "--forget", "forget", "--output", "{tmp}/o", "--hessian-mode", "secant"],
        12,
        r"damaged: .*updates, step \d",
    ),
    "a log of a later version": (["inspect", "{later}"], 13, "unknown version of a training log: .*found 9"),
    "a log that exists": (
        ["record", "{log}", "--model", "{base}", "--data", "{data}", "--output", "{tmp}/o"], 11, "log exists already",
    ),
    "no output": (["record", "{tmp}/l", "--model", "m", "--data", "d"], 2, "missing: --output"),
    "neither a model nor data": (["record", "{tmp}/l", "--output", "{tmp}/o"], 2, "missing: --model and --data"),
    "nothing to resume": (["record", "{log}", "--resume", "--output", "{tmp}/o"], 11, "nothing to resume: "),
    "data that isn't there": (
        ["record", "{tmp}/l", "--model", "{base}", "--data", "{tmp}/no.jsonl", "--output", "{tmp}/o"],
        10,
        "no such data",
    ),
    "a model that isn't there": (
        ["record", "{tmp}/l", "--model", "{tmp}/no", "--data", "{data}", "--output", "{tmp}/o"], 10, "no such model",
    ),
    "an option out of range": (
        ["record", "{tmp}/l", "--model", "{base}", "--data", "{data}", "--output", "{tmp}/o", "--epochs", "-1"],
        2,
        "--epochs: expected more than 0",
    ),
    "a folder without an audit": (["audit", "{tmp}", "--log", "{log}"], 10, "no audit document"),
    "the paper's form with secant": (
        ["unlearn", "{log}", "--forget", "forget", "--output", "{tmp}/o", "--propagation", "paper", "--hessian-mode",
         "secant"],
        2,
        "needs a Hessian",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_an_error_has_its_exit_code_message_and_leaves_nothing_behind(
    case: str, adamw_run: TinyRun, tmp_path_factory: pytest.TempPathFactory
) -> None:
    arguments, code, message = ERRORS[case]
    inputs, tmp = tmp_path_factory.mktemp("inputs"), tmp_path_factory.mktemp("outputs")
    places = {
        "log": adamw_run.log,
        "data": adamw_run.data,
        "base": adamw_run.base,
        "tmp": tmp,
        "other": write_base_model(inputs / "other", seed=3),
        "unseen": write_rows(inputs / "unseen.jsonl", [{"question": "who is zoe ?", "answer": "a river"}]),
        "cut": _cut_off(adamw_run, inputs / "cut"),
        "later": _of_later_version(adamw_run, inputs / "later"),
    }
    result = _run(*(argument.format(**places) for argument in arguments))
    assert result.exit_code == code, result.output
    error, hint = result.stderr.splitlines()[-3], result.stderr.splitlines()[-1]
    assert re.fullmatch(f"error: .*{message}.*", error), result.stderr
    assert re.fullmatch("hint: .+", hint), result.stderr
    assert list(tmp.iterdir()) == []


def test_a_value_that_is_not_finite_has_its_own_code(base_model: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "train.jsonl", rows(8))
    result = _run(
        "record", tmp_path / "log", "--model", base_model, "--data", data, "--output", tmp_path / "o", "--epochs", 50,
        "--optimizer", "sgd", "--lr", 1e30, "--max-grad-norm", 0, "--batch-size", 4,
    )  # fmt: skip
    assert result.exit_code == 21, result.output
    assert "the gradient is not finite: step" in result.stderr
    log = TrainingLog(tmp_path / "log")
    assert log.num_steps > 0
    assert not log.commit.finished
    assert not (tmp_path / "o").exists()


def test_resuming_takes_model_data_and_options_from_the_log(base_model: Path, tmp_path: Path) -> None:
    data, log, output = write_rows(tmp_path / "train.jsonl", rows(12)), tmp_path / "log", tmp_path / "trained"
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"output": str(output), "lr": 0.001}))
    options = ("--model", base_model, "--data", data, "--batch-size", 4, "--epochs", 150, "--lr", 0.001)
    command = ["record", str(log), *map(str, options), "--output", str(output), "--checkpoint-every", "100"]
    _interrupt(command, lambda: _committed_steps(log) >= 16)
    refused = _run("record", log, "--resume", "--config", config, "--lr", 0.002)
    assert refused.exit_code == 2
    assert "error: --lr: the log was recorded with 0.001, found 0.002" in refused.stderr
    resumed = _run("record", log, "--resume", "--config", config, "--json")
    assert resumed.exit_code == 0, resumed.output
    assert _json(resumed)["num_steps"] == 450
    again = _run("record", log, "--resume", "--output", tmp_path / "again")
    assert again.exit_code == 11
    assert "nothing to resume" in again.stderr


@pytest.mark.slow
@pytest.mark.parametrize("wait", ["recording", "unlearning"])
def test_ctrl_c_leaves_nothing_half_written(wait: str, base_model: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "train.jsonl", rows(40))
    write_rows(tmp_path / "forget.jsonl", rows(40)[-2:])
    log, output = tmp_path / "log", tmp_path / "out"
    options = ["--model", str(base_model), "--data", str(data), "--batch-size", "2"]
    epochs = "5000" if wait == "recording" else "10"
    record = ["record", str(log), *options, "--output", str(tmp_path / "trained"), "--epochs", epochs]
    if wait == "recording":
        said = _interrupt(record, lambda: _committed_steps(log) >= 40)
        assert f"{log} holds {_committed_steps(log)} steps; go on from there with --resume\n" in said
        assert not (tmp_path / "trained").exists()
        assert not (log / "lock.json").exists()
        assert _run("inspect", log, "--verify").exit_code == 0
        return
    assert _run(*record).exit_code == 0
    _interrupt(["unlearn", str(log), "--forget", "forget", "--output", str(output), "--oracle"], lambda: True)
    assert {file.name for file in tmp_path.iterdir()} == {"train.jsonl", "forget.jsonl", "log", "trained"}


def _committed_steps(log: Path) -> int:
    return TrainingLog(log).num_steps if (log / "commit" / "zarr.json").exists() else 0


def _let_ctrl_c_through() -> None:
    """A shell's background job ignores ctrl-C, and its children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _interrupt(arguments: list[str], ready: Any) -> str:
    """Starts the command, waits for its plan and `ready`, presses ctrl-C, expects exit code 130; what it said then."""
    program = [sys.executable, "-c", "from lmcleaner.cli.main import main; main()", *arguments]
    process = subprocess.Popen(
        program, stderr=subprocess.PIPE, text=True, env=dict(os.environ), preexec_fn=_let_ctrl_c_through
    )
    assert process.stderr is not None
    first_line = process.stderr.readline()
    while not ready():
        assert process.poll() is None, first_line
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 130, first_line + rest
    assert "interrupted" in rest
    return rest
