"""A training that doesn't know of it is recorded bit for bit, whoever starts to watch it."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.modules.module as torch_modules
import torch.optim.optimizer as torch_optimizers
from accelerate import Accelerator  # type: ignore[import-untyped]
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

from lmcleaner.choices import HessianMode
from lmcleaner.formats.errors import UsageError
from lmcleaner.formats.layout import TABLES
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.samples import IGNORED_LABEL, Sample
from lmcleaner.inspection.verify import verify
from lmcleaner.recording.callback import LMCleanerCallback
from lmcleaner.recording.logger import TrainingLogger
from lmcleaner.recording.watch import Watch, WatchOptions
from lmcleaner.unlearning.options import UnlearnOptions
from lmcleaner.unlearning.run import unlearn
from tiny_runs import parameters_in

STEPS, ROWS, LENGTH, PADDING = 6, 3, 8, 2
MAX_NORM = 0.5
FORGOTTEN = ((0, 1), (4, 2))  # microbatch and row
Batch = dict[str, Tensor]
Forgotten = Iterable[tuple[int, int]]


def batches(count: int, forgotten: Forgotten = ()) -> list[Batch]:
    """Right-padded rows of different lengths; forgotten ones have no labels."""
    found = []
    for number in range(count):
        generator = torch.Generator().manual_seed(number)
        tokens = torch.randint(3, 20, (ROWS, LENGTH), generator=generator)
        lengths = torch.randint(4, LENGTH + 1, (ROWS, 1), generator=generator)
        mask = (torch.arange(LENGTH) < lengths).long()
        labels = tokens.masked_fill(mask == 0, IGNORED_LABEL)
        for row in (row for at, row in forgotten if at == number):
            labels[row] = IGNORED_LABEL
        found.append({
            "input_ids": tokens.masked_fill(mask == 0, PADDING),
            "attention_mask": mask,
            "labels": labels,
        })  # fmt: skip
    return found


def digests() -> str:
    """The forgotten rows, by their content."""
    whole = batches(STEPS * 3)
    found = []
    for at, row in FORGOTTEN:
        size = int(whole[at]["attention_mask"][row].sum())
        tokens, labels = (whole[at][name][row, :size].int().numpy() for name in ("input_ids", "labels"))
        found.append(Sample(tokens, labels).digest.hex())
    return ",".join(found)


def load(base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base).train()


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-2)


def counted(batch: Batch) -> Tensor:
    """The denominator of all rows, those without labels too, so that a run without them divides by the same."""
    return batch["attention_mask"][:, 1:].sum()


def plain_loop(base: Path, forgotten: Forgotten = (), after: Callable[..., None] | None = None) -> Any:
    """As anybody would write it: clips, moves a schedule on, doesn't accumulate."""
    model = load(base)
    optimizer = optimizer_of(model)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=STEPS)
    for step, (batch, whole) in enumerate(zip(batches(STEPS, forgotten), batches(STEPS), strict=True)):
        model(**batch, num_items_in_batch=counted(whole)).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        if after is not None:
            after(step_id=step, batch_id=step, eta=schedule.get_last_lr()[0], model=model)
        schedule.step()
        optimizer.zero_grad()
    return model


def accumulating_loop(base: Path, forgotten: Forgotten = (), after: Callable[..., None] | None = None) -> Any:
    """Divides each microbatch's mean by their number, and gives arguments by place."""
    model = load(base)
    optimizer = optimizer_of(model)
    pairs = list(zip(batches(STEPS * 3, forgotten), batches(STEPS * 3), strict=True))
    for step in range(STEPS):
        for batch, whole in pairs[3 * step : 3 * step + 3]:
            inputs = batch["input_ids"], batch["attention_mask"]
            loss = model(*inputs, labels=batch["labels"], num_items_in_batch=counted(whole)).loss
            (loss / 3).backward()
        optimizer.step()
        if after is not None:
            after(step_id=step, batch_id=f"batch {step}", eta=1e-2, model=model)
        optimizer.zero_grad(set_to_none=True)
    return model


def accelerate_loop(base: Path, forgotten: Forgotten = (), after: Callable[..., None] | None = None) -> Any:
    """With Accelerate's optimizer, accumulation and clipping."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=3)
    model = load(base)
    model, optimizer = accelerator.prepare(model, optimizer_of(model))
    step = 0
    for batch, whole in zip(batches(STEPS * 3, forgotten), batches(STEPS * 3), strict=True):
        with accelerator.accumulate(model):
            accelerator.backward(model(**batch, num_items_in_batch=counted(whole)).loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), MAX_NORM)
            optimizer.step()
            if accelerator.sync_gradients and after is not None:
                after(step_id=step, batch_id=step, eta=1e-2, model=accelerator.unwrap_model(model))
            step += accelerator.sync_gradients
            optimizer.zero_grad()
    return accelerator.unwrap_model(model)


class CountingTrainer(Trainer):
    """Divides by all rows, those without labels too."""

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Batch], Any]:
        found, _ = super().get_batch_samples(*args, **kwargs)
        return found, sum(counted(batch) for batch in found)


def trainer_of(base: Path, scratch: Path, forgotten: Forgotten = (), **options: Any) -> Trainer:
    rows = [
        {name: value[row] for name, value in batch.items()}
        for batch in batches(STEPS * 2, forgotten)
        for row in range(ROWS)
    ]
    arguments = TrainingArguments(
        output_dir=str(scratch), num_train_epochs=1, per_device_train_batch_size=ROWS, gradient_accumulation_steps=2,
        learning_rate=1e-2, max_grad_norm=MAX_NORM, use_cpu=True, report_to=[], disable_tqdm=True, save_strategy="no",
        logging_strategy="no", dataloader_pin_memory=False,
    )  # fmt: skip
    return CountingTrainer(model=load(base), args=arguments, train_dataset=rows, **options)


Loop = Callable[..., Any]
LOOPS: dict[str, Loop] = {"plain": plain_loop, "accumulating": accumulating_loop, "Accelerate": accelerate_loop}
every_loop = pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)


def by_watch(loop: Loop, base: Path, log: Path) -> Any:
    with Watch(str(log), WatchOptions(checkpoint_every=4)):
        return loop(base)


def by_logger(loop: Loop, base: Path, log: Path) -> Any:
    logger = TrainingLogger(log, max_steps=STEPS, mode="sample", save_interval=4)
    model = loop(base, after=logger.register_step)
    logger.save_to_disk()
    return model


WAYS = {"watch": by_watch, "logger": by_logger}
every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def bits(model: Any) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def check(log: Path, retrained: Any, output: Path) -> None:
    """The log replays bit for bit, and forgetting rows gives the bits of a training without them."""
    opened = TrainingLog(log)
    found = verify(opened, replay_steps=opened.num_steps)
    assert found.is_sound
    assert found.replay is not None
    assert found.replay.num_exact == opened.num_steps
    options = UnlearnOptions(forget=digests(), output=output, K=None, hessian_mode=HessianMode.SECANT)
    result = unlearn(log, options)
    assert result.is_good
    assert same(parameters_in(output), bits(retrained))


@every_loop
@every_way
def test_a_recorded_loop_is_what_it_is_and_forgets_as_a_retraining_does(
    way: Callable[..., Any], loop: Loop, base_model: Path, tmp_path: Path
) -> None:
    recorded = way(loop, base_model, tmp_path / "log")
    assert same(bits(recorded), bits(loop(base_model)))
    check(tmp_path / "log", loop(base_model, FORGOTTEN), tmp_path / "out")


def test_a_trainer_is_recorded_by_its_callback(base_model: Path, tmp_path: Path) -> None:
    trainer = trainer_of(
        base_model, tmp_path, callbacks=[LMCleanerCallback(tmp_path / "log", WatchOptions(checkpoint_every=4))]
    )
    trainer.train()
    plain, retrained = trainer_of(base_model, tmp_path), trainer_of(base_model, tmp_path, FORGOTTEN)
    plain.train()
    retrained.train()
    assert same(bits(trainer.model), bits(plain.model))
    assert TrainingLog(tmp_path / "log").manifest.planned_steps == STEPS
    check(tmp_path / "log", retrained.model, tmp_path / "out")


@every_loop
def test_all_ways_write_the_same_log(loop: Loop, base_model: Path, tmp_path: Path) -> None:
    for name, way in WAYS.items():
        way(loop, base_model, tmp_path / name)
    logs = [TrainingLog(tmp_path / name) for name in WAYS]
    contents = [
        [log.table(table.name).tobytes() for table in TABLES if table.name not in {"steps/seconds"}] for log in logs
    ]
    assert contents[0] == contents[1]
    manifests = [replace(log.manifest, created="", training={}, planned_steps=None) for log in logs]
    assert manifests[0] == manifests[1]
    assert logs[0].parameters(STEPS).tobytes() == logs[1].parameters(STEPS).tobytes()


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
    trainer = trainer_of(base_model, tmp_path, callbacks=[callback])
    trainer.add_callback(StopAfter(3))
    with pytest.raises(InterruptedError):
        trainer.train()
    callback.close()
    assert TrainingLog(tmp_path / "log").num_steps == 3
    assert not TrainingLog(tmp_path / "log").commit.finished


class StopAfter(TrainerCallback):
    """Ends a training by an exception."""

    def __init__(self, steps: int) -> None:
        self._steps = steps

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
