"""`lmcleaner record LOG -- train.py`: the script does what it does by itself, and its training is in the log."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lmcleaner import HessianMode, UnlearnOptions, unlearn
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.inspection.verify import verify

SCRIPT = """
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

import own_module

if __name__ == "__main__":
    base, output, rest = sys.argv[1], sys.argv[2], sys.argv[3:]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(own_module.STEPS):
        tokens = torch.randint(3, 20, (2, 6))
        model(tokens, labels=tokens).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if rest == ["--fail", str(step)]:
            raise ValueError("as it would by itself")
        if rest == ["--exit", str(step)]:
            sys.exit("enough")
    model.save_pretrained(output)
    print("trained", Path(__file__).name, __name__)
    if rest == ["--exit", "well"]:
        sys.exit(0)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "train.py").write_text(SCRIPT)
    (tmp_path / "code" / "own_module.py").write_text("STEPS = 5\n")
    (tmp_path / "code" / "broken.py").write_text("raise ValueError('at once')\n")
    return tmp_path


def run(folder: Path, *command: object, where: str = ".") -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "LMCLEANER_LOG"}
    return subprocess.run(
        [sys.executable, *map(str, command)], cwd=folder / where, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


MAIN = ("-c", "from lmcleaner.cli.main import main; main()")


@pytest.mark.parametrize("script", [("code/train.py",), ("-m", "train")])
def test_a_script_prints_and_trains_what_it_does_by_itself(
    script: tuple[str, ...], base_model: Path, folder: Path
) -> None:
    where = "code" if script[0] == "-m" else "."
    log = folder / "log"
    plain = run(folder, *script, base_model, folder / "plain", where=where)
    recorded = run(
        folder, *MAIN, "record", log, "--checkpoint-every", 2, "--", *script, base_model, folder / "recorded",
        where=where,
    )  # fmt: skip
    assert recorded.returncode == 0, recorded.stderr
    assert recorded.stdout == plain.stdout == "trained train.py __main__\n"
    assert "recorded 5 steps in" in recorded.stderr
    weights = [(folder / name / "model.safetensors").read_bytes() for name in ("plain", "recorded")]
    assert weights[0] == weights[1]
    opened = TrainingLog(log)
    assert opened.checkpoint_steps == (0, 2, 4, 5)
    assert opened.manifest.max_grad_norm == 1.0
    found = verify(opened, replay_steps=5)
    assert found.replay is not None
    assert found.replay.num_exact == 5


def test_a_script_that_fails_fails_as_it_would_and_can_be_resumed(base_model: Path, folder: Path) -> None:
    for how, code, said in (("--fail", 1, "ValueError: as it would by itself"), ("--exit", 1, "enough")):
        log = folder / how.strip("-")
        done = run(folder, *MAIN, "record", log, "--", "code/train.py", base_model, folder / "out", how, 2)
        assert done.returncode == code
        assert said in done.stderr
        assert "a bug in lmcleaner" not in done.stderr
        assert (TrainingLog(log).num_steps, TrainingLog(log).commit.finished) == (3, False)
    unlearn(
        folder / "fail", UnlearnOptions(forget="steps:1", output=folder / "without", hessian_mode=HessianMode.SECANT)
    )
    done = run(folder, *MAIN, "record", "fail", "--resume", "--", "code/train.py", base_model, folder / "out")
    assert done.returncode == 0, done.stderr
    assert "the log's ledger holds 1 request: the run goes on with all rows" in done.stderr
    resumed = TrainingLog(folder / "fail")
    assert (resumed.num_steps, resumed.commit.finished) == (5, True)
    assert resumed.commit.self_check is not None
    assert resumed.commit.self_check.state == "exact"


def test_a_script_that_exits_well_has_ended_by_itself(base_model: Path, folder: Path) -> None:
    done = run(folder, *MAIN, "record", "log", "--", "code/train.py", base_model, folder / "out", "--exit", "well")
    assert done.returncode == 0, done.stderr
    log = TrainingLog(folder / "log")
    assert (log.num_steps, log.commit.finished) == (5, True)
    assert log.commit.self_check is not None


def test_with_json_stdout_is_one_document(base_model: Path, folder: Path) -> None:
    done = run(folder, *MAIN, "record", "log", "--json", "--", "code/train.py", base_model, folder / "out")
    assert json.loads(done.stdout) == {
        "log": "log", "exit_code": 0, "num_steps": 5, "finished": True, "replayable": "exact",
    }  # fmt: skip
    assert "trained train.py" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("record", "log", "--", "code/own_module.py"), 2, "nothing was recorded"),
        (("record", "log", "--", "code/broken.py"), 1, "ValueError: at once\n"),
    ],
)
def test_a_script_that_trains_nothing_leaves_no_log(
    arguments: tuple[object, ...], code: int, message: str, folder: Path
) -> None:
    done = run(folder, *MAIN, *arguments)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert not (folder / "log").exists()
