"""The peak memory of a sweep is a few parameter vectors and one step's activations, whatever is forgotten and how far.

Measured by parts of the benchmark, each in a process of its own.
"""

from pathlib import Path

import pytest

from processes import PRECISE_MEMORY, in_own_process
from sweep import make_inputs, run_record, run_step, run_unlearn

VECTOR_BYTES = 4
NOISE = 1.02  # the same run's peak moves by two per cent, with what other threads hold at that moment


@pytest.mark.slow
def test_a_sweep_holds_few_vectors_and_no_more_for_more_rows_or_steps(tmp_path: Path) -> None:
    """Plain SGD has no state, so that its limit is the tightest: θ, θ′, δ and a gradient."""
    vector = 0
    for size in ("warm-up", "large"):
        vector = VECTOR_BYTES * make_inputs(tmp_path, size)
        run_record(tmp_path, "sgd", size)
    activations = in_own_process(run_step, tmp_path, "sgd", environment=PRECISE_MEMORY)["peak"] - vector
    limit = NOISE * ((2 + 2 * 0 + 2) * vector + activations)
    peaks = {
        (mode, steps, rows): in_own_process(
            run_unlearn, tmp_path, "sgd", mode, steps, rows, environment=PRECISE_MEMORY
        )["peak"]
        for mode, steps, rows in (
            ("secant", "2", "one"),
            ("secant", "all", "many"),
            ("GGN", "2", "one"),
            ("exact", "2", "one"),
        )
    }
    assert all(peak <= limit for peak in peaks.values()), (str(peaks), limit)
    assert abs(peaks["secant", "all", "many"] - peaks["secant", "2", "one"]) < vector
