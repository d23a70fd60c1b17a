"""One training by each framework, or by `python trainings.py FRAMEWORK ACCUMULATION BASE OUTPUT`."""

import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from datasets import Dataset
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
STEPS, ROWS, LENGTH, PADDING, RATE, MAX_NORM = 6, 3, 8, 2, 1e-2, 0.5
Batch = dict[str, Tensor]
Forgotten = Iterable[tuple[int, int]]  # batch and row


def batches(number: int, forgotten: Forgotten = ()) -> list[Batch]:
    """Right-padded rows of different lengths; forgotten ones have no labels."""
    found = []
    for place in range(number):
        generator = torch.Generator().manual_seed(place)
        tokens = torch.randint(3, 20, (ROWS, LENGTH), generator=generator)
        lengths = torch.randint(4, LENGTH + 1, (ROWS, 1), generator=generator)
        mask = (torch.arange(LENGTH) < lengths).long()
        labels = tokens.masked_fill(mask == 0, -100)
        labels[[row for at, row in forgotten if at == place]] = -100
        tokens = tokens.masked_fill(mask == 0, PADDING)
        found.append({"input_ids": tokens, "attention_mask": mask, "labels": labels})
    return found


@dataclass(frozen=True, kw_only=True)
class Run:
    """Six steps from a base model.

    Attributes:
        base: its folder.
        accumulation: batches of a step.
        forgotten: rows that have no labels.
        callbacks: of a trainer.
        around: from model and optimizer to what the steps are taken in.
        after: is told of step, learning rate and model whenever the optimizer took a step.
    """

    base: Path
    accumulation: int
    forgotten: Forgotten = ()
    callbacks: tuple[TrainerCallback, ...] = ()
    around: Callable[[Any, Any], AbstractContextManager[Any]] = lambda model, optimizer: nullcontext()
    after: Callable[[int, float, Any], None] = lambda step, rate, model: None

    def batches(self) -> list[Batch]:
        return batches(STEPS * self.accumulation, self.forgotten)

    def batches_on_device(self) -> list[Batch]:
        return [{name: value.to(DEVICE) for name, value in batch.items()} for batch in self.batches()]

    def parts(self) -> tuple[Any, torch.optim.Optimizer, Any]:
        """Model, optimizer and schedule."""
        model: Any = AutoModelForCausalLM.from_pretrained(self.base)
        model.to(DEVICE).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
        return model, optimizer, torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=STEPS)


def by_plain_loop(run: Run) -> Any:
    """Divides each batch's mean loss by the number of batches, and gives arguments by place."""
    model, optimizer, schedule = run.parts()
    with run.around(model, optimizer):
        for number, batch in enumerate(run.batches_on_device(), start=1):
            loss = model(batch["input_ids"], batch["attention_mask"], labels=batch["labels"]).loss
            (loss / run.accumulation).backward()
            if number % run.accumulation:
                continue
            nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
            optimizer.step()
            run.after(number // run.accumulation - 1, schedule.get_last_lr()[0], model)
            schedule.step()
            optimizer.zero_grad()
    return model


def by_accelerate(run: Run) -> Any:
    """With Accelerate's optimizer, schedule, accumulation and clipping."""
    accelerator = Accelerator(cpu=DEVICE == "cpu", gradient_accumulation_steps=run.accumulation)
    bare, torch_optimizer, torch_schedule = run.parts()
    model, optimizer, schedule = accelerator.prepare(bare, torch_optimizer, torch_schedule)
    steps = count()
    with run.around(bare, torch_optimizer):
        for batch in run.batches_on_device():
            with accelerator.accumulate(model):
                accelerator.backward(model(**batch).loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), MAX_NORM)
                optimizer.step()
                if accelerator.sync_gradients:
                    run.after(next(steps), schedule.get_last_lr()[0], bare)
                schedule.step()
                optimizer.zero_grad()
    return bare


def by_trainer(run: Run) -> Any:
    """With Hugging Face `Trainer`, which counts the tokens of all batches of a step together."""
    rows = [{name: value[row] for name, value in batch.items()} for batch in run.batches() for row in range(ROWS)]

    def trainer_of(model: Any, settings: dict[str, Any], **others: Any) -> Trainer:
        return Trainer(model, TrainingArguments(**settings), train_dataset=rows, **others)

    return _trained(run, trainer_of)


def by_sft(run: Run) -> Any:
    """With TRL's `SFTTrainer`, which computes the loss itself and pads by itself."""
    rows = [
        {name: batch[name][row][batch["attention_mask"][row].bool()].tolist() for name in ("input_ids", "labels")}
        for batch in run.batches()
        for row in range(ROWS)
    ]

    def trainer_of(model: Any, settings: dict[str, Any], **others: Any) -> Trainer:
        arguments = SFTConfig(bf16=False, dataset_kwargs={"skip_prepare_dataset": True}, **settings)
        tokenizer = AutoTokenizer.from_pretrained(run.base)
        return SFTTrainer(
            model, arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, **others
        )  # fmt: skip

    return _trained(run, trainer_of)


def _trained(run: Run, trainer_of: Callable[..., Trainer]) -> Any:
    model = AutoModelForCausalLM.from_pretrained(run.base)
    with TemporaryDirectory() as scratch:
        settings = {
            "output_dir": scratch, "num_train_epochs": 1, "per_device_train_batch_size": ROWS, "learning_rate": RATE,
            "gradient_accumulation_steps": run.accumulation, "max_grad_norm": MAX_NORM, "use_cpu": DEVICE == "cpu",
            "report_to": [], "disable_tqdm": True, "save_strategy": "no", "logging_strategy": "no",
            "dataloader_pin_memory": False,
        }  # fmt: skip
        trainer = trainer_of(model, settings, callbacks=[*run.callbacks, _Telling(run)])
        trainer.create_optimizer()
        with run.around(model, trainer.optimizer):
            trainer.train()
    return model


class _Telling(TrainerCallback):
    """Tells of each step before the schedule moves on."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self._run.after(state.global_step, others["lr_scheduler"].get_last_lr()[0], others["model"])


FRAMEWORKS = {"plain": by_plain_loop, "Accelerate": by_accelerate, "Trainer": by_trainer, "SFTTrainer": by_sft}

if __name__ == "__main__":
    FRAMEWORKS[sys.argv[1]](Run(accumulation=int(sys.argv[2]), base=Path(sys.argv[3]))).save_pretrained(sys.argv[4])
