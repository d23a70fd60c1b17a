"""A log of several processes says of each microbatch where it ran, and can't be taken for that of one."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lmcleaner.formats import golden
from lmcleaner.formats.consistency import problem_of_commit, problem_of_table
from lmcleaner.formats.errors import DamagedError
from lmcleaner.formats.golden.make import LOG
from lmcleaner.formats.manifest import Manifest
from lmcleaner.formats.reader import TrainingLog

FOLDER = Path(next(iter(golden.__path__)))


@pytest.fixture
def log() -> TrainingLog:
    return TrainingLog(FOLDER / "v1-processes" / LOG)


def test_each_microbatch_has_its_rank(log: TrainingLog) -> None:
    assert log.manifest.world_size == 2
    for step in range(log.num_steps):
        ranks = [microbatch.rank for microbatch in log.step(step).microbatches]
        assert ranks == [0, 1] * (len(ranks) // 2)


def test_a_rank_of_no_process_is_damage(log: TrainingLog) -> None:
    for ranks in ([0, 2], [-1, 1]):
        problem = problem_of_table("microbatches/rank", np.array(ranks, np.int32), log.commit, log.manifest)
        assert problem is not None
        assert problem.startswith("expected ranks below 2")


def test_ranks_and_the_number_of_processes_belong_together(log: TrainingLog) -> None:
    assert problem_of_commit(log.commit, log.manifest) is None
    alone = replace(log.manifest, world_size=1)
    assert str(problem_of_commit(log.commit, alone)).startswith("microbatches/rank")
    tables = {name: table for name, table in log.commit.tables.items() if name != "microbatches/rank"}
    assert str(problem_of_commit(replace(log.commit, tables=tables), log.manifest)).startswith("microbatches/rank")


def test_one_process_leaves_the_manifest_as_it_always_was(log: TrainingLog) -> None:
    alone = replace(log.manifest, world_size=1).to_json()
    assert "world_size" not in alone
    assert Manifest.from_json(alone, "here").world_size == 1
    with pytest.raises(DamagedError, match="world_size"):
        Manifest.from_json(alone | {"world_size": 0}, "here")
