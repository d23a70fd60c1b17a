"""The recorder on a loop of one's own: what it takes, and what it refuses rather than record wrongly."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from lmcleaner.formats.errors import DivergedError, ExistsError, UsageError
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.recording.describe import RunDescription
from lmcleaner.recording.recorder import Recorder

Batch = dict[str, Tensor]


class Loop:
    """A small training loop that tests bend."""

    def __init__(self, base: Path, log: Path, **description: Any) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(base).train()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        chosen: dict[str, Any] = {"model_source": str(base), "padding_token": 2, **description}
        self.description = RunDescription(**chosen)
        self.log = log

    def record(self) -> Recorder:
        return Recorder(self.log, self.model, self.optimizer, self.description)

    def step(self, **changes: Any) -> None:
        self.model(**(batch() | changes)).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def batch() -> Batch:
    tokens = torch.arange(3, 15).reshape(2, 6)
    return {"input_ids": tokens, "labels": tokens.clone(), "attention_mask": torch.ones_like(tokens)}


@pytest.fixture
def loop(base_model: Path, tmp_path: Path) -> Loop:
    return Loop(base_model, tmp_path / "log")


def test_a_pass_that_doesnt_train_is_not_recorded(loop: Loop) -> None:
    with loop.record():
        loop.model.eval()
        loop.model(**batch())
        loop.model.train()
        with torch.no_grad():
            loop.model(**batch())
        loop.step()
    assert len(TrainingLog(loop.log).step(0).microbatches) == 1


def test_the_same_content_twice_is_one_sample(loop: Loop) -> None:
    with loop.record():
        loop.step()
        loop.step()
    log = TrainingLog(loop.log)
    assert len(log.table("samples/stop")) == 2
    assert len(log.table("occurrences/sample")) == 4


def test_an_exception_in_the_loop_keeps_the_complete_steps_and_says_interrupted(loop: Loop) -> None:
    with pytest.raises(KeyboardInterrupt), loop.record():  # noqa: PT012 -- the loop is the point
        loop.step()
        loop.model(**batch()).loss.backward()
        raise KeyboardInterrupt
    log = TrainingLog(loop.log)
    assert (log.num_steps, log.commit.finished) == (1, False)


def test_hooks_are_gone_afterwards(loop: Loop) -> None:
    with loop.record():
        loop.step()
    loop.step()
    assert TrainingLog(loop.log).num_steps == 1


def _no_labels(loop: Loop) -> None:
    loop.model(input_ids=batch()["input_ids"])


def _position_ids(loop: Loop) -> None:
    loop.step(position_ids=torch.arange(6).expand(2, 6), use_cache=False)


def _broken_mask(loop: Loop) -> None:
    loop.step(attention_mask=torch.tensor([[1, 0, 1, 1, 1, 1]] * 2))


def _labels_on_padding(loop: Loop) -> None:
    loop.step(attention_mask=torch.tensor([[0, 1, 1, 1, 1, 1]] * 2))


def _step_without_forward(loop: Loop) -> None:
    loop.optimizer.step()


def _changed_momentum(loop: Loop) -> None:
    loop.optimizer.param_groups[0]["momentum"] = 0.5
    loop.step()


REFUSED: dict[str, tuple[Callable[[Loop], None], str]] = {
    "no labels": (_no_labels, "input_ids|labels|no loss"),
    "positions beside a mask": (_position_ids, "position_ids beside an attention mask"),
    "a mask with a hole": (_broken_mask, "unbroken run of ones"),
    "labels on padding": (_labels_on_padding, "padding: expected token 2 and label -100"),
    "a step without a forward pass": (_step_without_forward, "without a forward pass"),
    "another hyperparameter that changes": (_changed_momentum, "momentum changed"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_replay_could_not_reproduce_is_refused(case: str, loop: Loop) -> None:
    act, message = REFUSED[case]
    with pytest.raises(UsageError, match=message), loop.record():
        act(loop)


def test_a_loop_that_doesnt_clip_as_it_said_is_refused(base_model: Path, tmp_path: Path) -> None:
    loop = Loop(base_model, tmp_path / "log", max_grad_norm=1e-3)
    with pytest.raises(UsageError, match="doesn't clip as it was said to: step 0"), loop.record():
        loop.step()


def test_a_gradient_that_is_not_finite_stops_the_run_before_the_step(loop: Loop) -> None:
    with pytest.raises(DivergedError, match="not finite: step 1") as caught, loop.record():  # noqa: PT012
        loop.step()
        (loop.model(**batch()).loss * math.inf).backward()
        loop.optimizer.step()
    assert caught.value.exit_code == 21
    assert TrainingLog(loop.log).num_steps == 1


class SGD(torch.optim.SGD):
    """Somebody else's, by the name of one of torch's."""


@pytest.mark.parametrize("kind", [SGD, torch.optim.LBFGS, torch.optim.SparseAdam])
def test_an_optimizer_that_no_replay_could_use_is_refused_before_the_run(
    kind: Any, base_model: Path, tmp_path: Path
) -> None:
    loop = Loop(base_model, tmp_path / "log")
    loop.optimizer = kind(loop.model.parameters(), lr=0.1)
    with pytest.raises(UsageError, match=rf"unsupported optimizer.*{kind.__name__}"):
        loop.record()
    assert not loop.log.exists()


def test_a_parameter_that_the_optimizer_doesnt_hold_is_refused(base_model: Path, tmp_path: Path) -> None:
    loop = Loop(base_model, tmp_path / "log")
    loop.optimizer = torch.optim.SGD(list(loop.model.parameters())[1:], lr=0.1)
    with pytest.raises(UsageError, match=r"not in the optimizer: model\.embed_tokens\.weight"):
        loop.record()


def test_frozen_parameters_are_left_alone(base_model: Path, tmp_path: Path) -> None:
    loop = Loop(base_model, tmp_path / "log")
    loop.model.model.embed_tokens.weight.requires_grad_(False)
    trained = [parameter for parameter in loop.model.parameters() if parameter.requires_grad]
    loop.optimizer = torch.optim.SGD(trained, lr=0.1)
    with loop.record():
        loop.step()
    log = TrainingLog(loop.log)
    assert "model.embed_tokens.weight" not in {entry.name for entry in log.manifest.parameters}
    assert log.manifest.num_elements == sum(parameter.numel() for parameter in trained)


def test_a_log_that_exists_is_not_overwritten(loop: Loop) -> None:
    with loop.record():
        loop.step()
    with pytest.raises(ExistsError, match="exists already"):
        loop.record()
