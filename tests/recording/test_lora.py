"""`record --lora-rank`: trains an adapter in PEFT's format, which is recorded, resumed and unlearned as a model is."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner, Result

from independent_trainer import train_without
from lmcleaner.audit.check import audit_model
from lmcleaner.audit.options import AuditOptions
from lmcleaner.choices import ModelDtype
from lmcleaner.cli.main import app
from lmcleaner.formats.errors import UsageError
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.recording.options import RecordOptions
from lmcleaner.recording.training import record
from lmcleaner.recording.unfinished import resumed_options
from lmcleaner.unlearning.options import UnlearnOptions
from lmcleaner.unlearning.planning import plan_request
from tiny_runs import rows, same_bits, write_rows

OPTIONS: dict[str, Any] = {"epochs": 2, "batch_size": 4, "lr": 1e-2, "checkpoint_every": 4}
LORA: dict[str, Any] = {"lora_rank": 2, "lora_alpha": 6, "lora_targets": "q_proj, v_proj"}


def lmcleaner(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def words_of(options: dict[str, Any]) -> list[object]:
    return [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]


def adapter_in(folder: Path, base: Path) -> dict[str, Tensor]:
    """As anybody would load it; the base model's tensors among its own."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(folder))
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty rows, of which four are to be forgotten."""
    folder = tmp_path_factory.mktemp("data")
    write_rows(folder / "forget.jsonl", rows(20)[3:19:5])
    return write_rows(folder / "train.jsonl", rows(20))


def test_an_adapter_is_recorded_and_forgets_as_a_retraining_does(base_model: Path, data: Path, tmp_path: Path) -> None:
    log, trained, output = tmp_path / "log", tmp_path / "trained", tmp_path / "out"
    places = {"model": base_model, "data": data, "output": trained}
    done = lmcleaner("record", log, *words_of(places | OPTIONS | LORA))
    assert done.exit_code == 0, done.output
    assert "224 of 4,624 parameters" in done.stderr
    assert "replay   exact" in done.stdout
    config = json.loads((trained / "adapter_config.json").read_text())
    assert {name: config[name] for name in ("r", "lora_alpha", "task_type")} == {
        "r": 2, "lora_alpha": 6, "task_type": "CAUSAL_LM",
    }  # fmt: skip
    assert sum(entry.num_elements for entry in TrainingLog(log).manifest.parameters) == 224
    request = ("--forget", data.parent / "forget.jsonl", "--K", "all", "--hessian-mode", "secant", "--output", output)
    assert lmcleaner("unlearn", log, *request).exit_code == 0
    asked = UnlearnOptions(forget=data.parent / "forget.jsonl", dry_run=True, K=None, ledger=False)
    quick, measured = (plan_request(TrainingLog(log), asked, quick=quick).plans[0] for quick in (True, False))
    assert measured.parameter_memory_bytes - quick.parameter_memory_bytes == 4 * (4_624 - 224)  # the model beneath
    options = RecordOptions(model=str(base_model), data=str(data), output=trained, **OPTIONS)

    def adapt(model: Any) -> Any:
        torch.manual_seed(options.seed)
        config = LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        return get_peft_model(model, config)

    same_run = train_without(options, tmp_path / "scratch", adapt=adapt)
    retrained = train_without(options, tmp_path / "scratch", forget=data.parent / "forget.jsonl", adapt=adapt)
    assert same_bits(adapter_in(trained, base_model), same_run)
    assert same_bits(adapter_in(output, base_model), retrained)
    assert not same_bits(same_run, retrained)
    assert audit_model(output, log, AuditOptions(oracle=True)).passed


def test_without_targets_all_linear_layers_but_the_last_get_an_adapter(
    base_model: Path, data: Path, tmp_path: Path
) -> None:
    options = RecordOptions(
        model=str(base_model), data=str(data), output=tmp_path / "trained", max_steps=2, lora_rank=1,
        dtype=ModelDtype.BFLOAT16,
    )  # fmt: skip
    record(tmp_path / "log", options)
    manifest = TrainingLog(tmp_path / "log").manifest
    assert manifest.model.adapter is not None
    assert manifest.model.adapter.config["lora_alpha"] == 1
    assert (manifest.model.dtype, manifest.model.adapter.base_dtype) == ("float32", "bfloat16")
    names = {entry.name.split(".lora_")[0].rpartition(".")[2] for entry in manifest.parameters}
    assert names == {f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")}
    assert resumed_options(tmp_path / "log", tmp_path / "again").lora_rank == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora_rank": 0}, "--lora-rank: expected at least 1, found 0"),
        ({"lora_alpha": 4}, "--lora-alpha and --lora-targets need a --lora-rank"),
        ({"lora_rank": 2, "lora_targets": "q_proj,wq"}, "--lora-targets: no such module in the LlamaForCausalLM: 'wq'"),
        ({"lora_rank": 2, "lora_targets": "norm"}, "--lora-targets: Target module LlamaRMSNorm"),
    ],
)
def test_an_adapter_that_makes_no_sense_is_refused(
    options: dict[str, Any], message: str, base_model: Path, data: Path, tmp_path: Path
) -> None:
    places = {"model": base_model, "data": data, "output": tmp_path / "out"}
    done = lmcleaner("record", tmp_path / "log", *words_of(places | options))
    assert (done.exit_code, message in done.stderr) == (2, True), done.stderr
    assert not list(tmp_path.iterdir())


def test_without_peft_it_says_how_to_get_it(
    base_model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)  # as if it were not installed
    options = RecordOptions(model=str(base_model), data=str(data), output=tmp_path / "out", lora_rank=2)
    with pytest.raises(UsageError, match="adapters need PEFT, which is not installed") as error:
        record(tmp_path / "log", options)
    assert error.value.hint == "`pip install 'lmcleaner[peft]'`"
    assert not list(tmp_path.iterdir())
