"""Runs as people have them, by a loop or by Hugging Face `Trainer`: autocast, adapters, frozen layers, padding."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from lmcleaner.formats.samples import IGNORED_LABEL, Sample
from lmcleaner.recording.callback import LMCleanerCallback
from lmcleaner.recording.options import WatchOptions
from lmcleaner.recording.watch import Watch
from tiny_runs import DEVICE

STEPS, ROWS, LENGTH, PADDING, RATE = 5, 4, 8, 2, 1e-2
FORGOTTEN = ((0, 1), (2, 0), (2, 3), (3, 2))  # batch and row
EVERY_TWO = WatchOptions(checkpoint_every=2)
Forgotten = Iterable[tuple[int, int]]


@dataclass(frozen=True)
class Setting:
    """How a run differs from a plain one in float32."""

    load: Callable[[Path], Any]
    left: bool = False
    autocast: bool = False
    trainer: dict[str, Any] | None = None
    is_sft: bool = False


def load(base: Path, **options: Any) -> Any:
    model: Any = AutoModelForCausalLM.from_pretrained(base, **options)
    return model.to(DEVICE).train()


def half_precision(base: Path) -> Any:
    return load(base, dtype=torch.bfloat16)


def checkpointed(base: Path) -> Any:
    model = load(base)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def partly_frozen(base: Path) -> Any:
    model = load(base)
    model.model.layers[0].requires_grad_(requires_grad=False)
    return model


def with_lora(base: Path, *, base_dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **options)
    return get_peft_model(load(base, dtype=base_dtype), config).train()


def lora_over_bfloat16(base: Path) -> Any:
    return with_lora(base, base_dtype=torch.bfloat16, lora_dropout=0.1)


def lora_and_a_head(base: Path) -> Any:
    return with_lora(base, modules_to_save=["norm"])


SETTINGS: dict[str, Setting] = {
    "left padding": Setting(load, left=True),
    "frozen layer": Setting(partly_frozen),
    "bfloat16": Setting(half_precision),
    "autocast": Setting(load, autocast=True),
    "gradient checkpointing": Setting(checkpointed),
    "LoRA": Setting(with_lora),
    "LoRA and a whole module": Setting(lora_and_a_head),
    "LoRA with dropout over bfloat16": Setting(lora_over_bfloat16),
    "LoRA, autocast": Setting(with_lora, autocast=True),
    "Trainer": Setting(load, trainer={"eval_strategy": "steps", "eval_steps": 2, "dataloader_num_workers": 1}),
    "Trainer, autocast": Setting(load, trainer={"bf16": True}),
    "Trainer, gradient checkpointing": Setting(load, trainer={"gradient_checkpointing": True}),
    "Trainer, LoRA": Setting(with_lora, trainer={}),
    "Trainer, LoRA, autocast, gradient checkpointing": Setting(
        with_lora, trainer={"bf16": True, "gradient_checkpointing": True}
    ),
    "Trainer, label smoothing, autocast, accumulation": Setting(
        load, trainer={"label_smoothing_factor": 0.3, "bf16": True, "gradient_accumulation_steps": 2}
    ),
    "SFTTrainer, as it comes": Setting(load, is_sft=True, trainer={}),  # autocast and gradient checkpointing
    "SFTTrainer, LoRA, accumulation": Setting(
        with_lora, is_sft=True, trainer={"bf16": False, "gradient_accumulation_steps": 2}
    ),
    "SFTTrainer, dft": Setting(load, is_sft=True, trainer={"bf16": False, "loss_type": "dft"}),
}


class Interruption(TrainerCallback):
    """Presses ctrl-C after some steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if state.global_step == self.steps:
            raise KeyboardInterrupt


def batches(setting: Setting, forgotten: Forgotten = ()) -> list[dict[str, Tensor]]:
    found = []
    for number in range(STEPS):
        generator = torch.Generator().manual_seed(number)
        tokens = torch.randint(3, 20, (ROWS, LENGTH), generator=generator)
        lengths = torch.randint(4, LENGTH + 1, (ROWS, 1), generator=generator)
        places = torch.arange(LENGTH)
        mask = (places >= LENGTH - lengths if setting.left else places < lengths).long()
        labels = tokens.masked_fill(mask == 0, IGNORED_LABEL)
        for row in (row for at, row in forgotten if at == number):
            labels[row] = IGNORED_LABEL
        tokens = tokens.masked_fill(mask == 0, PADDING)
        found.append({"input_ids": tokens, "attention_mask": mask, "labels": labels})
    return found


def digests(setting: Setting) -> str:
    whole, found = batches(setting), []
    for at, row in FORGOTTEN:
        kept = whole[at]["attention_mask"][row].bool()
        tokens, labels = (whole[at][name][row][kept].int().numpy() for name in ("input_ids", "labels"))
        found.append(Sample(tokens, labels).digest.hex())
    return ",".join(found)


def on_device(found: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    return [{name: value.to(DEVICE) for name, value in batch.items()} for batch in found]


def by_loop(setting: Setting, base: Path, forgotten: Forgotten = ()) -> Any:
    model = setting.load(base)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE)
    torch.manual_seed(2)
    for batch, whole in zip(*(on_device(batches(setting, rows)) for rows in (forgotten, ())), strict=True):
        with torch.autocast(DEVICE, torch.bfloat16) if setting.autocast else nullcontext():
            loss = model(**batch, num_items_in_batch=whole["attention_mask"][:, 1:].sum()).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            model(**whole)  # a look between two steps, which is no step
    return model


class CountingTrainer(Trainer):
    """Divides by all rows, those without labels too."""

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[dict[str, Tensor]], Any]:
        found, _ = super().get_batch_samples(*args, **kwargs)
        return found, sum(batch["attention_mask"][:, 1:].sum() for batch in found)


class CountingSFTTrainer(CountingTrainer, SFTTrainer):
    """That of TRL, likewise."""


def trainer_of(setting: Setting, base: Path, scratch: Path, forgotten: Forgotten = (), **options: Any) -> Trainer:
    def rows(forgotten: Forgotten) -> list[dict[str, Tensor]]:
        whole = batches(setting, forgotten)
        return [{name: value[row] for name, value in batch.items()} for batch in whole for row in range(ROWS)]

    settings = {
        "output_dir": str(scratch), "num_train_epochs": 1, "per_device_train_batch_size": ROWS, "learning_rate": RATE,
        "max_grad_norm": 0.5, "use_cpu": DEVICE == "cpu", "report_to": [], "disable_tqdm": True, "save_strategy": "no",
        "logging_strategy": "no", "dataloader_pin_memory": False, **(setting.trainer or {}),
    }  # fmt: skip
    if not setting.is_sft:
        return CountingTrainer(
            model=setting.load(base), args=TrainingArguments(**settings), train_dataset=rows(forgotten),
            eval_dataset=rows(())[:4], **options,
        )  # fmt: skip
    unpadded = [
        {name: row[name][row["attention_mask"].bool()].tolist() for name in ("input_ids", "labels")}
        for row in rows(forgotten)
    ]
    return CountingSFTTrainer(
        model=setting.load(base), args=SFTConfig(dataset_kwargs={"skip_prepare_dataset": True}, **settings),
        train_dataset=Dataset.from_list(unpadded), processing_class=AutoTokenizer.from_pretrained(base), **options,
    )  # fmt: skip


def by_trainer(setting: Setting, base: Path, scratch: Path, forgotten: Forgotten = (), **options: Any) -> Any:
    trainer = trainer_of(setting, base, scratch, forgotten, **options)
    trainer.train()
    assert trainer.model is not None
    return trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)


def bits(model: Any) -> dict[str, Tensor]:
    return {name: parameter.detach().cpu() for name, parameter in model.named_parameters()}


def reloaded(trained: Any, base: Path, output: Path) -> Any:
    """As anybody would load what was written."""
    dtype = next(p.dtype for p in trained.parameters() if not p.requires_grad or not isinstance(trained, PeftModel))
    if not isinstance(trained, PeftModel):
        return load(output, dtype=dtype)
    assert {"adapter_model.safetensors", "adapter_config.json"} <= {file.name for file in output.iterdir()}
    return PeftModel.from_pretrained(load(base, dtype=dtype), str(output))


def record(setting: Setting, base: Path, folder: Path) -> Path:
    log = folder / "log"
    if setting.trainer is not None:
        by_trainer(setting, base, folder, callbacks=[LMCleanerCallback(log, EVERY_TWO)])
    else:
        with Watch(str(log), EVERY_TWO):
            by_loop(setting, base)
    return log
