"""Whatever happens to a file of a log, reading says so, names the place, and changes nothing."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lmcleaner.formats.errors import DamagedError, LmcleanerError, VersionError
from lmcleaner.formats.layout import TABLES
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.verify import Problem, find_problems, num_parts

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


def is_reported(path: Path) -> bool:
    """Whether the log can't be opened, or has a problem; anything but an error of ours goes through."""
    try:
        return any(find_problems(TrainingLog(path)))
    except LmcleanerError:
        return True


def is_refused_as_damaged(path: Path) -> bool:
    """Whether the log can't be opened; a flipped version number looks like a later release's log."""
    try:
        TrainingLog(path)
    except (DamagedError, VersionError):
        return True
    return False


def files_of(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file())


def data_files(path: Path) -> list[Path]:
    """Chunks, whose every byte lies under a checksum."""
    return [file for file in files_of(path) if file.name != "zarr.json"]


def metadata_files(path: Path) -> list[Path]:
    return [file for file in files_of(path) if file.name == "zarr.json"]


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
    """What a problem with this chunk is to be called: its table, its checkpoint, or the updates."""
    array = file.as_posix().partition("/c/")[0]
    return "/".join(array.split("/")[:2]) if array.startswith("checkpoints/") else array


def content_of(path: Path) -> list[Any]:
    """All that a reader of the log gets."""
    log = TrainingLog(path)
    states = [log.checkpoint(step) for step in log.checkpoint_steps]
    return [
        log.manifest,
        log.root,
        [log.table(table.name).tobytes() for table in TABLES],
        [log.parameters(step).tobytes() for step in range(log.num_steps + 1)],
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
    assert len(found) == len(TABLES) + 3 + NUM_STEPS


@every_damage
def test_every_damaged_data_file_is_reported_by_its_name(small: Path, damage: Damage) -> None:
    files = data_files(small)
    assert len(files) == len(TABLES) + 3 + 2 + 5  # tables, updates, the checkpoints before steps 0 and 3
    for file, what in damaged_one_by_one(small, files, damage):
        names = (problem.array for problem in find_problems(TrainingLog(small)) if problem is not None)
        assert array_of(file) in names, f"{file}: {what}"


@every_damage
def test_damaged_metadata_is_reported_or_changes_nothing_that_a_reader_gets(small: Path, damage: Damage) -> None:
    # Not every byte of zarr.json counts: blanks, what an array means, a compressor's level, a fill value, or that a
    # folder of tables is a group at all. But what goes unreported must leave everything that is read as it was.
    expected = content_of(small)
    for file, what in damaged_one_by_one(small, metadata_files(small), damage):
        assert is_reported(small) or content_of(small) == expected, f"{file}: {what}"


@pytest.mark.parametrize("name", ["zarr.json", "commit/zarr.json"])
def test_a_log_whose_manifest_or_commit_is_damaged_opens_equal_or_not_at_all(log: Path, name: str) -> None:
    expected = TrainingLog(log).root
    for _, what in damaged_one_by_one(log, [log / name] * 60, flip_bit):
        assert is_refused_as_damaged(log) or TrainingLog(log).root == expected, what


def edit_attributes(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads(file.read_text())
    change(document["attributes"])
    file.write_text(json.dumps(document))


CHECKPOINT_CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "a part's dtype changed": lambda attributes: attributes["dtypes"].update(exp_avg="bfloat16"),
    "a part's name changed": lambda attributes: attributes["dtypes"].update(
        exp_bvg=attributes["dtypes"].pop("exp_avg")
    ),
    "a count taken for a vector": lambda attributes: attributes.update(scalars=[]),
    "no dtypes": lambda attributes: attributes.pop("dtypes"),
    "no scalars": lambda attributes: attributes.pop("scalars"),
}


@pytest.mark.parametrize("change", CHECKPOINT_CHANGES)
def test_a_checkpoint_that_describes_its_state_wrongly_is_reported(log: Path, change: str) -> None:
    edit_attributes(log / "checkpoints" / "00000003" / "zarr.json", CHECKPOINT_CHANGES[change])
    assert [(problem.array, problem.step) for problem in problems_of(log)] == [("checkpoints/00000003", 3)]


@pytest.mark.parametrize("damage", [flip_bit, truncate])
def test_a_checkpoint_whose_group_is_damaged_is_reported_or_read_as_it_was(small: Path, damage: Damage) -> None:
    expected = content_of(small)
    group = small / "checkpoints" / "00000003" / "zarr.json"
    for _, what in damaged_one_by_one(small, [group] * 8, damage):
        assert is_reported(small) or content_of(small) == expected, what


@every_damage
@pytest.mark.parametrize(
    ("step", "unreachable"),
    [(0, [1, 2]), (1, [2]), (2, []), (3, [4]), (NUM_STEPS - 1, [])],  # as far as the next checkpoint
)
def test_a_damaged_update_is_reported_with_its_step(
    log: Path, damage: Damage, step: int, unreachable: list[int]
) -> None:
    damage(log / "updates" / "c" / str(step) / "0", random.Random(0))
    problems = problems_of(log)
    assert [(problem.array, problem.step) for problem in problems] == [("updates", t) for t in [step, *unreachable]]
    assert f"updates, step {step}" in problems[0].message
    assert all("can't be reached" in problem.message for problem in problems[1:])


@every_damage
def test_parameters_behind_a_damaged_update_are_refused(log: Path, make_run: MakeRun, damage: Damage) -> None:
    damage(log / "updates" / "c" / "1" / "0", random.Random(0))
    opened = TrainingLog(log)
    with pytest.raises(DamagedError, match=r"updates, step 1: ") as error:
        opened.parameters(2)
    assert error.value.kind == "damaged"
    for step in (0, 1, 3, 4, NUM_STEPS):
        assert opened.parameters(step).tobytes() == make_run(NUM_STEPS).parameters[step].tobytes()


@every_damage
def test_a_damaged_last_update_is_noticed_though_the_last_checkpoint_is_sound(log: Path, damage: Damage) -> None:
    last = NUM_STEPS - 1
    damage(log / "updates" / "c" / str(last) / "0", random.Random(0))
    opened = TrainingLog(log)
    with pytest.raises(DamagedError, match=f"updates, step {last}: "):
        opened.advance([opened.parameters(last)], last)


@every_damage
def test_a_damaged_checkpoint_is_refused_with_its_array(log: Path, damage: Damage) -> None:
    damage(log / "checkpoints" / "00000003" / "optimizer" / "exp_avg" / "c" / "0", random.Random(0))
    with pytest.raises(DamagedError, match="checkpoints/00000003/optimizer/exp_avg, step 3: "):
        TrainingLog(log).checkpoint(3)
    assert [(problem.array, problem.step) for problem in problems_of(log)] == [("checkpoints/00000003", 3)]


@every_damage
def test_a_damaged_table_is_refused_with_its_name(log: Path, damage: Damage) -> None:
    damage(log / "samples" / "tokens" / "c" / "0", random.Random(0))
    opened = TrainingLog(log)
    with pytest.raises(DamagedError, match=r"the log is damaged: .*: samples/tokens: "):
        opened.step(0)
    assert opened.parameters(2).any()


def test_two_swapped_updates_are_noticed_though_their_checksums_hold(log: Path) -> None:
    first, second = (log / "updates" / "c" / step / "0" for step in ("0", "1"))
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    first_problem = problems_of(log)[0]
    assert (first_problem.array, first_problem.step) == ("updates", 0)


def test_a_table_of_another_log_is_noticed(log: Path, make_run: MakeRun, write_run: WriteRun, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", make_run(NUM_STEPS, seed=1))
    shutil.copytree(other / "steps" / "lr", log / "steps" / "lr", dirs_exist_ok=True)
    assert [problem.array for problem in problems_of(log)] == ["steps/lr"]


def test_a_deleted_chunk_is_reported_even_if_it_held_nothing_but_zeros(
    make_run: MakeRun, write_run: WriteRun, tmp_path: Path
) -> None:
    run = make_run(2)
    still = (run.parameters[0], run.parameters[0], run.parameters[2])  # a warm-up's first step with a rate of zero
    log = write_run(tmp_path / "log", replace(run, parameters=still))
    (log / "updates" / "c" / "0" / "0").unlink()
    assert ("updates", 0) in [(problem.array, problem.step) for problem in problems_of(log)]


@every_damage
def test_looking_for_problems_changes_no_file(log: Path, damage: Damage) -> None:
    for name in ("updates/c/1/0", "samples/labels/c/0", "checkpoints/00000003/parameters/c/0"):
        damage(log / name, random.Random(0))
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


@pytest.mark.parametrize("name", ["steps/lr", "updates", "checkpoints/00000003/parameters"])
def test_an_array_that_became_a_group_is_reported(log: Path, name: str) -> None:
    shutil.copy(log / "checkpoints" / "zarr.json", log / name / "zarr.json")
    assert array_of(Path(name)) in {problem.array for problem in problems_of(log)}


@pytest.mark.parametrize("name", ["", "commit"])
def test_a_group_that_became_an_array_is_refused(log: Path, name: str) -> None:
    shutil.copy(log / "steps" / "lr" / "zarr.json", log / name / "zarr.json")
    with pytest.raises(DamagedError, match=r"damaged: |not a training log: "):
        TrainingLog(log)
