"""What real runs do beside computing in float32: each is recorded, replayed, and forgets as a retraining does."""

import json
import shutil
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from lmcleaner.audit.check import AuditOptions, audit_model
from lmcleaner.choices import HessianMode
from lmcleaner.formats.errors import MismatchError, UsageError
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.samples import IGNORED_LABEL, Sample
from lmcleaner.recording.callback import LMCleanerCallback
from lmcleaner.recording.describe import RunDescription
from lmcleaner.recording.recorder import Recorder
from lmcleaner.recording.watch import Watch, WatchOptions
from lmcleaner.unlearning.options import UnlearnOptions
from lmcleaner.unlearning.run import unlearn
from tiny_runs import same_bits, write_base_model

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
    return AutoModelForCausalLM.from_pretrained(base, **options).train()


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


def by_loop(setting: Setting, base: Path, forgotten: Forgotten = ()) -> Any:
    model = setting.load(base)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE)
    torch.manual_seed(2)
    for batch, whole in zip(batches(setting, forgotten), batches(setting), strict=True):
        with torch.autocast("cpu", torch.bfloat16) if setting.autocast else nullcontext():
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
        "max_grad_norm": 0.5, "use_cpu": True, "report_to": [], "disable_tqdm": True, "save_strategy": "no",
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
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


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


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_a_real_run_is_recorded_and_forgets_as_a_retraining_does(
    setting: Setting, base_model: Path, tmp_path: Path
) -> None:
    log, output = record(setting, base_model, tmp_path), tmp_path / "out"
    found = TrainingLog(log).commit.self_check
    assert found is not None
    assert (found.state, found.why) == ("exact", "")
    unlearn(log, UnlearnOptions(forget=digests(setting), output=output, K=None, hessian_mode=HessianMode.SECANT))
    if setting.trainer is not None:
        retrained = by_trainer(setting, base_model, tmp_path, FORGOTTEN)
    else:
        retrained = by_loop(setting, base_model, FORGOTTEN)
    assert same_bits(bits(reloaded(retrained, base_model, output)), bits(retrained))
    assert audit_model(output, log, AuditOptions(oracle=True)).passed


def test_only_the_adapter_is_logged_and_the_base_model_is_told_by_its_content(base_model: Path, tmp_path: Path) -> None:
    setting = SETTINGS["LoRA"]
    model = with_lora(base_model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE)
    with Recorder(tmp_path / "log", model, optimizer, RunDescription(model_source=str(base_model), padding_token=2)):
        for batch in batches(setting):
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    log = TrainingLog(tmp_path / "log")
    trained = {name: p.numel() for name, p in model.named_parameters() if "lora_" in name}
    assert {entry.name: entry.num_elements for entry in log.manifest.parameters} == trained
    assert log.manifest.model.adapter is not None
    assert log.manifest.model.adapter.config["r"] == 4
    options = UnlearnOptions(forget=digests(setting), output=tmp_path / "out", K=None, hessian_mode=HessianMode.GGN)
    assert unlearn(log.store, options).is_good
    other = write_base_model(tmp_path / "other", seed=9)
    with pytest.raises(MismatchError, match="not the base model of this log"):
        audit_model(tmp_path / "out", tmp_path / "log", AuditOptions(model=str(other)))


def test_an_adapter_that_could_not_be_written_is_refused(base_model: Path, tmp_path: Path) -> None:
    unfrozen = with_lora(base_model)
    unfrozen.base_model.model.model.norm.requires_grad_(requires_grad=True)
    inside = load(base_model)
    inside.add_adapter(LoraConfig(r=4, target_modules=["q_proj"]))
    two = with_lora(base_model)
    two.add_adapter("second", LoraConfig(r=4, target_modules=["q_proj"]))
    expected = {
        "a trained parameter outside of the adapter: base_model.model.model.norm.weight": unfrozen,
        "expected one that PEFT wraps": inside,
        "unsupported adapter: expected one": two,
    }
    for message, model in expected.items():
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=RATE)
        with pytest.raises(UsageError, match=message):
            Recorder(tmp_path / "log", model, optimizer, RunDescription(model_source=str(base_model)))


def test_autocast_must_be_as_it_was_told(base_model: Path, tmp_path: Path) -> None:
    model = load(base_model)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    description = RunDescription(model_source=str(base_model), padding_token=PADDING)
    with pytest.raises(UsageError, match="step 0: expected None, found bfloat16"):  # noqa: SIM117
        with Recorder(tmp_path / "log", model, optimizer, description), torch.autocast("cpu", torch.bfloat16):
            model(**batches(SETTINGS["autocast"])[0])
    with pytest.raises(UsageError, match="expected bfloat16, found float16"):
        RunDescription(model_source="x", autocast="float16")


def test_dropout_of_the_base_model_is_drawn_again(base_model: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(base_model, base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.2}))
    test_a_real_run_is_recorded_and_forgets_as_a_retraining_does(SETTINGS["gradient checkpointing"], base, tmp_path)
