"""The trainer classes, made as the unlearning trainers of open-unlearning are."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, TrainingArguments

from lmcleaner.choices import Level
from lmcleaner.formats.audit_document import schema_problems
from lmcleaner.formats.errors import LmcleanerError, MismatchError, NotFoundError, UsageError
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.unlearning.trainers import LMCleanerBatchLevel, LMCleanerSampleLevel
from tiny_runs import DEVICE, TinyRun, parameters_in, same_bits, unlearn_tiny

Row = dict[str, Any]
LEVELS = {"sample": LMCleanerSampleLevel, "batch": LMCleanerBatchLevel}
every_level = pytest.mark.parametrize("level", LEVELS)


@dataclass
class ForgetRetain(Dataset[Row]):
    """Pairs a row to forget with one to retain, as the harness does."""

    forget: list[Row] | None
    retain: list[Row]

    def __len__(self) -> int:
        return len(self.forget or ())

    def __getitem__(self, index: int) -> Row:
        assert self.forget is not None
        return {"forget": self.forget[index], "retain": self.retain[index % len(self.retain)]}


def rows_of(run: TinyRun, count: int) -> tuple[list[Row], list[Row]]:
    """Rows as the harness tokenizes them, in an order of their own: some to forget, padded, and the others."""
    log = run.open()
    rows = []
    for number in log.sample_rows.values():
        sample = log.sample(number)
        padding = [2] * 3
        rows.append({
            "input_ids": torch.tensor([*sample.tokens.tolist(), *padding]),
            "labels": torch.tensor([*sample.labels.tolist(), *[-100] * 3]),
            "attention_mask": torch.tensor([1] * len(sample.tokens) + [0] * 3),
            "index": number,
        })  # fmt: skip
    return rows[::-1][:count], rows[::-1][count:]


def make(run: TinyRun, folder: Path, level: str = "sample", **method_args: Any) -> Any:
    """As `load_trainer` of the harness calls it."""
    forget, retain = rows_of(run, 2)
    tokenizer = AutoTokenizer.from_pretrained(run.base)
    dataset = method_args.pop("train_dataset", ForgetRetain(forget, retain))
    return LEVELS[level](
        model=method_args.pop("model", None) or AutoModelForCausalLM.from_pretrained(run.trained),
        train_dataset=dataset,
        eval_dataset=None,
        tokenizer=tokenizer,
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        args=TrainingArguments(output_dir=str(folder), report_to=[], use_cpu=DEVICE == "cpu"),
        evaluators=None,
        template_args={"apply_chat_template": True},
        training_log_dir=run.log,
        **method_args,
    )


def parameters(trainer: Any) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in trainer.model.named_parameters()}


def request(run: TinyRun) -> str:
    log = run.open()
    known = {row: digest for digest, row in log.sample_rows.items()}
    return ",".join(known[row["index"]].hex() for row in rows_of(run, 2)[0])


@every_level
def test_training_corrects_the_model_and_writes_the_audit(level: str, adamw_run: TinyRun, tmp_path: Path) -> None:
    trainer = make(adamw_run, tmp_path / "out", level, K="all", hessian_mode="secant", damping=0.0)
    before = {name: value.clone() for name, value in parameters(trainer).items()}
    assert same_bits(before, parameters_in(adamw_run.trained))
    result = trainer.train()
    trainer.save_state()
    trainer.save_model(str(tmp_path / "out"))
    unlearn_tiny(adamw_run, tmp_path / "expected", forget=request(adamw_run), level=Level(level))
    expected = parameters_in(tmp_path / "expected")
    assert not same_bits(before, expected)
    assert same_bits(parameters(trainer), expected)
    assert same_bits(parameters_in(tmp_path / "out"), expected)
    assert result.global_step == adamw_run.open().num_steps
    document = json.loads((tmp_path / "out" / "audit" / "audit_records.json").read_text())
    assert schema_problems(document) == []
    assert document == trainer.document
    assert document["request"]["level"] == level


def test_it_may_apply_when_it_is_made_and_then_only_once(adamw_run: TinyRun, tmp_path: Path) -> None:
    trainer = make(
        adamw_run, tmp_path / "out", K=800, hessian_mode="secant", apply_immediately=True,
        audit_dir=tmp_path / "audits", batch_size_at_training=adamw_run.options.batch_size,
    )  # fmt: skip
    applied = {name: value.clone() for name, value in parameters(trainer).items()}
    document = trainer.document
    trainer.train()
    assert trainer.document is document
    assert same_bits(parameters(trainer), applied)
    assert not same_bits(applied, parameters_in(adamw_run.trained))
    assert json.loads((tmp_path / "audits" / "audit_records.json").read_text()) == document


def test_rows_are_found_by_their_tokens_where_labels_differ(adamw_run: TinyRun, tmp_path: Path) -> None:
    forget, retain = rows_of(adamw_run, 2)
    plain = [{"input_ids": row["input_ids"][:-3].tolist(), "labels": row["input_ids"][:-3].tolist()} for row in forget]
    trainer = make(
        adamw_run, tmp_path / "out", train_dataset=ForgetRetain(plain, retain), K="all", hessian_mode="secant"
    )
    trainer.train()
    assert trainer.document["coverage"]["samples"] == 2
    assert [bytes.fromhex(digest) for digest in trainer.document["request"]["samples"]] == sorted(
        bytes.fromhex(digest) for digest in request(adamw_run).split(",")
    )


def test_a_poor_result_is_said_and_applied(
    adamw_run: TinyRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make(adamw_run, tmp_path / "out", K=0, hessian_mode="GGN")
    trainer.train()
    assert trainer.document["result"]["verdict"] == "poor"
    assert "the result is poor" in caplog.text


UNKNOWN = [{"input_ids": [3, 3, 3, 3], "labels": [3, 3, 3, 3]}]
REFUSED: dict[str, tuple[dict[str, Any], type[LmcleanerError], str]] = {
    "a row that the run never saw": (
        {"train_dataset": ForgetRetain(UNKNOWN, [])}, NotFoundError, "the run never saw this: row 0 of the forget set"
    ),
    "nothing to forget": ({"train_dataset": ForgetRetain(None, [])}, UsageError, "nothing to forget"),
    "another batch size": ({"batch_size_at_training": 77}, UsageError, "batch_size_at_training: expected"),
    "another log": ({"training_log_dir_missing": True}, NotFoundError, "no training log"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_what_makes_no_sense_is_refused_before_anything_changes(
    changes: dict[str, Any], error: type[LmcleanerError], message: str, adamw_run: TinyRun, tmp_path: Path
) -> None:
    changes = dict(changes)
    is_elsewhere = changes.pop("training_log_dir_missing", False)
    trainer = make(adamw_run, tmp_path / "out", K="all", hessian_mode="secant", **changes)
    if is_elsewhere:
        trainer._log_dir = tmp_path / "nowhere"
    with pytest.raises(error, match=message):
        trainer.train()
    assert same_bits(parameters(trainer), parameters_in(adamw_run.trained))
    assert not (tmp_path / "out" / "audit").exists()


def test_another_model_than_the_log_trained_is_refused(adamw_run: TinyRun, tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(adamw_run.base)
    with pytest.raises(MismatchError, match="not the model that the log trained"):
        make(adamw_run, tmp_path / "out", model=base, K="all", hessian_mode="secant").train()


@pytest.mark.parametrize(("name", "value"), [("K", -1), ("hessian_mode", "newton"), ("damping", -1.0)])
def test_arguments_out_of_range_are_refused_when_it_is_made(
    name: str, value: Any, adamw_run: TinyRun, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=f"--?{name.replace('_', '-')}|{name.replace('_', '-')}"):
        make(adamw_run, tmp_path / "out", **{name: value})
    assert TrainingLog(adamw_run.log).num_steps > 0
