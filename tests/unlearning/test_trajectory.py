"""The run's θ is read where it is needed, and nowhere else."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from lmcleaner.choices import HessianMode
from lmcleaner.formats.errors import DamagedError
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.training.replay import open_replay
from lmcleaner.training.vectors import bits_of
from lmcleaner.unlearning.settling import looks, marks
from lmcleaner.unlearning.trajectory import ReadTrajectory
from lmcleaner.unlearning.windows import Window, first_read, read_steps
from tiny_runs import TinyRun, parameters_in, record_tiny, same_bits, unlearn_tiny

CHECKPOINTS = (0, 10, 20, 30)
WINDOW = Window(start=0, first=3, last=3, end=30)


@pytest.fixture(scope="module")
def run(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """50 steps, a checkpoint before every 16th, as many updates in an object."""
    return record_tiny(base_model, tmp_path_factory.mktemp("long"), epochs=10, checkpoint_every=16)


def test_secant_looks_at_a_deviation_where_it_is_judged_and_at_checkpoints() -> None:
    found = looks(WINDOW, CHECKPOINTS, HessianMode.SECANT, is_end_fixed=True)
    assert found == {4, 10, 20, 28, 30}  # a tenth of the 27 carried steps is 2
    assert read_steps(CHECKPOINTS, found, 0) == {*range(4), *range(20, 28)}


def test_other_modes_look_everywhere() -> None:
    found = looks(WINDOW, CHECKPOINTS, HessianMode.GGN, is_end_fixed=True)
    assert found == {*range(4, 31)}
    assert read_steps(CHECKPOINTS, found, 0) == {*range(30)}


def test_a_window_that_may_end_earlier_is_looked_at_wherever_it_may() -> None:
    window = replace(WINDOW, end=300)
    found = looks(window, (), HessianMode.SECANT, is_end_fixed=False)
    assert found == {4, *(step + 1 for step in marks(window, is_end_fixed=False))}


def test_a_jump_to_a_checkpoint_gives_the_runs_parameters(run: TinyRun) -> None:
    log = run.open()
    trajectory = ReadTrajectory(log, open_replay(log.manifest), 0, 50)
    for step in (0, 1, 16, 19, 20, 45, 50):
        here = trajectory.move_to(step)
        assert here is not None
        assert (bits_of(here) == log.parameters(step)).all()
    trajectory.close()


def test_secant_reads_no_update_that_it_does_not_need(run: TinyRun, tmp_path: Path) -> None:
    whole = unlearn_tiny(run, tmp_path / "whole", forget="steps:0")
    log = shutil.copytree(run.log, tmp_path / "log")
    (missing,) = log.glob("generation-0/updates/c/1/0")  # steps 16 to 31
    missing.unlink()
    partly = replace(run, log=log)
    assert whole.plan.bytes_to_read < run.open().bytes_on_disk()["updates"]
    assert whole.document is not None
    with pytest.raises(DamagedError, match="updates"):
        unlearn_tiny(partly, tmp_path / "ggn", "GGN", forget="steps:0")
    result = unlearn_tiny(partly, tmp_path / "secant", forget="steps:0")
    assert result.document is not None
    assert result.document["windows"] == whole.document["windows"]
    assert same_bits(parameters_in(tmp_path / "secant"), parameters_in(tmp_path / "whole"))


def test_a_trajectory_that_is_told_where_it_begins_reads_nothing_before(run: TinyRun, tmp_path: Path) -> None:
    """As behind a lead-in, which ends with the run's own θ."""
    log, replay = run.open(), open_replay(run.open().manifest)
    known = replay.load(log.parameters(36))
    partly = shutil.copytree(run.log, tmp_path / "log")
    for number in (0, 1):  # steps 0 to 31
        (partly / f"generation-0/updates/c/{number}/0").unlink()
    trajectory = ReadTrajectory(TrainingLog(partly), replay, 36, 50, known)
    for step in (36, 37, 47):
        here = trajectory.move_to(step)
        assert here is not None
        assert (bits_of(here) == log.parameters(step)).all()
    trajectory.close()
    with pytest.raises(DamagedError):
        ReadTrajectory(TrainingLog(partly), replay, 16, 50).move_to(30)


def test_a_sweep_reads_from_its_first_occurrence_on_where_the_updates_are_the_runs_own(
    run: TinyRun, base_model: Path, tmp_path: Path
) -> None:
    assert first_read(run.open(), WINDOW) == WINDOW.first
    assert read_steps(CHECKPOINTS, {4, 12, 13}, WINDOW.first) == {3, 10, 11, 12}
    rounded = record_tiny(base_model, tmp_path, updates="int8")
    assert first_read(rounded.open(), WINDOW) == WINDOW.start
