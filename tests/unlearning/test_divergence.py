"""Whatever the learning rate, a result is finite and a change, or there is an error and no model."""

import math
from pathlib import Path

import pytest
import torch

from lmcleaner.choices import HessianMode, Propagation
from lmcleaner.formats.errors import DivergedError
from tiny_runs import TinyRun, parameters_in, record_tiny, unlearn_tiny

RATES = {"adamw": [0.01, 1.0, 10.0], "sgd": [0.1, 10.0, 100.0]}
WAYS = [
    (mode, propagation)
    for mode in HessianMode
    for propagation in Propagation
    if (mode, propagation) != (HessianMode.SECANT, Propagation.PAPER)  # which is refused
]
KINDS = [(optimizer, rate) for optimizer, rates in RATES.items() for rate in rates]


@pytest.fixture(scope="module")
def runs(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, float], TinyRun]:
    """Up to rates at which parameters are thrown far away; clipping keeps the training itself finite."""
    return {
        (optimizer, rate): record_tiny(
            base_model, tmp_path_factory.mktemp("run"), optimizer=optimizer, lr=rate, epochs=1, warmup_ratio=0.0
        )
        for optimizer, rate in KINDS
    }


@pytest.mark.parametrize(("mode", "propagation"), WAYS)
@pytest.mark.parametrize(("optimizer", "rate"), KINDS)
def test_a_result_is_finite_and_no_zero_or_an_error(
    optimizer: str,
    rate: float,
    mode: HessianMode,
    propagation: Propagation,
    runs: dict[tuple[str, float], TinyRun],
    tmp_path: Path,
) -> None:
    run, output = runs[optimizer, rate], tmp_path / "out"
    try:
        document = unlearn_tiny(run, output, mode, propagation=propagation, forget="steps:1", level="sample").document
    except DivergedError:
        assert not output.exists()
        return
    assert document is not None
    assert math.isfinite(document["result"]["change_norm"])
    assert document["result"]["change_norm"] > 0
    assert all(bool(torch.isfinite(parameter).all()) for parameter in parameters_in(output).values())
