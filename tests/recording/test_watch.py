"""A training that doesn't know of it is watched, whoever starts to watch; what can't be recorded is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.modules.module as torch_modules
import torch.optim.optimizer as torch_optimizers
from torch import nn
from trainings import STEPS, Run, batches, by_trainer
from transformers import AutoConfig, AutoModelForCausalLM, TrainerCallback

from lmcleaner.formats.errors import UsageError
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.inspection.verify import verify
from lmcleaner.recording.callback import LMCleanerCallback
from lmcleaner.recording.logger import TrainingLogger
from lmcleaner.recording.options import WatchOptions
from lmcleaner.recording.watch import Watch


def load(base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base).train()


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-2)


def two_steps(model: Any, optimizer: torch.optim.Optimizer, factor: float = 1.0) -> None:
    for batch in batches(2):
        (model(**batch).loss * factor).backward()
        optimizer.step()
        optimizer.zero_grad()


def hooks_of_torch() -> int:
    return len(torch_modules._global_forward_pre_hooks) + len(torch_optimizers._global_optimizer_pre_hooks)


def no_step(base: Path) -> None:
    load(base)(**batches(1)[0]).loss.backward()


def two_optimizers(base: Path) -> None:
    model = load(base)
    two_steps(model, optimizer_of(model))
    two_steps(model, optimizer_of(model))


def other_factors(base: Path) -> None:
    model = load(base)
    for factor, batch in enumerate(batches(2), start=1):
        (model(**batch).loss * factor).backward()
    optimizer_of(model).step()


def half_of_the_parameters(base: Path) -> None:
    model = load(base)
    two_steps(model, torch.optim.SGD(list(model.parameters())[::2], lr=0.1))


def another_model(base: Path) -> None:
    model = nn.Linear(2, 1)
    model(torch.ones(1, 2)).sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()


def from_nowhere(base: Path) -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base)).train()
    model.config._name_or_path = ""
    two_steps(model, optimizer_of(model))


def clipped_otherwise(base: Path) -> None:
    model = load(base)
    model(**batches(1)[0]).loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0, norm_type=1)


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "no step": (no_step, "nothing was recorded: the training took no optimizer step"),
    "two optimizers": (two_optimizers, "two optimizers: a AdamW takes a step beside the recorded AdamW"),
    "microbatches with different weights": (other_factors, r"factors \[1.0, 2.0\]"),
    "an optimizer of half of the parameters": (half_of_the_parameters, "no model to record: .* found LlamaForCausalLM"),
    "a model without labels": (another_model, "no model to record: .* a SGD of 2 parameters; found none"),
    "a model from nowhere": (from_nowhere, "the base model's place isn't known"),
    "clipping by another norm": (clipped_otherwise, "expected the L2 norm, found norm_type 1"),
}


@pytest.mark.parametrize(("training", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_recorded_is_refused_and_nothing_is_left_attached(
    training: Callable[[Path], None], message: str, base_model: Path, tmp_path: Path
) -> None:
    before, clip = hooks_of_torch(), nn.utils.clip_grad_norm_
    with pytest.raises(UsageError, match=message), Watch(str(tmp_path / "log")):
        training(base_model)
    assert hooks_of_torch() == before
    assert nn.utils.clip_grad_norm_ is clip


@pytest.mark.parametrize("factor", [0.5, 1 / 3, 2.0, 0.37])
def test_whatever_a_loop_multiplies_its_loss_by_is_found(factor: float, base_model: Path, tmp_path: Path) -> None:
    model = load(base_model)
    with Watch(str(tmp_path / "log")):
        two_steps(model, optimizer_of(model), factor)
    log = TrainingLog(tmp_path / "log")
    assert log.manifest.loss_divisor == pytest.approx(1 / factor, rel=1e-6)
    if factor != 0.37:  # a division by 2.7027 rounds otherwise than a product with 0.37
        assert verify(log, replay_steps=2).is_sound


def test_a_training_that_fails_keeps_its_complete_steps(base_model: Path, tmp_path: Path) -> None:
    model = load(base_model)
    before = hooks_of_torch()
    with pytest.raises(RuntimeError, match="by itself"), Watch(str(tmp_path / "log")):  # noqa: PT012 -- as a loop
        two_steps(model, optimizer_of(model))
        raise RuntimeError("by itself")
    log = TrainingLog(tmp_path / "log")
    assert (log.num_steps, log.commit.finished) == (2, False)
    assert hooks_of_torch() == before


def test_a_trainer_that_fails_can_be_closed(base_model: Path, tmp_path: Path) -> None:
    callback = LMCleanerCallback(tmp_path / "log")
    with pytest.raises(InterruptedError):
        by_trainer(Run(base=base_model, accumulation=1, callbacks=(callback, StopAfter(3))))
    callback.close()
    log = TrainingLog(tmp_path / "log")
    assert (log.num_steps, log.commit.finished, log.manifest.planned_steps) == (3, False, STEPS)


def test_a_trainer_that_failed_is_closed_when_the_next_one_begins(base_model: Path, tmp_path: Path) -> None:
    before, callback = hooks_of_torch(), LMCleanerCallback(tmp_path / "failed")
    for stop in (1, 3):  # within the first step, and with a log
        with pytest.raises(InterruptedError):
            by_trainer(Run(base=base_model, accumulation=1, callbacks=(callback, StopAfter(stop, is_early=stop == 1))))
    by_trainer(Run(base=base_model, accumulation=1, callbacks=(LMCleanerCallback(tmp_path / "log"),)))
    failed, log = (TrainingLog(tmp_path / name) for name in ("failed", "log"))
    assert (failed.num_steps, failed.commit.finished) == (3, False)
    assert (log.num_steps, log.commit.finished) == (STEPS, True)
    assert hooks_of_torch() == before


def test_two_logs_of_one_training_are_refused(base_model: Path, tmp_path: Path) -> None:
    both = tuple(LMCleanerCallback(tmp_path / name) for name in ("one", "other"))
    with pytest.raises(UsageError, match=r"one training can't write two logs: found .*one and .*other"):
        by_trainer(Run(base=base_model, accumulation=1, callbacks=both))
    both[0].close()


class StopAfter(TrainerCallback):
    """Ends a training by an exception."""

    def __init__(self, steps: int, *, is_early: bool = False) -> None:
        self._steps, self._is_early = steps, is_early

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if self._is_early:
            raise InterruptedError

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if state.global_step == self._steps:
            raise InterruptedError


def test_a_model_from_nowhere_is_recorded_where_its_place_is_told(base_model: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base_model)).train()
    model.save_pretrained(tmp_path / "base")
    with Watch(str(tmp_path / "log"), WatchOptions(model_source=str(tmp_path / "base"))):
        two_steps(model, optimizer_of(model))
    assert verify(TrainingLog(tmp_path / "log"), replay_steps=2).is_sound


LIES: dict[str, tuple[dict[str, Any], str]] = {
    "another step": ({"step_id": 3}, "step_id: expected 0, the last step taken, found 3"),
    "another learning rate": ({"eta": 0.5}, "eta: expected 0.01, which the optimizer used, found 0.5"),
    "another model": ({"model": nn.Linear(1, 1)}, "expected the recorded LlamaForCausalLM, found another model"),
}


@pytest.mark.parametrize(("lie", "message"), LIES.values(), ids=LIES)
def test_the_logger_refuses_what_was_not_so(
    lie: dict[str, Any], message: str, base_model: Path, tmp_path: Path
) -> None:
    logger = TrainingLogger(tmp_path / "log")
    model = load(base_model)
    model(**batches(1)[0]).loss.backward()
    with pytest.raises(UsageError, match="no optimizer step was seen"):
        logger.register_step(step_id=0, batch_id=0, eta=1e-2, model=model)
    optimizer_of(model).step()
    with pytest.raises(UsageError, match=message):
        logger.register_step(**({"step_id": 0, "batch_id": 0, "eta": 1e-2, "model": model} | lie))
    logger.register_step(step_id=0, batch_id=0, eta=1e-2, model=model)
    logger.save_to_disk()
    assert TrainingLog(tmp_path / "log").commit.finished
    with pytest.raises(UsageError, match="finished already"):
        logger.save_to_disk()


def test_the_logger_knows_two_modes(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="mode: expected one of batch, sample, found 'row'"):
        TrainingLogger(tmp_path / "log", mode="row")  # type: ignore[arg-type]
