"""A loss that the trainer computes: named where a replay can compute it again, said to be its own where it can't."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainingArguments,
)
from transformers.trainer_pt_utils import LabelSmoother
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from lmcleaner.choices import HessianMode
from lmcleaner.formats.errors import InsufficientLogError, UsageError
from lmcleaner.formats.manifest import LossEntry
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.recording.callback import LMCleanerCallback
from lmcleaner.recording.describe import RunDescription
from lmcleaner.recording.options import WatchOptions
from lmcleaner.recording.recorder import Recorder
from lmcleaner.unlearning.options import UnlearnOptions
from lmcleaner.unlearning.planning import plan_request
from lmcleaner.unlearning.run import unlearn
from tiny_runs import DEVICE

STEPS, ROWS = 3, 4
SMOOTHED = LossEntry(name="label_smoothing", smoothing=0.1)


def rows() -> list[dict[str, list[int]]]:
    found = []
    for number in range(STEPS * ROWS):
        tokens = torch.randint(3, 20, (4 + number % 3,), generator=torch.Generator().manual_seed(number)).tolist()
        found.append({"input_ids": tokens, "labels": tokens})
    return found


def settings(scratch: Path) -> dict[str, Any]:
    return {
        "output_dir": str(scratch), "num_train_epochs": 1, "per_device_train_batch_size": ROWS, "learning_rate": 1e-2,
        "use_cpu": DEVICE == "cpu", "report_to": [], "disable_tqdm": True, "save_strategy": "no",
        "logging_strategy": "no", "dataloader_pin_memory": False,
    }  # fmt: skip


def train(base: Path, scratch: Path, kind: type[Trainer] = Trainer, **options: Any) -> TrainingLog:
    tokenizer = AutoTokenizer.from_pretrained(base)
    trainer = kind(
        model=AutoModelForCausalLM.from_pretrained(base), args=TrainingArguments(**settings(scratch)),
        train_dataset=rows(), data_collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100),
        callbacks=[LMCleanerCallback(scratch / "log", WatchOptions(checkpoint_every=2))], **options,
    )  # fmt: skip
    trainer.train()
    return TrainingLog(scratch / "log")


def train_sft(
    base: Path, scratch: Path, kind: type[SFTTrainer] = SFTTrainer, *, loss_func: Any = None, **options: Any
) -> TrainingLog:
    trainer = kind(
        model=AutoModelForCausalLM.from_pretrained(base), train_dataset=Dataset.from_list(rows()),
        args=SFTConfig(**settings(scratch), **{"bf16": False, "gradient_checkpointing": False} | options),
        processing_class=AutoTokenizer.from_pretrained(base), compute_loss_func=loss_func,
        callbacks=[LMCleanerCallback(scratch / "log", WatchOptions(checkpoint_every=2))],
    )  # fmt: skip
    trainer.train()
    return TrainingLog(scratch / "log")


def cross_entropy(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    return nn.functional.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


class OwnLoss(Trainer):
    """Gives the model its labels, and computes another loss from the logits."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        return 1.5 * cross_entropy(model(**inputs), inputs["labels"])


class WeightedTokens(SFTTrainer):
    """Takes TRL's log-probabilities for a loss that TRL doesn't know."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        log_probs = model(**inputs, fused_lm_head=True).log_probs
        return -(log_probs * torch.linspace(1, 2, log_probs.shape[1]).to(log_probs)).mean()


OWN: dict[str, Callable[[Path, Path], TrainingLog]] = {
    "compute_loss_func": lambda base, scratch: train(base, scratch, compute_loss_func=cross_entropy),
    "compute_loss": lambda base, scratch: train(base, scratch, OwnLoss),
    "compute_loss_func of SFTTrainer": lambda base, scratch: train_sft(base, scratch, loss_func=cross_entropy),
    "compute_loss of SFTTrainer": lambda base, scratch: train_sft(base, scratch, WeightedTokens),
}


@pytest.mark.filterwarnings("ignore:.compute_loss_func. is deprecated:FutureWarning")
@pytest.mark.parametrize("training", OWN.values(), ids=OWN)
def test_a_loss_of_the_training_s_own_is_recorded_and_the_log_says_that_it_cannot_be_replayed(
    training: Callable[[Path, Path], TrainingLog], base_model: Path, tmp_path: Path
) -> None:
    with pytest.warns(UserWarning, match="the training computes its loss itself"):
        log = training(base_model, tmp_path)
    assert log.num_steps == STEPS
    assert log.manifest.model.loss == LossEntry(name="own")
    assert {tuple(sample.labels.tolist()) for step in range(STEPS) for sample in log.step(step).samples} == {
        tuple(row["labels"]) for row in rows()
    }
    found = log.commit.self_check
    assert found is not None
    assert (found.state, found.why) == (
        "no", "the training computed its loss itself, by a function that no replay knows",
    )  # fmt: skip
    request = UnlearnOptions(forget=log.step(0).samples[0].digest.hex(), output=tmp_path / "out", K=None)
    with pytest.raises(InsufficientLogError, match="the training computed its loss itself"):
        unlearn(log.store, request)


@pytest.mark.filterwarnings("ignore:.label_smoothing_factor. is deprecated:FutureWarning")
def test_sft_trainer_smooths_labels_as_trainer_does(base_model: Path, tmp_path: Path) -> None:
    log = train_sft(base_model, tmp_path, label_smoothing_factor=0.1)
    assert log.manifest.model.loss == SMOOTHED
    assert log.commit.self_check is not None
    assert log.commit.self_check.state == "exact"


def test_dft_has_no_curvature_and_says_so(base_model: Path, tmp_path: Path) -> None:
    log = train_sft(base_model, tmp_path, loss_type="dft")
    request: dict[str, Any] = {"forget": log.step(0).samples[0].digest.hex(), "output": tmp_path / "out", "K": None}
    for options in ({"hessian_mode": HessianMode.GGN}, {"hessian_mode": HessianMode.SECANT, "tolerance": 0.5}):
        with pytest.raises(InsufficientLogError, match="the run's loss has no curvature") as caught:
            unlearn(log.store, UnlearnOptions(**request, **options))
        assert caught.value.hint == "use --hessian-mode secant"
        assert caught.value.exit_code == 14
    found = plan_request(log, UnlearnOptions(**request, hessian_mode=HessianMode.SECANT))
    assert [plan.mode for plan in found.plans] == [HessianMode.SECANT]


def loop(base: Path, log: Path, told: LossEntry | None, compute: Callable[[Any, Tensor], Tensor]) -> TrainingLog:
    """A loop of one's own that gives the model no labels."""
    model = AutoModelForCausalLM.from_pretrained(base).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    tokens = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 10]])
    with Recorder(log, model, optimizer, RunDescription(model_source=str(base), loss=told)):
        for _ in range(2):
            compute(model(input_ids=tokens), tokens).backward()
            optimizer.step()
            optimizer.zero_grad()
    return TrainingLog(log)


def smoothed(output: Any, labels: Tensor) -> Tensor:
    loss: Tensor = LabelSmoother(epsilon=0.1)(output, labels, shift_labels=True)
    return loss


def test_a_loop_that_smooths_its_labels_is_recorded_where_it_says_so(base_model: Path, tmp_path: Path) -> None:
    before = LabelSmoother.__call__, Trainer.training_step
    log = loop(base_model, tmp_path / "log", SMOOTHED, smoothed)
    assert log.step(0).microbatches[0].denominator == 6
    assert log.commit.self_check is not None
    assert log.commit.self_check.state == "exact"
    other = LossEntry(name="label_smoothing", smoothing=0.2)
    with pytest.raises(UsageError, match=r"another loss .*: expected LossEntry.*0\.2.*, found LossEntry.*0\.1"):
        loop(base_model, tmp_path / "other", other, smoothed)
    for told, compute in ((None, smoothed), (SMOOTHED, cross_entropy)):
        with pytest.raises(UsageError, match="the model returned no loss: expected labels among its arguments"):
            loop(base_model, tmp_path / f"log {told}", told, compute)
    assert (LabelSmoother.__call__, Trainer.training_step) == before
