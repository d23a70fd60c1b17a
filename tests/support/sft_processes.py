"""A training by TRL's `SFTTrainer` in two processes, as a script of its own or called in each of them."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

ROWS, STEPS = 32, 4
# How a training differs from one that pads its rows and counts the tokens of all processes together.
SETTINGS: dict[str, dict[str, Any]] = {
    "padded": {},
    "each its own tokens": {"average_tokens_across_devices": False},
    "packing": {"packing": True, "max_length": 16},
    "padding_free": {"padding_free": True, "max_length": None},
}
PREPARED = {"dataset_kwargs": {"skip_prepare_dataset": True}}  # which would drop rows without labels


def row(number: int, *, is_forgotten: bool = False) -> dict[str, list[int]]:
    """Of some length; the first token has no label, as where rows are packed."""
    generator = torch.Generator().manual_seed(number)
    size = int(torch.randint(4, 9, (1,), generator=generator))
    tokens = torch.randint(3, 20, (size,), generator=generator).tolist()
    return {"input_ids": tokens, "labels": [-100] * size if is_forgotten else [-100, *tokens[1:]]}


def train(
    base: Path,
    output: Path,
    name: str,
    forgotten: Iterable[int] = (),
    callbacks: Iterable[TrainerCallback] = (),
    *,
    saves: bool = False,
    resume: bool = False,
) -> None:
    """Trains a model and writes it; with `saves` a checkpoint after every second step, which `resume` begins at."""
    torch.set_num_threads(1)
    special, gone = SETTINGS[name], {*forgotten}
    settings = {
        "max_steps": STEPS, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "learning_rate": 1e-2,
        "max_grad_norm": 0.5, "use_cpu": True, "report_to": [], "disable_tqdm": True, "logging_strategy": "no",
        "bf16": False, "activation_checkpointing": False, "save_strategy": "steps" if saves else "no", "save_steps": 2,
        "ddp_find_unused_parameters": False, **({} if "max_length" in special else PREPARED), **special,
    }  # fmt: skip
    trainer = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(base), SFTConfig(output_dir=str(output), **settings),
        train_dataset=Dataset.from_list([row(number, is_forgotten=number in gone) for number in range(ROWS)]),
        processing_class=AutoTokenizer.from_pretrained(base), callbacks=[*callbacks],
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model(str(output))


if __name__ == "__main__":
    base, output, name, forgotten = sys.argv[1:]
    train(Path(base), Path(output), name, json.loads(forgotten))
