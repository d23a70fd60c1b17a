"""The benchmarks begin; what they measure, `make bench` tells."""

import subprocess
import sys
from pathlib import Path

import pytest

import log
import modes
from lmcleaner import HessianMode

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


def test_every_benchmark_finds_what_it_imports(tmp_path: Path) -> None:
    benchmarks = sorted(str(file) for file in FOLDER.glob("*.py"))
    script = (
        f"import runpy, sys; sys.path.insert(0, {str(FOLDER)!r})\n"
        f"for file in {benchmarks}: runpy.run_path(file, run_name='imported')"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path, capture_output=True)


def test_the_benchmark_of_the_log_has_all_its_parts_unless_some_are_named() -> None:
    assert log.read_options([]).parts == list(log.PARTS)
    assert log.read_options(["read", "sizes"]).parts == ["read", "sizes"]
    with pytest.raises(SystemExit):
        log.read_options(["reed"])


def test_the_benchmark_of_modes_measures_the_models_that_are_named() -> None:
    assert "demonstration" in modes.read_options([]).models
    assert modes.read_options(["real"]).models == ["real"]
    with pytest.raises(SystemExit):
        modes.read_options(["reel"])


@pytest.mark.parametrize("optimizer", modes.RATES)
def test_every_mode_is_measured_by_share_and_by_K(optimizer: str) -> None:  # noqa: N802 -- the paper's name
    cells = {
        (cell.run, cell.forget, cell.level, cell.K, cell.mode)
        for run in ("epochs", "once")
        for cell in modes.cells(run, optimizer)
        if cell.propagation == "optimizer"
    }
    for mode in HessianMode:
        for level, run in {"sample": "epochs", "batch": "once"}.items():
            assert {(run, share, level, "all", mode) for share in ("0.01", "0.08", "0.1")} <= cells
            K = ("10", "25", "50", "100", "200", "all", "auto")  # noqa: N806
            assert {("once", "early", level, steps, mode) for steps in K} <= cells
