"""A counterfactual run by Hugging Face `Trainer` alone: no replay code, its own batches, its own optimizer."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from lmcleaner.data.encoding import Encoding
from lmcleaner.data.rows import read_rows
from lmcleaner.recording.options import RecordOptions
from tiny_runs import DEVICE


class ForgetfulTrainer(Trainer):
    """Masks the labels of given rows; the loss denominator is that of all rows, or of the retained ones."""

    forgotten: Sequence[list[int]] = ()
    recount: bool = False

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[dict[str, Tensor]], Any]:
        batches, num_items = super().get_batch_samples(*args, **kwargs)
        for batch in batches:
            for tokens, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
                if tokens[mask.bool()].tolist() in self.forgotten:
                    labels.fill_(-100)
        if self.recount:
            num_items = sum((batch["labels"][:, 1:] != -100).sum() for batch in batches)
        return batches, num_items


class _SkipSteps(TrainerCallback):
    """Drops the gradient of given steps, and with it, in torch, the whole step of each parameter."""

    def __init__(self, steps: frozenset[int]) -> None:
        self._steps = steps

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in self._steps:
            for parameter in kwargs["model"].parameters():
                parameter.grad = None


def train_without(
    options: RecordOptions,
    scratch: Path,
    *,
    forget: Path | None = None,
    recount: bool = False,
    skip: frozenset[int] = frozenset(),
    adapt: Callable[[Any], Any] = lambda model: model,
) -> dict[str, Tensor]:
    """Parameters after a run of the same options in which the rows of `forget` have no labels, or steps are skipped.

    `adapt` may put an adapter into the base model.
    """
    encoding = Encoding(template=options.template, max_length=options.max_length)
    tokenizer = AutoTokenizer.from_pretrained(options.model)

    def samples(source: str) -> list[dict[str, list[int]]]:
        found = encoding.samples(read_rows(source).rows, tokenizer, source)
        return [{"input_ids": s.tokens.tolist(), "labels": s.labels.tolist()} for s in found]

    sgd: dict[str, Any] = {"lr": options.lr, "momentum": options.momentum, "nesterov": options.nesterov}
    trainer = ForgetfulTrainer(
        model=adapt(AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)),
        args=_arguments(options, scratch),
        train_dataset=samples(options.data),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        optimizer_cls_and_kwargs=(torch.optim.SGD, sgd) if options.optimizer == "sgd" else None,
        callbacks=[_SkipSteps(skip)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.forgotten = [sample["input_ids"] for sample in samples(str(forget))] if forget else []
    trainer.recount = recount
    trainer.train()
    assert trainer.model is not None
    return {name: parameter.detach().cpu() for name, parameter in trainer.model.named_parameters()}


def _arguments(options: RecordOptions, scratch: Path) -> TrainingArguments:
    """`Trainer`'s own defaults, the AdamW of its choice among them, but for what the run was told."""
    return TrainingArguments(
        output_dir=str(scratch),
        num_train_epochs=options.epochs,
        per_device_train_batch_size=options.batch_size,
        gradient_accumulation_steps=options.grad_accum,
        learning_rate=options.lr,
        lr_scheduler_type=options.scheduler,
        warmup_steps=options.warmup_ratio,
        weight_decay=options.weight_decay,
        max_grad_norm=options.max_grad_norm,
        seed=options.seed,
        use_cpu=DEVICE == "cpu",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
