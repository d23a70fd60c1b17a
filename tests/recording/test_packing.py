"""Packed rows: recorded as the samples that they hold, replayed to the bit, and each sample forgotten by itself."""

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorWithFlattening, Trainer, TrainingArguments
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer
from typer.testing import CliRunner

from lmcleaner.audit.check import audit_model
from lmcleaner.audit.history import tombstones
from lmcleaner.audit.options import AuditOptions
from lmcleaner.choices import Denominator, HessianMode
from lmcleaner.cli.main import app
from lmcleaner.curvature.linearized import curvature_product
from lmcleaner.formats.errors import UsageError
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.samples import IGNORED_LABEL, Sample
from lmcleaner.inspection.verify import verify
from lmcleaner.recording.callback import LMCleanerCallback
from lmcleaner.recording.describe import RunDescription
from lmcleaner.recording.options import WatchOptions
from lmcleaner.recording.recorder import Recorder
from lmcleaner.recording.watch import Watch
from lmcleaner.training.replay import open_replay
from lmcleaner.unlearning.options import UnlearnOptions
from lmcleaner.unlearning.run import unlearn
from lmcleaner.unlearning.shapes import padded_tokens
from tiny_runs import DEVICE, parameters_in, same_bits

STEPS, ROWS, PADDING, RATE = 3, 4, 2, 1e-2
FORGOTTEN = (2, 5)  # neither the first nor the last of its pack
Batch = dict[str, Tensor]
Row = dict[str, list[int]]


def rows(forgotten: Iterable[int] = ()) -> list[Row]:
    """Of different lengths; the first token has no label, as where collators pack."""
    found = []
    for number in range(STEPS * ROWS):
        tokens = torch.randint(3, 20, (4 + number % 3,), generator=torch.Generator().manual_seed(number)).tolist()
        labels = [IGNORED_LABEL] * len(tokens) if number in forgotten else [IGNORED_LABEL, *tokens[1:]]
        found.append({"input_ids": tokens, "labels": labels})
    return found


def digests() -> str:
    chosen = [rows()[number] for number in FORGOTTEN]
    arrays = [{name: torch.tensor(row[name], dtype=torch.int32).numpy() for name in row} for row in chosen]
    return ",".join(Sample(row["input_ids"], row["labels"]).digest.hex() for row in arrays)


def packed(*lines: list[Row]) -> Batch:
    """Each line one row of the batch, padded at the end as TRL pads."""
    flat = [
        {
            "input_ids": [token for row in line for token in row["input_ids"]],
            "labels": [label for row in line for label in row["labels"]],
            "position_ids": [place for row in line for place in range(len(row["input_ids"]))],
        }
        for line in lines
    ]
    width = max(len(line["input_ids"]) for line in flat)
    fill = {"input_ids": PADDING, "labels": IGNORED_LABEL, "position_ids": 0}
    return {
        name: torch.tensor([line[name] + [value] * (width - len(line[name])) for line in flat], device=DEVICE)
        for name, value in fill.items()
    }


def by_loop(
    base: Path,
    scratch: Path,
    log: Path | None,
    forgotten: Iterable[int] = (),
    *,
    lines: int = 1,
    attention: str = "sdpa",
) -> Any:
    model: Any = AutoModelForCausalLM.from_pretrained(base, attn_implementation=attention)
    model.to(DEVICE).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)

    def train() -> None:
        taken = rows(forgotten)
        for step in range(STEPS):
            some = taken[step * ROWS : (step + 1) * ROWS]
            batch = packed(*(some[line::lines] for line in range(lines)))
            count = (batch["position_ids"] != 0).sum()
            model(**batch, num_items_in_batch=count, use_cache=False).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    if log is None:
        train()
        return model
    with Watch(str(log), WatchOptions(checkpoint_every=2)):
        train()
    return model


def by_rows(base: Path, scratch: Path, log: Path | None, forgotten: Iterable[int] = ()) -> Any:
    return by_loop(base, scratch, log, forgotten, lines=2, attention="eager")


class CountingTrainer(Trainer):
    """Divides by all tokens that a sample predicts, those without labels too."""

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Batch], Any]:
        found, _ = super().get_batch_samples(*args, **kwargs)
        return found, sum((batch["position_ids"] != 0).sum() for batch in found)


class CountingSFTTrainer(CountingTrainer, SFTTrainer):
    """That of TRL, likewise."""


def settings(scratch: Path) -> dict[str, Any]:
    return {
        "output_dir": str(scratch), "num_train_epochs": 1, "per_device_train_batch_size": ROWS, "learning_rate": RATE,
        "use_cpu": DEVICE == "cpu", "report_to": [], "disable_tqdm": True, "save_strategy": "no",
        "logging_strategy": "no", "dataloader_pin_memory": False, "max_grad_norm": 0.5,
    }  # fmt: skip


def callbacks(log: Path | None) -> list[Any]:
    return [] if log is None else [LMCleanerCallback(log, WatchOptions(checkpoint_every=2))]


def by_trainer(base: Path, scratch: Path, log: Path | None, forgotten: Iterable[int] = ()) -> Any:
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    collator: Any = DataCollatorWithFlattening(return_flash_attn_kwargs=True, return_seq_idx=True)
    CountingTrainer(
        model, TrainingArguments(**settings(scratch)), train_dataset=rows(forgotten), data_collator=collator,
        callbacks=callbacks(log),
    ).train()  # fmt: skip
    return model


def by_sft(base: Path, scratch: Path, log: Path | None, forgotten: Iterable[int] = (), **options: Any) -> Any:
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    CountingSFTTrainer(
        model, SFTConfig(**settings(scratch), bf16=False, **options),
        train_dataset=Dataset.from_list(rows(forgotten)), processing_class=AutoTokenizer.from_pretrained(base),
        callbacks=callbacks(log),
    ).train()  # fmt: skip
    return model


def by_padding_free(base: Path, scratch: Path, log: Path | None, forgotten: Iterable[int] = ()) -> Any:
    return by_sft(base, scratch, log, forgotten, padding_free=True, max_length=None, pad_to_multiple_of=8)


def by_packing(base: Path, scratch: Path, log: Path | None, forgotten: Iterable[int] = ()) -> Any:
    return by_sft(base, scratch, log, forgotten, packing=True, max_length=16)


TRAININGS: dict[str, Callable[..., Any]] = {
    "a loop": by_loop,
    "a loop, two padded rows, eager": by_rows,
    "Trainer, DataCollatorWithFlattening": by_trainer,
    "SFTTrainer, padding_free": by_padding_free,
    "SFTTrainer, packing": by_packing,
}
trainings = pytest.mark.parametrize("training", TRAININGS.values(), ids=TRAININGS)
pytestmark = pytest.mark.filterwarnings("ignore:Padding-free training is enabled:UserWarning")


def request(output: Path, mode: str, **options: Any) -> UnlearnOptions:
    return UnlearnOptions(forget=digests(), output=output, K=None, hessian_mode=HessianMode(mode), **options)


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().cpu() for name, parameter in model.named_parameters()}


@trainings
def test_a_packed_training_forgets_samples_as_a_retraining_does(
    training: Callable[..., Any], base_model: Path, tmp_path: Path
) -> None:
    training(base_model, tmp_path, tmp_path / "log")
    log = TrainingLog(tmp_path / "log")
    assert log.commit.self_check is not None
    assert (log.commit.self_check.state, log.commit.self_check.why) == ("exact", "")
    seen = {
        (tuple(s.tokens.tolist()), tuple(s.labels.tolist())) for t in range(log.num_steps) for s in log.step(t).samples
    }
    assert seen == {(tuple(row["input_ids"]), tuple(row["labels"])) for row in rows()}
    assert all(m.packed and not m.has_mask for t in range(log.num_steps) for m in log.step(t).microbatches)
    unlearn(log.store, request(tmp_path / "out", "secant"))
    retrained = training(base_model, tmp_path, None, FORGOTTEN)
    assert same_bits(parameters_in(tmp_path / "out"), bits(retrained))
    assert audit_model(tmp_path / "out", tmp_path / "log", AuditOptions(oracle=True)).passed


@pytest.fixture(scope="module")
def padded(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log whose microbatches have two packed rows, one of them padded; tests only read it."""
    folder = tmp_path_factory.mktemp("padded")
    by_rows(base_model, folder, folder / "log")
    return folder / "log"


def test_a_replay_gives_the_model_the_same_arguments(padded: Path) -> None:
    log = TrainingLog(padded)
    for step in range(STEPS):
        some = rows()[step * ROWS : (step + 1) * ROWS]
        (found,) = open_replay(log.manifest).inputs(log.step(step))
        assert found.pop("num_items_in_batch") == sum(len(row["input_ids"]) - 1 for row in some)
        expected = packed(some[::2], some[1::2])
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        assert padded_tokens(log)[step] == expected["input_ids"].numel()


def test_without_a_sample_only_its_place_in_the_pack_changes(padded: Path) -> None:
    log = TrainingLog(padded)
    step, replay = log.step(0), open_replay(log.manifest)
    third = step.microbatches[0].samples[1]  # of the first row, behind the first
    assert third.digest.hex() == digests().split(",")[0]
    (whole,), (found,) = (replay.inputs(step, gone, Denominator.RETAINED) for gone in (set(), {third.digest}))
    place = (0, slice(len(rows()[0]["labels"]), len(rows()[0]["labels"]) + len(third.tokens)))
    assert (found["input_ids"][place] == PADDING).all()
    assert (found["labels"][place] == IGNORED_LABEL).all()
    for name in ("input_ids", "labels"):
        found[name][place] = whole[name][place]
    assert found.pop("num_items_in_batch") == whole.pop("num_items_in_batch") - third.num_targets
    assert all(torch.equal(found[name], whole[name]) for name in whole)


@pytest.mark.parametrize("mode", [HessianMode.EXACT, HessianMode.GGN, HessianMode.EMPIRICAL_FISHER])
def test_a_pack_has_the_curvature_of_its_samples_each_in_a_row_of_its_own(mode: HessianMode, padded: Path) -> None:
    log = TrainingLog(padded)
    step, replay = log.step(1), open_replay(log.manifest)
    (pack,) = step.microbatches
    lengths = [len(sample.tokens) for sample in pack.samples]
    alone = replace(pack, packed=False, has_mask=True, starts=(0,) * len(lengths), width=max(lengths))
    theta = replay.load(log.parameters(1))
    generator = torch.Generator().manual_seed(1)
    vector = [torch.randn(part.shape, generator=generator).to(part.device) for part in theta]
    found, expected = (
        curvature_product(replay, mode, replace(step, microbatches=(given,)), theta, vector, 0.0)
        for given in (pack, alone)
    )
    assert max(float(part.abs().max()) for part in expected) > 1e-3
    for part, other in zip(found, expected, strict=True):
        torch.testing.assert_close(part, other, rtol=1e-3, atol=1e-5)


def test_a_mode_with_a_curvature_forgets_about_as_well(padded: Path, base_model: Path, tmp_path: Path) -> None:
    unlearn(padded, request(tmp_path / "out", "GGN", ledger=False))
    found, retrained = (bits_of_all(model) for model in (parameters_in(tmp_path / "out"), gone(base_model)))
    before = bits_of_all(parameters_in_log(padded))
    assert (found - retrained).norm() < 0.7 * (before - retrained).norm()


def test_inspect_shows_which_samples_a_row_packs(padded: Path) -> None:
    shown = CliRunner().invoke(app, ["inspect", str(padded), "--step", "0"]).output
    lengths = [len(row["input_ids"]) for row in rows()[:ROWS]]
    width = max(lengths[0] + lengths[2], lengths[1] + lengths[3])
    assert f"microbatch 0: 2 rows of {width} tokens, packing 4 samples, denominator {sum(lengths) - ROWS}" in shown
    described = [line.strip().partition(":")[0] for line in shown.splitlines() if line.startswith("  row")]
    assert described == ["row 0, sample 0", "row 0, sample 1", "row 1, sample 2", "row 1, sample 3"]
    document = json.loads(CliRunner().invoke(app, ["inspect", str(padded), "--step", "0", "--json"]).output)
    assert (document["microbatches"][0]["packed"], document["microbatches"][0]["rows"]) == (True, 2)


def test_a_packed_log_can_be_redacted(base_model: Path, tmp_path: Path) -> None:
    by_rows(base_model, tmp_path, tmp_path / "log")
    unlearn(tmp_path / "log", request(tmp_path / "out", "secant", redact=True))
    assert same_bits(parameters_in(tmp_path / "out"), bits(gone(base_model)))
    found = verify(TrainingLog(tmp_path / "log"), replay_steps=STEPS)
    assert (found.problems, found.replay is not None and found.replay.is_exact) == ([], True)
    assert tombstones(TrainingLog(tmp_path / "log")) == {bytes.fromhex(digest) for digest in digests().split(",")}
    assert audit_model(tmp_path / "out", tmp_path / "log", AuditOptions()).passed


def test_a_run_may_pack_some_of_its_batches(base_model: Path, tmp_path: Path) -> None:
    loop, some = Loop(base_model, tmp_path / "log"), rows()
    with loop.record():
        loop.step(padded_batch(some[:2]))
        loop.step(packed(some[2:4]) | {"use_cache": False})
        loop.step(padded_batch(some[4:6]))
    log = TrainingLog(tmp_path / "log")
    assert log.table("microbatches/packed").tolist() == [0, 1, 0]
    assert log.commit.self_check is not None
    assert log.commit.self_check.state == "exact"


class Loop:
    """A training that tests bend."""

    def __init__(self, base: Path, log: Path) -> None:
        model: Any = AutoModelForCausalLM.from_pretrained(base)
        self.model = model.to(DEVICE).train()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.base, self.log = base, log

    def record(self) -> Recorder:
        description = RunDescription(model_source=str(self.base), padding_token=PADDING)
        return Recorder(self.log, self.model, self.optimizer, description)

    def step(self, batch: dict[str, Any]) -> None:
        self.model(**batch).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def padded_batch(some: list[Row]) -> Batch:
    """The rows with a mask, without positions."""
    found = packed(*([row] for row in some))
    found["attention_mask"] = (torch.arange(found["labels"].shape[1], device=DEVICE) == 0) | (
        found["position_ids"] != 0
    )
    return {name: value.long() for name, value in found.items() if name != "position_ids"}


def gone(base: Path) -> Any:
    return by_rows(base, base, None, FORGOTTEN)


def parameters_in_log(log: Path) -> dict[str, Tensor]:
    opened = TrainingLog(log)
    tensors = open_replay(opened.manifest).load(opened.parameters(opened.num_steps))
    return {entry.name: tensor.cpu() for entry, tensor in zip(opened.manifest.parameters, tensors, strict=True)}


def bits_of_all(model: Any) -> Tensor:
    named = model if isinstance(model, dict) else bits(model)
    return torch.cat([named[name].flatten() for name in sorted(named)])


def changed(**others: Any) -> dict[str, Any]:
    return packed(rows()[:2], rows()[3:5]) | {"use_cache": False} | others


def moved(name: str, row: int, place: int, value: int) -> dict[str, Any]:
    """The batch with one number of a tensor changed."""
    batch = changed()
    batch[name][row, place] = value
    return batch


REFUSED: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "a cache": (lambda: changed(use_cache=True), "packed rows, and a model that fills a cache"),
    "a cache by default": (lambda: changed(use_cache=None), "packed rows, and a model that fills a cache"),
    "a mask": (lambda: changed(attention_mask=torch.ones(2, 9, device=DEVICE)), "position_ids beside an attention"),
    "positions that don't rise": (lambda: moved("position_ids", 1, 2, 1), r"row 1: expected .* found \[0, 1, 1, 3"),
    "positions that begin later": (lambda: moved("position_ids", 0, 0, 1), r"row 0: expected .* found \[1, 1, 2"),
    "a label behind another": (lambda: moved("labels", 0, 4, 7), "row 0, token 4: expected label -100 .* found 7"),
    "other boundaries": (
        lambda: changed(max_length_q=9), "max_length_q: expected what follows from position_ids, 5, found 9",
    ),
    "positions for all rows": (
        lambda: changed(position_ids=torch.arange(9, device=DEVICE)[None]), r"the shape of input_ids, \(2, 9\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_pack_that_would_be_recorded_wrongly_is_refused(case: str, base_model: Path, tmp_path: Path) -> None:
    batch, message = REFUSED[case]
    loop = Loop(base_model, tmp_path / "log")
    with pytest.raises(UsageError, match=message), loop.record():
        loop.step(batch())
    with pytest.raises(UsageError, match=message), Watch(str(tmp_path / "watched")):
        loop.step(batch())
    assert not (tmp_path / "watched").exists()
