"""The request ledger: a chain that tells what is missing, changed or out of place, and that a kill can't shorten."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import zarr

from hostile_logs import attributes, forge
from lmcleaner.formats.arrays import group_metadata
from lmcleaner.formats.canonical import json_digest
from lmcleaner.formats.commit import Change
from lmcleaner.formats.errors import DamagedError, ExistsError, UsageError
from lmcleaner.formats.generations import clean, next_generation, open_to_rewrite
from lmcleaner.formats.layout import PREPARED, entry_name
from lmcleaner.formats.ledger import ENTRY_BYTES, LEDGER_BYTES, LedgerEntry, ServedRequest, read_ledger
from lmcleaner.formats.ledger_writer import LedgerWriter, check_room, writing_ledger
from lmcleaner.formats.local_files import LocalFiles
from lmcleaner.formats.lock import WriterLock
from lmcleaner.formats.pruning import Pruning, prune
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.store import open_store
from lmcleaner.formats.verify import Problem, find_problems
from lmcleaner.formats.writer import LogWriter

if TYPE_CHECKING:
    from tests.formats.conftest import Run

MakeRun = Callable[..., "Run"]
WriteRun = Callable[..., Path]
NUM_ENTRIES = 4


def request(number: int) -> ServedRequest:
    return ServedRequest(level="sample", named="samples", samples=(f"{number:064x}",), steps=(number, number + 1))


def prepare(writer: LedgerWriter, number: int) -> None:
    digests = dict.fromkeys(("forget_set", "audit_sha256", "model_after"), f"{number:064x}")
    writer.prepare(requests=[request(number)], **digests)


def enter(log: Path, number: int) -> None:
    with writing_ledger(log) as writer:
        prepare(writer, number)


def entries_of(log: Path) -> tuple[LedgerEntry, ...]:
    return read_ledger(TrainingLog(log)).entries


def problems_of(log: Path) -> list[Problem]:
    return [problem for problem in find_problems(TrainingLog(log)) if problem is not None]


@pytest.fixture(scope="module")
def intact(make_run: MakeRun, write_run: WriteRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log with a ledger, which no test changes."""
    log = write_run(tmp_path_factory.mktemp("logs") / "log", make_run(3))
    for number in range(NUM_ENTRIES):
        enter(log, number)
    return log


@pytest.fixture
def log(intact: Path, tmp_path: Path) -> Path:
    return shutil.copytree(intact, tmp_path / "log")


def file_of(log: Path, number: int) -> Path:
    return log / entry_name(number) / "zarr.json"


def test_the_entries_are_a_chain_beside_what_the_root_covers(
    log: Path, make_run: MakeRun, write_run: WriteRun, tmp_path: Path
) -> None:
    opened, found = TrainingLog(log), entries_of(log)
    assert opened.root == TrainingLog(write_run(tmp_path / "other", make_run(3))).root
    assert [entry.number for entry in found] == list(range(NUM_ENTRIES))
    assert [entry.previous for entry in found] == [opened.manifest_digest, *(entry.sha256 for entry in found[:-1])]
    assert [entry.requests for entry in found] == [(request(number),) for number in range(NUM_ENTRIES)]
    assert problems_of(log) == []
    assert not (log / "lock.json").exists()


def test_other_readers_of_zarr_find_the_entries(log: Path) -> None:
    group = zarr.open_group(log, mode="r")
    assert dict(group["ledger/00000001"].attrs) == entries_of(log)[1].to_json() | {"requests": [
        {"level": "sample", "named": "samples", "samples": [f"{1:064x}"], "steps": [1, 2]}
    ]}  # fmt: skip


def test_a_log_without_a_ledger_has_an_empty_one(make_run: MakeRun, write_run: WriteRun, tmp_path: Path) -> None:
    log = write_run(tmp_path / "log", make_run(3))
    assert read_ledger(TrainingLog(log)).entries == ()
    assert not (log / "ledger").exists()


# --- Damage.


def test_every_flipped_byte_is_found(log: Path) -> None:
    for number in (1, NUM_ENTRIES - 1):
        content = file_of(log, number).read_bytes()
        for position in range(len(content)):
            flipped = bytearray(content)
            flipped[position] ^= 1
            file_of(log, number).write_bytes(flipped)
            with pytest.raises(DamagedError, match=entry_name(number)):
                entries_of(log)
        file_of(log, number).write_bytes(content)
    assert len(entries_of(log)) == NUM_ENTRIES


def _cut(log: Path) -> None:
    file_of(log, 2).write_bytes(file_of(log, 2).read_bytes()[:100])


def _delete(log: Path) -> None:
    shutil.rmtree(log / entry_name(2))


def _delete_two(log: Path) -> None:
    shutil.rmtree(log / entry_name(1))
    shutil.rmtree(log / entry_name(2))


def _swap(log: Path) -> None:
    first, second = file_of(log, 1), file_of(log, 2)
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


def _replace(log: Path) -> None:
    """An entry that is sound in itself."""
    document = attributes(log, entry_name(1)) | {"time": "2001-01-01T00:00:00+00:00"}
    document["sha256"] = json_digest({name: value for name, value in document.items() if name != "sha256"})
    file_of(log, 1).write_bytes(group_metadata(document))


def _foreign(log: Path) -> None:
    """The log has another manifest."""
    forge(log, manifest=attributes(log) | {"created": "2001-01-01T00:00:00+00:00"})


def _link(log: Path) -> None:
    target = file_of(log, 2).rename(log.parent / "elsewhere.json")
    file_of(log, 2).symlink_to(target)


def _claim(log: Path) -> None:
    """The log's own history counts an entry more than there are."""
    change = Change(kind="redaction", time="", root_before="ab" * 32, details={"ledger_entries": NUM_ENTRIES + 1})
    plain = {"kind": change.kind, "time": change.time, "root_before": change.root_before, "details": change.details}
    forge(log, commit=attributes(log, "commit") | {"history": [plain]})


DAMAGE: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "cut": (_cut, [entry_name(2)]),
    "deleted in the middle": (_delete, [entry_name(2)]),
    "two deleted": (_delete_two, [entry_name(1)]),
    "two swapped": (_swap, [entry_name(1), entry_name(2)]),
    "another entry in its place": (_replace, [entry_name(2)]),
    "the ledger of another log": (_foreign, [entry_name(0)]),
    "a link": (_link, [entry_name(2)]),
    "the last ones missing that the history counts": (_claim, [entry_name(NUM_ENTRIES)]),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_named_and_refused(case: str, log: Path) -> None:
    damage, places = DAMAGE[case]
    damage(log)
    assert [(problem.kind, problem.array) for problem in problems_of(log)] == [("damaged", place) for place in places]
    with pytest.raises(DamagedError, match=places[0]):
        entries_of(log)
    with pytest.raises(DamagedError, match=places[0]):
        enter(log, 9)


@pytest.mark.parametrize("count", [-1, 1.5, "2", None, True])
def test_a_history_that_counts_nonsense_is_damaged(count: Any, log: Path) -> None:
    plain = {"kind": "redaction", "time": "", "root_before": "ab" * 32, "details": {"ledger_entries": count}}
    forge(log, commit=attributes(log, "commit") | {"history": [plain]})
    assert [problem.array for problem in problems_of(log)] == ["ledger"]
    with pytest.raises(DamagedError, match="expected a number of entries"):
        entries_of(log)


STRANGE: list[Any] = [None, [], "x", 0, {}, {"number": 1}]


@pytest.mark.parametrize("document", STRANGE, ids=repr)
def test_an_entry_that_is_none_is_damaged(document: Any, log: Path) -> None:
    file_of(log, 1).write_text(json.dumps({"attributes": document, "node_type": "group", "zarr_format": 3}))
    with pytest.raises(DamagedError, match=entry_name(1)):
        entries_of(log)


@pytest.mark.parametrize("name", ["number", "requests", "samples", "steps", "level", "time", "later"])
def test_an_entry_that_breaks_its_schema_is_damaged(name: str, log: Path) -> None:
    document = attributes(log, entry_name(1))
    holder = document["requests"][0] if name in {"samples", "steps", "level"} else document
    holder[name] = {"number": 2**70, "requests": [], "samples": ["x"], "steps": [-1]}.get(name, ["ä"])
    document["sha256"] = json_digest({key: value for key, value in document.items() if key != "sha256"})
    file_of(log, 1).write_bytes(group_metadata(document))
    with pytest.raises(DamagedError, match="the entry can't be read"):
        entries_of(log)


def test_sizes_are_limited(log: Path) -> None:
    with file_of(log, 1).open("r+b") as file:
        file.truncate(ENTRY_BYTES + 1)
    with pytest.raises(DamagedError, match=f"expected at most {ENTRY_BYTES} bytes"):
        entries_of(log)
    with file_of(log, 1).open("r+b") as file:
        file.truncate(LEDGER_BYTES)
    with pytest.raises(DamagedError, match=f"expected at most {LEDGER_BYTES} bytes"):
        entries_of(log)


def test_a_number_far_away_is_one_gap(log: Path) -> None:
    shutil.copytree(log / entry_name(0), log / entry_name(99_999_999))
    assert [problem.array for problem in problems_of(log)] == [entry_name(NUM_ENTRIES), entry_name(99_999_999)]


def test_a_request_that_could_not_be_read_back_is_refused_before(log: Path) -> None:
    large = ServedRequest(level="sample", named="samples", samples=("ab" * 32,) * (ENTRY_BYTES // 66), steps=(1,))
    with pytest.raises(UsageError, match="too large for the ledger"):
        check_room(TrainingLog(log), read_ledger(TrainingLog(log)), [large])
    check_room(TrainingLog(log), read_ledger(TrainingLog(log)), [request(7)])


# --- What keeps it.


def test_an_interrupted_run_goes_on_with_its_ledger(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(3)
    with LogWriter.create(tmp_path / "log", run.manifest, run.checkpoints[0]) as writer:
        writer.append(run.steps[0], run.parameters[1])
        writer.commit()
    enter(tmp_path / "log", 0)
    with LogWriter.resume(tmp_path / "log") as writer:
        writer.append(run.steps[1], run.parameters[2])
        writer.commit()
    assert len(entries_of(tmp_path / "log")) == 1


def test_pruning_and_rewriting_keep_it_and_count_it_as_no_leftover(log: Path) -> None:
    before = {file: file.read_bytes() for file in (log / "ledger").rglob("*.json")}
    (log / entry_name(1) / "zarr.json.0123456789abcdef.tmp").write_bytes(b"{")
    (log / "ledger" / "note.txt").write_bytes(b"x")
    assert {(p.kind, p.array.split("/")[0]) for p in problems_of(log)} == {("leftover", "ledger")}
    assert prune(log, Pruning(drop_updates=((0, 3),))).freed_bytes["leftovers"] == 2
    with open_to_rewrite(log) as opened:
        clean(opened)
        with next_generation(opened):
            pass
    assert {file: file.read_bytes() for file in (log / "ledger").rglob("*") if file.is_file()} == before
    assert problems_of(log) == []


def test_overwriting_the_log_removes_it(log: Path, make_run: MakeRun, write_run: WriteRun) -> None:
    write_run(log, make_run(3), overwrite=True)
    assert entries_of(log) == ()


def test_it_goes_into_a_zip_file(log: Path, tmp_path: Path) -> None:
    archive = shutil.make_archive(str(tmp_path / "log"), "zip", log)
    assert entries_of(Path(archive)) == entries_of(log)
    with pytest.raises(UsageError, match="zip"):
        enter(Path(archive), 9)


# --- Kills and failures.


class Stopped(BaseException):
    """Stands for a kill: nothing is cleaned up after it."""


class Mortal(LocalFiles):
    """Writes until it comes to a key."""

    last_words = "nothing"

    def write(self, key: str, parts: Any) -> None:
        if key.startswith(self.last_words):
            raise Stopped
        super().write(key, parts)

    def delete(self, prefix: str) -> None:
        if prefix == self.last_words:
            raise Stopped
        super().delete(prefix)


def _stopped(store: Mortal, moment: str) -> None:
    with writing_ledger(store) as writer:
        prepare(writer, NUM_ENTRIES)
        store.last_words = moment


def _failed(log: Path, error: BaseException) -> None:
    with writing_ledger(log) as writer:
        prepare(writer, NUM_ENTRIES)
        raise error


@pytest.mark.parametrize("moment", [entry_name(NUM_ENTRIES), PREPARED])
def test_an_entry_that_was_prepared_counts_and_is_entered_by_the_next_writer(moment: str, log: Path) -> None:
    with pytest.raises(Stopped):
        _stopped(Mortal(log, writable=True), moment)
    ledger = read_ledger(TrainingLog(log))
    assert [entry.number for entry in ledger.entries] == list(range(NUM_ENTRIES + 1))
    assert ledger.has_prepared == (moment != PREPARED)
    assert problems_of(log) == []
    assert (log / PREPARED / "zarr.json").exists()
    enter(log, NUM_ENTRIES + 1)
    assert entries_of(log)[:-1] == ledger.entries
    assert not (log / PREPARED).joinpath("zarr.json").exists()
    assert problems_of(log) == []


def test_what_was_interrupted_stays_prepared_and_what_failed_is_withdrawn(log: Path) -> None:
    with pytest.raises(ExistsError, match="the output exists"):
        _failed(log, ExistsError("the output exists"))
    assert len(entries_of(log)) == NUM_ENTRIES
    with pytest.raises(KeyboardInterrupt):
        _failed(log, KeyboardInterrupt())
    assert read_ledger(TrainingLog(log)).has_prepared


def test_a_prepared_entry_out_of_its_place_is_damaged(log: Path) -> None:
    shutil.copytree(log / entry_name(1), log / PREPARED)
    assert [problem.array for problem in problems_of(log)] == [PREPARED]
    with pytest.raises(DamagedError, match="expected entry 4, found entry 1"):
        entries_of(log)


def test_only_one_writes_at_a_time(log: Path) -> None:
    with WriterLock.acquire(open_store(log, writable=True)), pytest.raises(ExistsError, match=str(os.getpid())):
        enter(log, 9)
    assert len(entries_of(log)) == NUM_ENTRIES
