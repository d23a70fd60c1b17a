"""A mode that is left open is chosen by its estimated error, and what was tried is said and recorded."""

import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lmcleaner.choices import HessianMode
from lmcleaner.cli.main import app
from lmcleaner.formats.errors import UsageError
from lmcleaner.unlearning.choosing import TRIAL_PERCENT
from lmcleaner.unlearning.options import UnlearnOptions
from lmcleaner.unlearning.run import unlearn
from tiny_runs import Recording, TinyRun, record_tiny


@pytest.fixture(scope="module")
def rich_run(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """60 steps whose gradients and curvature are in the log."""
    folder = tmp_path_factory.mktemp("rich")
    more: dict[str, Any] = {"gradients": "lossless", "curvature": "low_rank", "checkpoint_every": 20}
    return record_tiny(base_model, folder, num_rows=240, epochs=1, **more)


def _unlearned(run: TinyRun, output: Path, tolerance: float, **options: Any) -> tuple[dict[str, Any], Recording]:
    said = Recording()
    chosen = {"forget": "steps:5", "K": None, "ledger": False, **options}
    wanted = UnlearnOptions(output=output, hessian_mode=HessianMode.SECANT, tolerance=tolerance, **chosen)
    document = unlearn(run.log, wanted, progress=said).document
    assert document is not None
    return document, said


def test_the_cheapest_mode_within_the_tolerance_is_taken(rich_run: TinyRun, tmp_path: Path) -> None:
    document, said = _unlearned(rich_run, tmp_path / "out", tolerance=100.0)
    (trial,) = document["result"]["tried"]
    assert document["config"]["hessian_mode"] == trial["mode"] == "fisher"
    assert document["result"]["estimated_error"] == trial["estimated_error"] <= 100
    assert document["config"]["oracle_sample"] == TRIAL_PERCENT
    assert document["config"]["tolerance"] == 100
    assert any(line.startswith("auto: fisher has an estimated relative error of") for line in said.lines)


def test_secant_is_taken_where_no_cheaper_mode_will_do(rich_run: TinyRun, tmp_path: Path) -> None:
    document, said = _unlearned(rich_run, tmp_path / "out", tolerance=1e-6, oracle=True)
    assert document["config"]["hessian_mode"] == "secant"
    assert document["oracle"]["relative_error"] == 0
    assert {trial["mode"] for trial in document["result"]["tried"]} == {"fisher", "low_rank"}
    assert all(trial["estimated_error"] > 1e-6 for trial in document["result"]["tried"])
    assert "auto: takes secant, since no cheaper mode will do" in said.lines


def test_nothing_is_tried_where_nothing_is_cheaper(adamw_run: TinyRun, tmp_path: Path) -> None:
    document, said = _unlearned(adamw_run, tmp_path / "out", tolerance=100.0)
    assert document["config"]["hessian_mode"] == "secant"
    assert document["result"]["tried"] == []
    assert "auto: takes secant, since none costs less here" in said.lines


@pytest.mark.parametrize(("sample", "percent"), [(0, 20), (30, 30)])
def test_a_dry_run_says_what_would_be_tried_and_tries_nothing(sample: int, percent: int, rich_run: TinyRun) -> None:
    options = ("--forget", "steps:5", "--K", "all", "--hessian-mode", "auto", "--dry-run", "--no-ledger")
    sampled = ("--oracle-sample", str(sample))
    shown = CliRunner().invoke(app, ["unlearn", str(rich_run.log), *options, *sampled])
    assert shown.exit_code == 0
    told = " ".join(shown.stdout.split())
    assert re.search(rf"auto: fisher, low_rank will be tried before, each with {percent} % .*: up to \d+ s more", told)


@pytest.mark.parametrize("options", [{"tolerance": -1}, {"propagation": "paper", "hessian_mode": "GGN"}])
def test_what_has_no_estimate_has_no_tolerance(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"tolerance|paper"):
        UnlearnOptions(**{"forget": "steps:5", "output": tmp_path / "out", "tolerance": 0.1, **options})


def test_a_redaction_leaves_no_mode_open(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="found auto"):
        UnlearnOptions(
            forget="steps:5", output=tmp_path, hessian_mode=HessianMode.SECANT, K=None, redact=True, tolerance=1
        )


def test_a_tolerance_without_auto_is_refused(adamw_run: TinyRun) -> None:
    options = ("--forget", "steps:5", "--dry-run", "--hessian-mode", "GGN", "--tolerance", "0.1")
    assert CliRunner().invoke(app, ["unlearn", str(adamw_run.log), *options]).exit_code == 2
