"""Whatever happens to a file of a log, reading says so, names the place, and changes nothing."""

from __future__ import annotations

import hashlib
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lmcleaner.formats.errors import DamagedError, NotFoundError, VersionError
from lmcleaner.formats.layout import TABLES
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.vectors import VectorReader
from lmcleaner.formats.verify import Problem, Usable, find_problems, num_parts, usable

if TYPE_CHECKING:
    from tests.formats.conftest import Run

MakeRun = Callable[..., "Run"]
WriteRun = Callable[..., Path]
NUM_STEPS = 5  # with checkpoints before 0, 3 and 5


@pytest.fixture(scope="module")
def intact(make_run: MakeRun, write_run: WriteRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log that no test changes."""
    return write_run(tmp_path_factory.mktemp("logs") / "log", make_run(NUM_STEPS))


@pytest.fixture
def small(make_run: MakeRun, write_run: WriteRun, tmp_path: Path) -> Path:
    """A log of three steps, to damage file by file."""
    return write_run(tmp_path / "small", make_run(3))


@pytest.fixture
def log(intact: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(intact, tmp_path / "log")


def problems_of(path: Path) -> list[Problem]:
    return [problem for problem in find_problems(TrainingLog(path)) if problem is not None]


def is_refused(path: Path) -> bool:
    """Whether the log can't be opened; a flipped version number looks like a later release's log, none like no log."""
    try:
        TrainingLog(path)
    except (DamagedError, VersionError, NotFoundError):
        return True
    return False


def files_of(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file())


def flip_bit(file: Path, chance: random.Random) -> str:
    """Flips one bit and says which."""
    content = bytearray(file.read_bytes())
    position, bit = chance.randrange(len(content)), chance.randrange(8)
    content[position] ^= 1 << bit
    file.write_bytes(content)
    return f"bit {bit} of byte {position}"


def truncate(file: Path, chance: random.Random) -> str:
    """Cuts a file off, and says where."""
    length = chance.randrange(file.stat().st_size)
    file.write_bytes(file.read_bytes()[:length])
    return f"cut to {length} bytes"


def delete(file: Path, chance: random.Random) -> str:
    """Removes a file."""
    file.unlink()
    return "deleted"


Damage = Callable[[Path, random.Random], str]
every_damage = pytest.mark.parametrize("damage", [flip_bit, truncate, delete])


def damaged_one_by_one(path: Path, files: list[Path], damage: Damage) -> Iterator[tuple[Path, str]]:
    """Damages one file after the other, and mends each before the next.

    Yields:
        The file's path in the log, and what was done to it.
    """
    chance = random.Random(0)
    for file in files:
        content = file.read_bytes()
        what = damage(file, chance)
        yield file.relative_to(path), what
        file.write_bytes(content)


def array_of(file: Path) -> str:
    """What a problem with this file is to be called."""
    array = file.as_posix().partition("/c/")[0].removeprefix("generation-0/").removesuffix("_scales")
    return "updates" if array.startswith("corrections/") else array


def content_of(path: Path) -> list[Any]:
    """All that a reader of the log gets."""
    log = TrainingLog(path)
    states = [log.checkpoint(step) for step in log.checkpoint_steps]
    steps = range(log.num_steps + 1) if log.has_updates else log.checkpoint_steps
    through = log.reconstruct(0)
    if log.has_updates:
        through.advance_to(log.num_steps)  # over the checkpoints in between, and their corrections
    return [
        log.manifest,
        log.root,
        [log.table(table.name).tobytes() for table in TABLES],
        [log.parameters(step).tobytes() for step in steps],
        through.bits.tobytes(),
        [log.reconstruction(step).tobytes() for step in steps],
        [log.gradient(step).tobytes() for step in range(log.num_steps) if log.manifest.gradients != "none"],
        [(state.step, state.parameters.tobytes(), state.optimizer.dtypes) for state in states],
        [sorted((name, bits.tobytes()) for name, bits in state.optimizer.vectors.items()) for state in states],
        [sorted((name, values.tobytes()) for name, values in state.optimizer.scalars.items()) for state in states],
        [state.optimizer.present.tobytes() for state in states],
    ]


def fingerprints(path: Path) -> dict[str, tuple[str, int]]:
    """Content and time of change of every file."""
    return {
        str(file): (hashlib.sha256(file.read_bytes()).hexdigest(), file.stat().st_mtime_ns) for file in files_of(path)
    }


def test_an_intact_log_has_no_problem(intact: Path) -> None:
    log = TrainingLog(intact)
    found = list(find_problems(log))
    assert found == [None] * num_parts(log)
    assert len(found) == len(TABLES) + 2 + 2 * 5 + NUM_STEPS
    left = usable(log, [])
    assert left == Usable(checkpoints=(0, 3, 5), parameters=((0, 5),), requests=True, windows=((0, 5),))


CODECS: list[tuple[str, str]] = [("lossless", "none"), ("int8", "int4"), ("none", "lossless")]


@every_damage
@pytest.mark.parametrize(("updates", "gradients"), CODECS)
def test_every_damaged_file_is_reported_by_its_name_and_never_read_wrongly(
    make_run: MakeRun, write_run: WriteRun, tmp_path: Path, updates: str, gradients: str, damage: Damage
) -> None:
    log = write_run(tmp_path / "log", make_run(4, updates=updates, gradients=gradients))
    expected = content_of(log)
    for file, what in damaged_one_by_one(log, files_of(log), damage):
        place = f"{file}: {what}"
        if str(file) in {"zarr.json", "commit/zarr.json"}:
            assert is_refused(log), place
            continue
        problems = problems_of(log)
        assert any(problem.kind == "damaged" for problem in problems), place
        assert {array_of(Path(problem.array)) for problem in problems} >= {array_of(file)}, place
        if file.name != "zarr.json":
            with pytest.raises(DamagedError):
                content_of(log)
        else:  # readers of this package don't take anything from it
            assert content_of(log) == expected, place


@pytest.mark.parametrize("name", ["zarr.json", "commit/zarr.json"])
def test_a_log_with_any_flipped_bit_of_its_manifest_or_commit_record_is_refused(log: Path, name: str) -> None:
    for _, what in damaged_one_by_one(log, [log / name] * 100, flip_bit):
        assert is_refused(log), what


def damage_update(log: Path, step: int) -> None:
    """Flips a bit in the chunk of one step; other steps lie in the same file."""
    opened = TrainingLog(log)
    (grid,) = opened.tree.stack("updates")
    chunks = [bytes(next(iter(VectorReader(opened.store, grid).stored(t, [0])))) for t in range(step + 1)]
    file = log / grid.key(step, 0)
    content = bytearray(file.read_bytes())
    content[sum(map(len, chunks[:step])) + len(chunks[step]) // 2] ^= 16
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("step", "unreachable"),
    [(0, [1, 2]), (1, [2]), (2, []), (3, [4]), (NUM_STEPS - 1, [])],  # as far as the next checkpoint
)
def test_a_damaged_update_is_reported_with_its_step_and_what_is_left(
    log: Path, step: int, unreachable: list[int]
) -> None:
    damage_update(log, step)
    problems = problems_of(log)
    assert all(problem.array == "updates" for problem in problems)
    assert [problem.step for problem in problems if problem.kind == "damaged"] == [step]
    assert [problem.step for problem in problems if problem.kind == "unreachable"] == unreachable
    left = usable(TrainingLog(log), problems)
    lost = {t + 1 for t in [step, *unreachable]} - {0, 3, 5}
    readable = {t for first, last in left.parameters for t in range(first, last + 1)}
    assert readable == set(range(NUM_STEPS + 1)) - lost
    assert left.requests


def test_damage_behind_a_damaged_update_is_reported_too(log: Path) -> None:
    damage_update(log, 2)
    damage_update(log, 0)
    kinds = {problem.step: problem.kind for problem in problems_of(log)}
    assert kinds == {0: "damaged", 1: "unreachable", 2: "damaged"}


def test_parameters_behind_a_damaged_update_are_refused(log: Path, make_run: MakeRun) -> None:
    damage_update(log, 1)
    opened = TrainingLog(log)
    with pytest.raises(DamagedError, match=r"updates, step 1: ") as error:
        opened.parameters(2)
    assert error.value.kind == "damaged"
    for step in (0, 1, 3, 4, NUM_STEPS):
        assert opened.parameters(step).tobytes() == make_run(NUM_STEPS).parameters[step].tobytes()


def test_a_damaged_last_update_is_noticed_though_the_last_checkpoint_is_sound(log: Path) -> None:
    last = NUM_STEPS - 1
    damage_update(log, last)
    with pytest.raises(DamagedError, match=f"updates, step {last}: "):
        TrainingLog(log).reconstruct(last).advance_to(last + 1)


def test_without_the_tables_of_the_steps_nothing_can_be_requested(log: Path) -> None:
    (log / "generation-0" / "steps" / "lr" / "c" / "0" / "0").unlink()
    problems = problems_of(log)
    assert usable(TrainingLog(log), problems) == Usable(
        checkpoints=(0, 3, 5), parameters=((0, 0), (3, 3), (5, 5)), requests=False, windows=()
    )


def test_what_a_killed_writer_leaves_is_told_and_is_no_damage(log: Path) -> None:
    (log / "generation-0" / "updates" / "c" / "7").mkdir()
    (log / "generation-0" / "updates" / "c" / "7" / "0").write_bytes(b"half a shard")
    (problem,) = problems_of(log)
    assert (problem.kind, problem.array) == ("leftover", "generation-0/updates/c/7/0")


@every_damage
def test_a_damaged_checkpoint_is_refused_with_its_array(log: Path, damage: Damage) -> None:
    damage(log / "generation-0" / "checkpoints" / "00000003" / "optimizer" / "exp_avg" / "c" / "0", random.Random(0))
    with pytest.raises(DamagedError, match="checkpoints/00000003/optimizer/exp_avg, step 3: "):
        TrainingLog(log).checkpoint(3)
    found = [(problem.array, problem.step) for problem in problems_of(log)]
    assert found == [("checkpoints/00000003/optimizer/exp_avg", 3)]


@every_damage
def test_a_damaged_table_is_refused_with_its_name(log: Path, damage: Damage) -> None:
    damage(log / "generation-0" / "samples" / "tokens" / "c" / "0", random.Random(0))
    opened = TrainingLog(log)
    with pytest.raises(DamagedError, match=r"the log is damaged: .*: samples/tokens: "):
        _ = opened.step(0).samples[0].tokens
    assert opened.parameters(2).any()


def test_updates_of_another_run_are_noticed_though_their_checksums_hold(
    log: Path, make_run: MakeRun, write_run: WriteRun, tmp_path: Path
) -> None:
    other = write_run(tmp_path / "other", make_run(NUM_STEPS, seed=1))
    shutil.copytree(other / "generation-0" / "updates", log / "generation-0" / "updates", dirs_exist_ok=True)
    first = problems_of(log)[0]
    assert (first.kind, first.array, first.step) == ("damaged", "updates", 0)


def test_a_table_of_another_log_is_noticed(log: Path, make_run: MakeRun, write_run: WriteRun, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", make_run(NUM_STEPS, seed=1))
    shutil.copytree(other / "generation-0" / "steps" / "lr", log / "generation-0" / "steps" / "lr", dirs_exist_ok=True)
    assert [problem.array for problem in problems_of(log)] == ["steps/lr"]


def test_a_deleted_chunk_is_reported_even_if_it_held_nothing_but_zeros(
    make_run: MakeRun, write_run: WriteRun, tmp_path: Path
) -> None:
    run = make_run(2)
    still = (run.parameters[0], run.parameters[0], run.parameters[2])  # a warm-up's first step with a rate of zero
    log = write_run(tmp_path / "log", replace(run, parameters=still))
    (log / "generation-0" / "updates" / "c" / "0" / "0").unlink()
    assert ("updates", 0) in [(problem.array, problem.step) for problem in problems_of(log)]


@every_damage
def test_looking_for_problems_changes_no_file(log: Path, damage: Damage) -> None:
    for name in ("updates/c/0/0", "samples/labels/c/0", "checkpoints/00000003/parameters/c/0"):
        damage(log / "generation-0" / name, random.Random(0))
    before = fingerprints(log)
    assert problems_of(log)
    with pytest.raises(DamagedError):
        TrainingLog(log).parameters(2)
    assert fingerprints(log) == before


def test_reading_an_intact_log_changes_no_file(intact: Path) -> None:
    before = fingerprints(intact)
    content_of(intact)
    assert problems_of(intact) == []
    assert fingerprints(intact) == before
