"""Runs on a GPU: what decides their last bit there is in the log, and another process restores it."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from lmcleaner.choices import HessianMode
from lmcleaner.formats.errors import UsageError
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.recording.describe import RunDescription
from lmcleaner.recording.recorder import Recorder
from lmcleaner.recording.training import explained_kernels
from lmcleaner.training.numerics import computing_with, matmul_precision, restored_numerics
from lmcleaner.unlearning.options import UnlearnOptions
from lmcleaner.unlearning.run import unlearn
from real_runs import PADDING, SETTINGS, batches
from tiny_runs import DEVICE, TinyRun, parameters_in, record_tiny, same_bits, unlearn_tiny, write_base_model

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture
def _medium_precision() -> Any:
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.mark.usefixtures("_medium_precision")
def test_the_precision_of_matrix_products_is_in_the_log_and_restored(base_model: Path, tmp_path: Path) -> None:
    run = record_tiny(base_model, tmp_path)
    lower = {"cpu": "bf16", "cuda": "tf32"}[DEVICE]
    numerics = run.open().manifest.numerics
    assert numerics.matmul == lower
    torch.set_float32_matmul_precision("highest")
    with restored_numerics(numerics):
        assert matmul_precision(DEVICE) == lower
    assert matmul_precision(DEVICE) == "ieee"
    with restored_numerics(replace(numerics, matmul="ieee")):
        assert matmul_precision(DEVICE) == "ieee"


def test_the_workspace_of_cublas_is_restored_and_set_back(adamw_run: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    numerics = adamw_run.open().manifest.numerics
    for before in (None, ":16:8"):
        monkeypatch.delenv(WORKSPACE, raising=False)
        if before is not None:
            monkeypatch.setenv(WORKSPACE, before)
        with restored_numerics(replace(numerics, cublas_workspace=":4096:8")):
            assert os.environ[WORKSPACE] == ":4096:8"
        with restored_numerics(replace(numerics, cublas_workspace=None)):
            assert os.environ.get(WORKSPACE) == before
        assert os.environ.get(WORKSPACE) == before


def test_deterministic_kernels_are_asked_for_and_restored(base_model: Path, tmp_path: Path) -> None:
    run = record_tiny(base_model, tmp_path, deterministic=True)
    numerics = run.open().manifest.numerics
    assert (numerics.deterministic, numerics.warn_only) == (True, False)
    torch.use_deterministic_algorithms(mode=False)
    for warn_only in (False, True):
        with restored_numerics(replace(numerics, warn_only=warn_only)):
            assert torch.are_deterministic_algorithms_enabled()
            assert torch.is_deterministic_algorithms_warn_only_enabled() is warn_only
        assert not torch.are_deterministic_algorithms_enabled()


def test_an_operation_without_a_deterministic_kernel_is_said_with_the_way_out() -> None:
    with (
        computing_with(1, flush_denormal=True, deterministic=True),
        pytest.raises(UsageError, match="can't be trained with deterministic kernels: put_") as caught,
        explained_kernels(),
    ):
        torch.zeros(3).put_(torch.tensor([0]), torch.tensor([1.0]))
    assert "--no-deterministic" in str(caught.value.hint)
    with pytest.raises(RuntimeError, match="size"), explained_kernels():
        torch.zeros(3) + torch.zeros(2)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("precision", ["highest", "high"])
@pytest.mark.parametrize("settings", [{}, {"dtype": "bfloat16", "lr": 1e-3}, {"lora_rank": 4}])
def test_another_process_replays_a_run_of_trainer_to_the_bit(
    settings: dict[str, Any], precision: str, tmp_path: Path
) -> None:
    base = write_base_model(tmp_path / "base", dropout=0.1, hidden_size=64, intermediate_size=128)
    torch.set_float32_matmul_precision(precision)
    run = record_tiny(base, tmp_path, **settings)
    torch.set_float32_matmul_precision("highest")
    numerics = run.open().manifest.numerics
    assert numerics.matmul == {"highest": "ieee", "high": "tf32"}[precision]
    assert (numerics.device, numerics.device_name) == ("cuda", torch.cuda.get_device_name())
    assert (numerics.deterministic, numerics.cublas_workspace) == (True, ":4096:8")
    command = [sys.executable, "-m", "lmcleaner.cli", "inspect", str(run.log), "--verify", "--replay", "10", "--json"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["replay"] == {"num_steps": 10, "num_exact": 10, "unrestorable": []}
    document = unlearn_tiny(run, tmp_path / "out", oracle=True).document
    assert document is not None
    assert document["oracle"]["relative_error"] == 0.0


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("options", [{"fused": True}, {"foreach": True}, {"capturable": True}, {"amsgrad": True}])
def test_every_kind_of_kernel_of_an_optimizer_is_replayed(options: dict[str, bool], tmp_path: Path) -> None:
    base = write_base_model(tmp_path / "base")
    log = _by_hand(base, tmp_path / "log", torch.optim.AdamW, options)
    found = TrainingLog(log).commit.self_check
    assert found is not None
    assert (found.state, found.why) == ("exact", "")
    for offload in (False, True):
        _forget(log, tmp_path / str(offload), offload=offload, ledger=False)
    assert same_bits(parameters_in(tmp_path / "False"), parameters_in(tmp_path / "True"))


@pytest.mark.gpu
@needs_gpu
def test_the_eight_bit_optimizer_is_replayed(tmp_path: Path) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    base = write_base_model(tmp_path / "base", hidden_size=64, intermediate_size=128)
    log = _by_hand(base, tmp_path / "log", bitsandbytes.optim.AdamW8bit, {"min_8bit_size": 256})
    found = TrainingLog(log).commit.self_check
    assert found is not None
    assert (found.state, found.why) == ("exact", "")
    _forget(log, tmp_path / "out")


def _by_hand(base: Path, log: Path, kind: Any, options: dict[str, Any]) -> Path:
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    model.to(DEVICE).train()
    optimizer = kind(model.parameters(), lr=1e-3, **options)
    with Recorder(log, model, optimizer, RunDescription(model_source=str(base), padding_token=PADDING)):
        for batch in batches(SETTINGS["frozen layer"]):
            model(**{name: value.to(DEVICE) for name, value in batch.items()}).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return log


def _forget(log: Path, output: Path, **options: Any) -> None:
    digest = TrainingLog(log).step(0).samples[0].digest.hex()
    chosen: dict[str, Any] = {
        "forget": digest,
        "output": output,
        "K": None,
        "hessian_mode": HessianMode.SECANT,
        "oracle": True,
    }
    document = unlearn(log, UnlearnOptions(**chosen, **options)).document
    assert document is not None
    assert document["oracle"]["relative_error"] == 0.0
