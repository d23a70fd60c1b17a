"""The peak memory of a sweep is a few parameter vectors and one step's activations, whatever is forgotten and how far.

Measured by the parts of the benchmark, each in a process of its own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "run.py"
BLOCKS = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
VECTOR_BYTES = 4


def _part(name: str, folder: Path, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, str(BENCHMARK), name, str(folder), *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=dict(os.environ) | BLOCKS)
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


@pytest.mark.slow
def test_a_sweep_holds_few_vectors_and_no_more_for_more_rows_or_steps(tmp_path: Path) -> None:
    """Plain SGD has no state, so that its limit is the tightest: θ, θ′, δ and a gradient."""
    vector = 0
    for size in ("warm-up", "large"):
        vector = VECTOR_BYTES * _part("inputs", tmp_path, size)["parameters"]
        _part("record", tmp_path, "sgd", size)
    activations = _part("step", tmp_path, "sgd")["peak"] - vector
    limit = (2 + 2 * 0 + 2) * vector + activations
    peaks = {
        (mode, steps, rows): _part("unlearn", tmp_path, "sgd", mode, steps, rows)["peak"]
        for mode, steps, rows in (
            ("secant", "2", "one"),
            ("secant", "all", "one"),
            ("secant", "all", "many"),
            ("GGN", "all", "one"),
            ("exact", "all", "one"),
        )
    }
    assert all(peak <= limit for peak in peaks.values()), (peaks, limit)
    assert abs(peaks["secant", "all", "one"] - peaks["secant", "2", "one"]) < vector
    assert abs(peaks["secant", "all", "many"] - peaks["secant", "all", "one"]) < vector
