"""What real runs do beside computing in float32: each is recorded, replayed, and forgets as a retraining does."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig

from lmcleaner.audit.check import audit_model
from lmcleaner.audit.history import tombstones
from lmcleaner.audit.options import AuditOptions
from lmcleaner.choices import HessianMode
from lmcleaner.curvature.linearized import predicted_gradient
from lmcleaner.formats.errors import MismatchError, UsageError
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.inspection.verify import verify
from lmcleaner.recording.describe import RunDescription
from lmcleaner.recording.recorder import Recorder
from lmcleaner.training.replay import open_replay
from lmcleaner.training.vectors import distance, global_norm
from lmcleaner.unlearning.options import UnlearnOptions
from lmcleaner.unlearning.run import unlearn
from real_runs import (
    FORGOTTEN,
    PADDING,
    RATE,
    SETTINGS,
    STEPS,
    Setting,
    batches,
    bits,
    by_loop,
    by_trainer,
    digests,
    load,
    on_device,
    record,
    reloaded,
    with_lora,
)
from tiny_runs import DEVICE, same_bits, write_base_model


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


@pytest.mark.parametrize("name", ["autocast", "LoRA with dropout over bfloat16", "LoRA, autocast"])
def test_its_log_can_be_redacted(name: str, base_model: Path, tmp_path: Path) -> None:
    setting = SETTINGS[name]
    log, forget = record(setting, base_model, tmp_path), digests(setting)
    request = UnlearnOptions(
        forget=forget, output=tmp_path / "out", K=None, hessian_mode=HessianMode.SECANT, redact=True
    )
    unlearn(log, request)
    retrained = by_loop(setting, base_model, FORGOTTEN)
    assert same_bits(bits(reloaded(retrained, base_model, tmp_path / "out")), bits(retrained))
    found = verify(TrainingLog(log), replay_steps=STEPS)
    assert (found.problems, found.replay is not None and found.replay.is_exact) == ([], True)
    assert tombstones(TrainingLog(log)) == {bytes.fromhex(digest) for digest in forget.split(",")}
    assert audit_model(tmp_path / "out", log, AuditOptions()).passed


def test_only_the_adapter_is_logged_and_the_base_model_is_told_by_its_content(base_model: Path, tmp_path: Path) -> None:
    setting = SETTINGS["LoRA"]
    model = with_lora(base_model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE)
    with Recorder(tmp_path / "log", model, optimizer, RunDescription(model_source=str(base_model), padding_token=2)):
        for batch in on_device(batches(setting)):
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
        with Recorder(tmp_path / "log", model, optimizer, description), torch.autocast(DEVICE, torch.bfloat16):
            model(**on_device(batches(SETTINGS["autocast"]))[0])
    with pytest.raises(UsageError, match="expected bfloat16 or float16, found float64"):
        RunDescription(model_source="x", autocast="float64")


@pytest.mark.parametrize("stack", ["updates", "gradients"])
def test_a_codec_that_nobody_knows_is_refused(stack: str) -> None:
    unknown: Any = {stack: "zip"}
    with pytest.raises(UsageError, match=rf"{stack}: expected one of \['lossless', .*\], found 'zip'"):
        RunDescription(model_source="x", **unknown)


def test_a_curvature_without_the_runs_autocast_is_said_and_measured(base_model: Path, tmp_path: Path) -> None:
    setting = SETTINGS["autocast"]
    log = record(setting, base_model, tmp_path)
    for mode, is_said in ((HessianMode.EXACT, True), (HessianMode.SECANT, False)):
        request = UnlearnOptions(forget=digests(setting), output=tmp_path / mode, K=None, hessian_mode=mode)
        found = unlearn(log, request)
        assert any("trained under bfloat16 autocast; curvature is computed" in line for line in found.lines) == is_said
        assert found.document is not None
        assert found.document["plan"]["without_autocast"] == is_said
    # The gradients that it is measured against are the run's own: those of a sweep's real steps.
    replay, step = open_replay(TrainingLog(log).manifest), TrainingLog(log).step(1)
    theta = replay.load(TrainingLog(log).parameters(1))
    zeros = [torch.zeros_like(part) for part in theta]
    own = [part for part in replay.gradient(step, theta) if part is not None]
    plain = [
        part for part in predicted_gradient(replay, HessianMode.EXACT, step, theta, zeros, 0.0) if part is not None
    ]
    assert 1e-4 < distance(plain, own) / global_norm(own) < 0.02  # what autocast rounds


def test_dropout_of_the_base_model_is_drawn_again(base_model: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(base_model, base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.2}))
    test_a_real_run_is_recorded_and_forgets_as_a_retraining_does(SETTINGS["gradient checkpointing"], base, tmp_path)
