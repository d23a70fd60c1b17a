"""A run that can't be replayed shows when it ends, not when somebody asks it to forget."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner, Result

from lmcleaner.cli.main import app
from lmcleaner.formats.commit import SelfCheck
from lmcleaner.formats.errors import InsufficientLogError
from lmcleaner.formats.pruning import Pruning, prune
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.recording.describe import RunDescription
from lmcleaner.recording.recorder import Recorder
from lmcleaner.recording.self_check import record_self_check, self_check
from tiny_runs import TinyRun, record_tiny, unlearn_tiny, write_base_model

STEPS = 9
FROZEN = "model.norm.weight"
Change = Callable[[nn.Module], None]


class Loop:
    """A small training loop that tests bend."""

    def __init__(self, base: Path, log: Path, **options: Any) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(base).train()
        self.model.get_parameter(FROZEN).requires_grad_(False)
        trained = (parameter for parameter in self.model.parameters() if parameter.requires_grad)
        self.optimizer = torch.optim.AdamW(trained, lr=1e-2)
        description = RunDescription(model_source=str(base), checkpoint_every=4, **options)
        self.recorder = Recorder(log, self.model, self.optimizer, description)
        self.log = log

    def run(self, *, penalty: float = 0.0, between: Change | None = None) -> SelfCheck:
        with self.recorder:
            for step in range(STEPS):
                tokens = torch.randint(3, 20, (2, 6), generator=torch.Generator().manual_seed(step))
                loss = self.model(input_ids=tokens, labels=tokens).loss
                if penalty:
                    loss = loss + penalty * sum(parameter.square().sum() for parameter in self.model.parameters())
                loss.backward()
                self.optimizer.step()
                self.optimizer.zero_grad()
                if between is not None:
                    between(self.model)
        found = TrainingLog(self.log).commit.self_check
        assert found is not None
        assert found == self.recorder.self_check
        return found


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def _request(log: Path) -> str:
    return TrainingLog(log).step(0).samples[0].digest.hex()


def _refused(log: Path, output: Path, message: str) -> None:
    done = _run("unlearn", log, "--forget", _request(log), "--output", output, "--hessian-mode", "secant", "--K", "all")
    assert done.exit_code == 14
    assert "the run can't be replayed, so nothing can be removed from it" in done.stderr
    assert message in done.stderr
    assert not output.exists()


def test_a_run_that_can_be_replayed_says_so(base_model: Path, tmp_path: Path) -> None:
    found = Loop(base_model, tmp_path / "log").run()
    assert found == SelfCheck(state="exact", steps=5, error=0.0, why="")  # two behind 0 and 4, one behind 8
    assert json.loads(_run("inspect", tmp_path / "log", "--json").stdout)["replayable"] == "exact"
    assert "replayable   exact" in _run("inspect", tmp_path / "log").stdout


def test_checking_leaves_the_random_numbers_of_the_training_alone(tmp_path: Path) -> None:
    base = write_base_model(tmp_path / "base", dropout=0.3)
    drawn = []
    for is_checked in (True, False):
        loop = Loop(base, tmp_path / f"log {is_checked}")
        if not is_checked:
            loop.recorder = Recorder(
                loop.log, loop.model, loop.optimizer, RunDescription(model_source=str(base)), self_check=False
            )
        torch.manual_seed(7)
        with loop.recorder:
            loop.model(input_ids=torch.tensor([[3, 4, 5]]), labels=torch.tensor([[3, 4, 5]])).loss.backward()
            loop.optimizer.step()
        drawn.append(torch.rand(3))
    assert torch.equal(*drawn)
    assert TrainingLog(tmp_path / "log True").commit.self_check == SelfCheck(state="exact", steps=1, error=0.0, why="")


def _frozen_moves(model: nn.Module) -> None:
    """A weight that isn't trained, which nobody looks at while the run goes on."""
    with torch.no_grad():
        model.get_parameter(FROZEN).add_(1e-1)


def _shifted(module: nn.Module, inputs: Any) -> Any:
    return (inputs[0].roll(1, dims=-1),)


def _noisy(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output + 0.1 * torch.randn_like(output)


def _augmented(loop: Loop) -> SelfCheck:
    with loop.model.get_input_embeddings().register_forward_pre_hook(_shifted):
        return loop.run()


def _with_noise(loop: Loop) -> SelfCheck:
    with loop.model.get_input_embeddings().register_forward_hook(_noisy):
        return loop.run()


FORWARD = "the model returned another loss: its inputs were changed on their way, or noise was put into it"
BETWEEN = "something changed the model between two steps"
BACKWARD = "the model returned the same loss: the loop added to it, or changed gradients"

PLANTED: dict[str, tuple[Callable[[Loop], SelfCheck], int, str]] = {
    "a loss that the loop adds to": (lambda loop: loop.run(penalty=0.1), 0, BACKWARD),
    "a frozen weight that changes between two steps": (lambda loop: loop.run(between=_frozen_moves), 1, BETWEEN),
    "inputs that are augmented behind the recorder": (_augmented, 0, FORWARD),
    "noise in the embeddings": (_with_noise, 0, FORWARD),
}


@pytest.mark.parametrize(("run", "step", "cause"), PLANTED.values(), ids=PLANTED)
def test_what_no_hook_sees_is_found_and_named(
    run: Callable[[Loop], SelfCheck], step: int, cause: str, base_model: Path, tmp_path: Path
) -> None:
    found = run(Loop(base_model, tmp_path / "log"))
    assert found.state == "no"
    assert found.error is not None
    assert found.error > 0.01
    assert f"a replay of step {step} gives other parameters than the run had" in found.why
    assert cause in found.why
    _refused(tmp_path / "log", tmp_path / "out", found.why)


def test_a_small_difference_is_said_and_the_log_still_serves(base_model: Path, tmp_path: Path) -> None:
    found = Loop(base_model, tmp_path / "log").run(penalty=1e-7)
    assert found.state == "close"
    assert found.error is not None
    assert 0 < found.error <= 0.01
    done = _run(
        "unlearn", tmp_path / "log", "--forget", _request(tmp_path / "log"), "--output", tmp_path / "out",
        "--hessian-mode", "secant", "--K", "all",
    )  # fmt: skip
    assert done.exit_code == 0
    assert "replays of this run come close only" in done.stderr


def test_without_updates_a_difference_has_no_size(base_model: Path, tmp_path: Path) -> None:
    found = Loop(base_model, tmp_path / "log", updates="none").run(penalty=1e-7)
    assert (found.state, found.error) == ("no", None)
    assert "off by an unknown distance" in found.why


def test_a_base_model_that_is_gone_or_another_is_found(base_model: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(base_model, tmp_path / "base"))
    Loop(base, tmp_path / "log").run()
    shutil.move(base, tmp_path / "moved")
    assert self_check(TrainingLog(tmp_path / "log")).state == "no"
    assert self_check(TrainingLog(tmp_path / "log"), str(tmp_path / "moved")).state == "exact"
    found = record_self_check(tmp_path / "log")
    assert found.why.startswith(f"no such model: {base}")
    with pytest.raises(InsufficientLogError, match="no such model"):
        unlearn_tiny(_as_run(tmp_path), tmp_path / "out", forget=_request(tmp_path / "log"))


def _as_run(folder: Path) -> TinyRun:
    nothing: Any = None
    return TinyRun(base=nothing, data=nothing, log=folder / "log", trained=nothing, options=nothing)


def test_nobody_checks_a_run_that_was_interrupted_or_that_asked_not_to(base_model: Path, tmp_path: Path) -> None:
    loop = Loop(base_model, tmp_path / "log")
    with pytest.raises(KeyboardInterrupt):
        loop.run(between=_interrupt)
    assert TrainingLog(tmp_path / "log").commit.self_check is None
    loop = Loop(base_model, tmp_path / "unchecked")
    loop.recorder = Recorder(
        tmp_path / "unchecked", loop.model, loop.optimizer, RunDescription(model_source=str(base_model)),
        self_check=False,
    )  # fmt: skip
    with loop.recorder:
        loop.model(input_ids=torch.tensor([[3, 4]]), labels=torch.tensor([[3, 4]])).loss.backward()
        loop.optimizer.step()
    assert TrainingLog(tmp_path / "unchecked").commit.self_check is None


def _interrupt(model: nn.Module) -> None:
    raise KeyboardInterrupt


def test_pruning_keeps_what_the_log_says_of_itself_and_redaction_drops_it(base_model: Path, tmp_path: Path) -> None:
    run = record_tiny(base_model, tmp_path, lr=1e-3)
    assert run.open().commit.self_check is not None
    prune(run.log, Pruning(keep_checkpoints_every=2))
    assert run.open().commit.self_check is not None
    unlearn_tiny(run, tmp_path / "out", redact=True)
    assert run.open().commit.self_check is None
