"""A pruned log is smaller, sound, and gives what it still holds as before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from killing import killed_while
from lmcleaner.formats.errors import ExistsError, InsufficientLogError, UsageError
from lmcleaner.formats.lock import WriterLock
from lmcleaner.formats.pruning import Pruning, plan_pruning, prune
from lmcleaner.formats.ranges import ranges_of
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.store import open_store
from lmcleaner.formats.verify import find_problems
from lmcleaner.formats.writer import LogWriter

if TYPE_CHECKING:
    from tests.formats.conftest import Run

MakeRun = Callable[..., "Run"]
WriteRun = Callable[..., Path]
NUM_STEPS = 40  # three shards of updates; checkpoints before 0, 3, … 39 and 40


@pytest.fixture(params=["lossless", "int8"])
def path(request: pytest.FixtureRequest, make_run: MakeRun, write_run: WriteRun, tmp_path: Path) -> Path:
    return write_run(tmp_path / "log", make_run(NUM_STEPS, updates=request.param, gradients="int4"))


def size_of(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def reconstructions(path: Path) -> dict[int, bytes]:
    """θ of every step as the updates have it from step 0 on, where they are."""
    log = TrainingLog(path)
    found = log.reconstruct(0)
    values = {0: found.bits.tobytes()}
    for step in range(1, log.num_steps + 1):
        if log.missing_update(0, step) is None:
            found.advance_to(step)
            values[step] = found.bits.tobytes()
    return values


def test_a_plan_changes_nothing_and_tells_what_happens(path: Path) -> None:
    before = size_of(path)
    pruning = Pruning(keep_checkpoints_every=12, drop_updates=((0, NUM_STEPS),), drop_gradients=True)
    planned = plan_pruning(TrainingLog(path), pruning)
    assert size_of(path) == before
    assert planned.checkpoints == (0, 12, 24, 36, 40)
    assert (planned.updates, planned.gradients) == ((), ())
    assert (planned.dropped_updates, planned.steps_per_object) == (((0, NUM_STEPS),), 16)
    assert planned.freed_bytes.keys() == {"checkpoints", "updates", "gradients"}
    done = prune(str(path), pruning)
    assert done == planned
    # The commit record shrinks and gains a line of history; all else that is gone was announced.
    assert before - size_of(path) == pytest.approx(sum(planned.freed_bytes.values()), abs=20_000)
    assert sum(planned.freed_bytes.values()) > 0.5 * before


def test_thinned_checkpoints_leave_every_step_as_it_was(path: Path) -> None:
    before, root = reconstructions(path), TrainingLog(path).root
    prune(str(path), Pruning(keep_checkpoints_every=12))
    log = TrainingLog(path)
    assert log.checkpoint_steps == (0, 12, 24, 36, 40)
    assert reconstructions(path) == before
    assert not any(find_problems(log))
    (change,) = log.commit.history
    assert (change.kind, change.root_before) == ("pruning", root)
    assert change.details["checkpoints"][:3] == [3, 6, 9]


def test_dropped_updates_are_gone_and_the_others_stay(path: Path) -> None:
    before = TrainingLog(path)
    expected = before.reconstruction(37).tobytes()
    prune(str(path), Pruning(drop_updates=((5, 32),)))
    log = TrainingLog(path)
    assert log.commit.updates == ((0, 16), (32, 40))  # only whole objects of sixteen steps go
    assert not any(find_problems(log))
    assert log.reconstruction(37).tobytes() == expected
    with pytest.raises(InsufficientLogError, match=r"doesn't hold the update: .* step 18"):
        log.reconstruct(18).advance_to(20)
    assert not (path / log.tree.path("updates") / "c" / "1" / "0").exists()
    assert np.array_equal(log.parameters(21), before.checkpoint_parameters(21))


@pytest.mark.parametrize("every", [None, 5, 100])
@pytest.mark.parametrize("dropped", [((0, 16),), ((16, 32),), ((32, 40),), ((0, 7), (7, 20), (30, 33))])
def test_what_can_still_be_read_is_what_it_was(
    every: int | None, dropped: tuple[tuple[int, int], ...], path: Path
) -> None:
    before = TrainingLog(path)
    expected = [before.reconstruction(step).tobytes() for step in range(NUM_STEPS + 1)]
    prune(str(path), Pruning(keep_checkpoints_every=every, drop_updates=dropped))
    log = TrainingLog(path)
    assert not any(find_problems(log))
    is_there = [log.missing_update(log.nearest_checkpoint(step), step) is None for step in range(NUM_STEPS + 1)]
    assert is_there[0]
    assert is_there[NUM_STEPS]
    assert not all(is_there) or every is None
    for step, found in enumerate(is_there):
        if found:
            assert log.reconstruction(step).tobytes() == expected[step]


@pytest.mark.parametrize(
    ("asked", "goes"),
    [
        (((5, 32),), ((16, 32),)),
        (((5, 12),), ()),
        (((0, 7), (7, 16)), ((0, 16),)),  # an object goes whoever named its steps
        (((30, 40),), ((32, 40),)),  # the last object holds eight steps
        (((32, 10**9),), ((32, 40),)),
    ],
)
def test_only_whole_objects_go(
    asked: tuple[tuple[int, int], ...], goes: tuple[tuple[int, int], ...], path: Path
) -> None:
    planned = plan_pruning(TrainingLog(path), Pruning(drop_updates=asked))
    assert planned.dropped_updates == goes
    assert ("updates" in planned.freed_bytes) == bool(goes)


def test_the_last_parameters_stay_readable_without_a_checkpoint(
    make_run: MakeRun, write_run: WriteRun, tmp_path: Path
) -> None:
    run = make_run(NUM_STEPS)
    run = replace(run, checkpoints={step: kept for step, kept in run.checkpoints.items() if step < 35})
    path = write_run(tmp_path / "log", run)
    prune(path, Pruning(drop_updates=((0, NUM_STEPS),), keep_checkpoints_every=100))
    log = TrainingLog(path)
    assert (log.checkpoint_steps, log.commit.updates) == ((0, 33), ((32, 40),))
    assert np.array_equal(log.parameters(NUM_STEPS), run.parameters[NUM_STEPS])


def test_nothing_empty_is_left(path: Path) -> None:
    prune(path, Pruning(keep_checkpoints_every=12, drop_updates=((0, NUM_STEPS),), drop_gradients=True))
    assert [folder for folder in path.rglob("*") if folder.is_dir() and not any(folder.iterdir())] == []


def test_a_pruned_log_does_not_go_on(path: Path) -> None:
    prune(path, Pruning(drop_updates=((0, NUM_STEPS),)))
    with pytest.raises(InsufficientLogError, match=r"can't go on: .* pruning on"):
        LogWriter.resume(path)
    assert not any(find_problems(TrainingLog(path)))


PRUNE = """
from lmcleaner.formats.pruning import Pruning, prune

prune(store, Pruning(keep_checkpoints_every=12, drop_updates=((0, 40),)))
"""
DYING = """
deleted = 0

def write(self, key, parts):
    if moment == "before the record" and key.startswith("commit/"):
        die()
    super().write(key, parts)
    if moment == "after the record" and key.startswith("commit/"):
        die()

def delete(self, prefix):
    self.deleted += 1
    if moment == "while deleting" and self.deleted == 3:
        die()
    super().delete(prefix)
"""


@pytest.mark.parametrize("moment", ["before the record", "after the record", "while deleting"])
def test_a_killed_pruning_leaves_leftovers_and_no_damage(moment: str, path: Path) -> None:
    before = TrainingLog(path)
    killed_while(DYING, PRUNE, path, moment)
    log, is_pruned = TrainingLog(path), moment != "before the record"
    assert (log.root != before.root) == is_pruned
    problems = [problem for problem in find_problems(log) if problem is not None]
    assert {problem.kind for problem in problems} == ({"leftover"} if is_pruned else set())
    assert plan_pruning(log, Pruning()).freed_bytes.keys() == ({"leftovers"} if is_pruned else set())
    prune(path, Pruning())
    assert not any(find_problems(TrainingLog(path)))
    assert (len(TrainingLog(path).checkpoint_steps) == 5) == is_pruned


def test_dropped_gradients_are_gone(path: Path) -> None:
    prune(str(path), Pruning(drop_gradients=True))
    log = TrainingLog(path)
    assert not any(find_problems(log))
    with pytest.raises(InsufficientLogError, match="doesn't hold the gradient any more"):
        log.gradient(3)


def test_pruning_twice_adds_to_the_history_and_nothing_new_adds_nothing(path: Path) -> None:
    prune(str(path), Pruning(keep_checkpoints_every=12))
    prune(str(path), Pruning(keep_checkpoints_every=12))
    assert len(TrainingLog(path).commit.history) == 1
    prune(str(path), Pruning(drop_gradients=True))
    assert len(TrainingLog(path).commit.history) == 2


def test_pruning_removes_what_a_killed_writer_left(path: Path) -> None:
    leftover = path / "generation-1" / "updates" / "c" / "0"
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(b"half a shard")
    prune(str(path), Pruning())
    assert not (path / "generation-1").exists()
    assert not any(find_problems(TrainingLog(path)))


def test_an_interrupted_run_is_not_pruned(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(3)
    LogWriter.create(tmp_path / "log", run.manifest, run.checkpoints[0]).close()
    with pytest.raises(UsageError, match="would go on from what goes") as error:
        prune(str(tmp_path / "log"), Pruning())
    assert "--resume" in str(error.value.hint)


def test_a_log_that_somebody_writes_is_not_pruned(path: Path) -> None:
    with WriterLock.acquire(open_store(path, writable=True)), pytest.raises(ExistsError, match="is being written"):
        prune(str(path), Pruning())


@pytest.mark.parametrize("values", [{"keep_checkpoints_every": 0}, {"drop_updates": ((5, 5),)}])
def test_nonsense_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="expected"):
        Pruning(**values)  # type: ignore[arg-type]


def test_neighbours_become_ranges() -> None:
    assert ranges_of([0, 1, 2, 5, 7, 8]) == ((0, 3), (5, 6), (7, 9))
    assert ranges_of([]) == ()
