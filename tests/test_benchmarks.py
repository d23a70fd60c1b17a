"""The benchmarks begin; what they measure, `make bench` tells."""

import subprocess
import sys
from pathlib import Path

import pytest

from log import PARTS, read_options

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


def test_every_benchmark_finds_what_it_imports(tmp_path: Path) -> None:
    benchmarks = sorted(str(file) for file in FOLDER.glob("*.py"))
    script = (
        f"import runpy, sys; sys.path.insert(0, {str(FOLDER)!r})\n"
        f"for file in {benchmarks}: runpy.run_path(file, run_name='imported')"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path, capture_output=True)


def test_the_benchmark_of_the_log_has_all_its_parts_unless_some_are_named() -> None:
    assert read_options([]).parts == list(PARTS)
    assert read_options(["read", "sizes"]).parts == ["read", "sizes"]
    with pytest.raises(SystemExit):
        read_options(["reed"])
