"""A log says which of its microbatches are packed, and packed samples lie without gaps in their rows."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hostile_logs import forge_table
from lmcleaner.formats import golden
from lmcleaner.formats.errors import DamagedError
from lmcleaner.formats.golden.make import LOG
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.steps import MicrobatchRecord

FOLDER = Path(next(iter(golden.__path__)))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    shutil.copytree(FOLDER / "v1-packed" / LOG, tmp_path / "log")
    return tmp_path / "log"


def microbatches(log: TrainingLog) -> list[MicrobatchRecord]:
    return [microbatch for step in range(log.num_steps) for microbatch in log.step(step).microbatches]


def test_each_sample_of_a_pack_has_its_row(path: Path) -> None:
    found = microbatches(TrainingLog(path))
    assert {m.packed for m in found} == {True, False}
    assert {(m.rows, m.num_rows) for m in found if m.packed} == {((0, 0), 1), ((0, 0, 1), 2)}
    assert all(m.rows == tuple(range(len(m.samples))) for m in found if not m.packed)


def test_a_log_without_packs_has_no_such_table() -> None:
    log = TrainingLog(FOLDER / "v1-lossless" / LOG)
    assert "microbatches/packed" not in log.commit.tables
    assert not any(m.packed for m in microbatches(log))


def with_gap(starts: Any, first: int) -> Any:
    starts[first + 1] += 1
    return starts


DAMAGE: dict[str, tuple[str, Callable[[Any, int], Any], str]] = {
    "a gap between two samples": ("occurrences/start", with_gap, "without gaps and without a mask"),
    "a mask": ("microbatches/has_mask", lambda rows, _: np.ones_like(rows), "without gaps and without a mask"),
    "no packed microbatch": ("microbatches/packed", lambda rows, _: rows * 0, "expected 0 and 1, and a packed"),
    "a number that means nothing": ("microbatches/packed", lambda rows, _: rows * 2, "expected 0 and 1, and a packed"),
    "a microbatch without a row": ("microbatches/packed", lambda rows, _: rows[1:], "rows, found"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_what_cannot_be_a_pack_is_damage(case: str, path: Path) -> None:
    table, change, message = DAMAGE[case]
    log = TrainingLog(path)
    first = int(log.table("microbatches/stop")[np.flatnonzero(log.table("microbatches/packed"))[0] - 1])
    forge_table(path, table, change(log.table(table).copy(), first))
    with pytest.raises(DamagedError, match=message):
        microbatches(TrainingLog(path))
