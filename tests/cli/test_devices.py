"""`--device`: where a command computes, and what it says of that."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from lmcleaner.cli.main import app
from lmcleaner.formats.audit_document import read_audit
from lmcleaner.formats.errors import UsageError
from lmcleaner.training.numerics import replay_device, unrestorable
from tiny_runs import DEVICE, TinyRun, parameters_in, record_tiny, same_bits, unlearn_tiny, write_base_model


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def _commands(run: TinyRun, output: Path) -> dict[str, tuple[object, ...]]:
    request = ("--forget", "forget", "--no-ledger")
    return {
        "unlearn": ("unlearn", run.log, *request, "--output", output, "--hessian-mode", "secant", "--K", "all"),
        "plan": ("inspect", run.log, *request, "--plan"),
        "replay": ("inspect", run.log, "--verify", "--replay", 2),
        "audit": ("audit", output, "--log", run.log, "--oracle"),
    }


def test_every_command_computes_where_it_is_told_to(adamw_run: TinyRun, tmp_path: Path) -> None:
    for name, arguments in _commands(adamw_run, tmp_path / "out").items():
        done = _run(*arguments, "--device", DEVICE)
        assert done.exit_code == 0, (name, done.output)
    plain: Any = unlearn_tiny(adamw_run, tmp_path / "plain").document
    document = read_audit(tmp_path / "out")
    assert document["environment"]["device"].startswith(f"{DEVICE} (")
    assert document["environment"]["device"] == plain["environment"]["device"]
    assert same_bits(parameters_in(tmp_path / "out"), parameters_in(tmp_path / "plain"))


@pytest.mark.parametrize("device", ["tpu", "cuda:99", "cpu:1", ""])
@pytest.mark.parametrize("command", ["unlearn", "plan", "replay"])
def test_a_device_that_is_not_here_is_refused(command: str, device: str, adamw_run: TinyRun, tmp_path: Path) -> None:
    done = _run(*_commands(adamw_run, tmp_path / "out")[command], "--device", device)
    assert done.exit_code == 2
    assert "no such device: --device: expected one of cpu" in done.stderr
    assert f"found '{device}'" in done.stderr
    assert not (tmp_path / "out").exists()


def test_on_the_cpu_there_is_nothing_to_offload(adamw_run: TinyRun, tmp_path: Path) -> None:
    done = _run(*_commands(adamw_run, tmp_path / "out")["unlearn"], "--offload", "--device", "cpu")
    assert done.exit_code == 2
    assert "expected an accelerator to compute on, found cpu" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("mode", ["secant", "GGN", "low_rank"])
def test_a_state_in_host_memory_gives_the_same_bits_and_leaves_room_on_the_device(mode: str, tmp_path: Path) -> None:
    base = write_base_model(tmp_path / "base", hidden_size=256, intermediate_size=1024, num_hidden_layers=4)
    run, made = record_tiny(base, tmp_path), {}
    for offload in (False, True):
        output = tmp_path / str(offload)
        made[offload] = unlearn_tiny(run, output, mode, device="cuda", offload=offload, ledger=False)
    assert same_bits(parameters_in(tmp_path / "False"), parameters_in(tmp_path / "True"))
    peaks = {output: read_audit(tmp_path / str(output))["timing"]["peak_memory_bytes"] for output in made}
    states = 2 * 4 * run.open().manifest.num_elements  # of AdamW
    assert peaks[True] < peaks[False] - states / 2
    for offload, result in made.items():
        assert peaks[offload] == pytest.approx(result.plan.memory_bytes, rel=0.25)


def test_curvature_is_estimated_where_it_is_told_to(adamw_run: TinyRun, tmp_path: Path) -> None:
    refused = _run("curvature", adamw_run.log, "--device", "tpu")
    assert refused.exit_code == 2
    assert not adamw_run.open().commit.curvature


def test_another_type_of_device_than_the_runs_is_said(adamw_run: TinyRun) -> None:
    manifest = adamw_run.open().manifest
    assert unrestorable(manifest, torch.device(DEVICE)) == []
    elsewhere = replace(manifest, numerics=replace(manifest.numerics, device="cuda", device_name="a GPU"))
    (difference,) = unrestorable(elsewhere, torch.device("cpu"))
    assert difference.startswith("device: the run had cuda (a GPU), here is cpu (")


def test_a_run_on_an_accelerator_is_replayed_on_the_cpu_where_it_is_wanted(adamw_run: TinyRun) -> None:
    manifest = adamw_run.open().manifest
    elsewhere = replace(manifest, numerics=replace(manifest.numerics, device="cuda"))
    assert replay_device(elsewhere, "cpu") == torch.device("cpu")
    assert replay_device(elsewhere).type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(UsageError, match="no such device"):
        replay_device(elsewhere, "meta")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_sweep_on_the_cpu_comes_close_to_a_run_on_a_gpu(adamw_run: TinyRun, tmp_path: Path) -> None:
    made = {
        device: unlearn_tiny(adamw_run, tmp_path / device, device=device, oracle=True).document
        for device in ("cuda", "cpu")
    }
    for document in made.values():
        assert document is not None
        assert document["oracle"]["relative_error"] < 1e-3
    left, right = (parameters_in(tmp_path / device) for device in made)
    assert all(torch.allclose(left[name], right[name], atol=1e-4) for name in left)


def test_the_json_of_a_dry_run_is_one_document(adamw_run: TinyRun) -> None:
    done = _run("unlearn", adamw_run.log, "--forget", "forget", "--dry-run", "--json", "--device", "cpu")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["plan"]["steps"] > 0
