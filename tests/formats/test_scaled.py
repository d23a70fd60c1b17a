"""A log says by which factor a gradient scaler multiplied the losses of each step."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hostile_logs import forge_table
from lmcleaner.formats import golden
from lmcleaner.formats.errors import DamagedError
from lmcleaner.formats.golden.make import LOG
from lmcleaner.formats.reader import TrainingLog

FOLDER = Path(next(iter(golden.__path__)))


def factors(log: TrainingLog) -> list[float]:
    return [log.step(step).loss_scale for step in range(log.num_steps)]


def test_each_step_has_its_factor() -> None:
    log = TrainingLog(FOLDER / "v1-scaled" / LOG)
    assert factors(log) == [1.0, 65536.0, 65536.0, 0.7 * 65536, 1.0]
    assert log.manifest.numerics.autocast == "float16"


def test_a_log_without_scaled_losses_has_no_such_table() -> None:
    log = TrainingLog(FOLDER / "v1-lossless" / LOG)
    assert "steps/loss_scale" not in log.commit.tables
    assert set(factors(log)) == {1.0}


DAMAGE: dict[str, tuple[Callable[[Any], Any], str]] = {
    "no factor": (lambda rows: rows * 0 + 1, "expected a factor other than 1, found none"),
    "a factor of 0": (lambda rows: rows * 0, "expected finite factors above 0"),
    "an infinite factor": (lambda rows: rows * float("inf"), "expected finite factors above 0"),
    "a step without a factor": (lambda rows: rows[1:], "rows, found"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_what_cannot_be_a_factor_is_damage(case: str, tmp_path: Path) -> None:
    change, message = DAMAGE[case]
    shutil.copytree(FOLDER / "v1-scaled" / LOG, tmp_path / "log")
    forge_table(tmp_path / "log", "steps/loss_scale", change(TrainingLog(tmp_path / "log").table("steps/loss_scale")))
    with pytest.raises(DamagedError, match=message):
        factors(TrainingLog(tmp_path / "log"))
