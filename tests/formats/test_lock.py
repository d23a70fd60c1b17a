"""One writer a log, whatever happened to the one before."""

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcleaner.formats.errors import ExistsError, LmcleanerError
from lmcleaner.formats.holder import Holder
from lmcleaner.formats.lock import LOCK, WriterLock, holder
from lmcleaner.formats.store import Store, open_store

HOLD = """
import sys
from lmcleaner.formats.lock import WriterLock
from lmcleaner.formats.store import open_store
lock = WriterLock.acquire(open_store(sys.argv[1], writable=True))
print("taken", flush=True)
sys.stdin.read()
"""

# Starts when its input ends, so that all takers start at once; keeps what it took.
TAKE = """
import sys
from lmcleaner.formats.errors import ExistsError
from lmcleaner.formats.lock import WriterLock
from lmcleaner.formats.store import open_store
store = open_store(sys.argv[1], writable=True)
print("ready", flush=True)
sys.stdin.readline()
try:
    WriterLock.acquire(store)
    print("taken", flush=True)
except ExistsError:
    print("refused", flush=True)
sys.stdin.read()
"""


def start(script: str, log: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, str(log)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def answer(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "log", writable=True)


def leave(store: Store, **changes: Any) -> None:
    """Leaves the lock of a process that has ended, or of another one."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    entry = json.loads(Holder.this_process().encode()) | {"pid": process.pid} | changes
    store.write(LOCK, [json.dumps(entry).encode()])


@pytest.mark.parametrize("place", ["folder", "memory"])
def test_a_lock_is_held_by_one_and_released(tmp_path: Path, place: str) -> None:
    store = open_store(tmp_path if place == "folder" else f"memory://{uuid.uuid4().hex}", writable=True)
    assert holder(store) is None
    with WriterLock.acquire(store):
        found = holder(store)
        assert found is not None
        assert found.pid == os.getpid()
        assert found.is_alive() is True
        with pytest.raises(ExistsError, match=rf"by process {os.getpid()} on host .* since \d") as caught:
            WriterLock.acquire(store)
        assert caught.value.hint
        assert "wait" in caught.value.hint
    assert not list(store.list())
    WriterLock.acquire(store).release()


def test_a_living_process_keeps_its_lock_and_a_killed_one_loses_it(tmp_path: Path, store: Store) -> None:
    process = start(HOLD, tmp_path / "log")
    try:
        assert answer(process) == "taken"
        with pytest.raises(ExistsError, match=f"process {process.pid} "):
            WriterLock.acquire(store)
        process.kill()
        while _state(process.pid) != "Z":
            pass
        found = holder(store)
        assert found is not None
        assert found.is_alive() is False, "a process that nobody has waited for yet writes nothing more"
    finally:
        end(process)
    with WriterLock.acquire(store):
        assert dict(store.list()).keys() == {LOCK}


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.parametrize("changes", [{}, {"pid": os.getpid(), "started": 1}, {"pid": os.getpid(), "boot": "another"}])
def test_a_stale_lock_is_taken_over(store: Store, changes: dict[str, Any]) -> None:
    leave(store, **changes)
    with WriterLock.acquire(store):
        found = holder(store)
        assert found is not None
        assert found.is_alive() is True
    assert not list(store.list())


@pytest.mark.parametrize("changes", [{"host": "elsewhere"}, {"namespace": "pid:[1]"}, {"boot": None}])
def test_a_holder_out_of_sight_keeps_its_lock(store: Store, changes: dict[str, Any]) -> None:
    leave(store, **changes)
    found = holder(store)
    assert found is not None
    assert found.is_alive() is None
    with pytest.raises(ExistsError) as caught:
        WriterLock.acquire(store)
    assert caught.value.hint
    assert f"remove {store.location}/lock.json" in caught.value.hint
    store.delete(LOCK)
    WriterLock.acquire(store).release()


@pytest.mark.parametrize(
    "changes",
    [
        {"pid": 0},
        {"pid": -1},
        {"pid": True},
        {"pid": 2**40},
        {"pid": "1"},
        {"started": 1.5},
        {"host": ["a"]},
        {"host": "\x1b[2J"},
        {"boot": 1},
        {"token": "../../x"},
        {"token": "AB" * 16},
        {"more": 1},
        {"since": "x" * 5000},
    ],
)
def test_a_lock_that_makes_no_sense_is_somebody_unknown(store: Store, changes: dict[str, Any]) -> None:
    leave(store, **changes)
    assert holder(store) is None
    with pytest.raises(ExistsError, match="unknown") as caught:
        WriterLock.acquire(store)
    assert caught.value.hint
    assert "lock.json" in caught.value.hint


@given(st.binary(max_size=200) | st.just(b"[" * 4000))
def test_any_bytes_are_parsed_or_refused(data: bytes) -> None:
    assert Holder.parse(data) is None


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_lock_that_is_no_file_is_never_taken(tmp_path: Path, kind: str) -> None:
    if kind == "link":
        (tmp_path / LOCK).symlink_to("nowhere")
    elif kind == "pipe":
        os.mkfifo(tmp_path / LOCK)
    else:
        (tmp_path / LOCK).mkdir()
    store = open_store(tmp_path, writable=True)
    with pytest.raises(LmcleanerError):
        WriterLock.acquire(store)
    assert (tmp_path / LOCK).lstat()


def test_only_the_own_lock_is_released(store: Store) -> None:
    lock = WriterLock.acquire(store)
    leave(store, host="elsewhere")
    lock.release()
    found = holder(store)
    assert found is not None
    assert found.host == "elsewhere"


def test_of_those_who_take_a_stale_lock_at_once_one_wins(tmp_path: Path, store: Store) -> None:
    processes = [start(TAKE, tmp_path / "log") for _ in range(3)]
    try:
        assert [answer(process) for process in processes] == ["ready"] * 3
        leave(store)
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        answers = [answer(process) for process in processes]
        assert sorted(answers) == ["refused", "refused", "taken"]
        found = holder(store)
        assert found is not None
        assert found.pid == processes[answers.index("taken")].pid
    finally:
        for process in processes:
            end(process)


def test_a_taker_that_died_halfway_is_taken_over_as_well(store: Store) -> None:
    leave(store)
    stale = holder(store)
    assert stale is not None
    leave(store)
    guard = store.read(LOCK)
    store.write(LOCK, [stale.encode()])
    store.create(f"{LOCK}.{stale.token}", [guard])
    with WriterLock.acquire(store):
        assert dict(store.list()).keys() == {LOCK}


def test_a_taker_that_comes_late_leaves_the_new_lock_alone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    leave(store)
    create = store.create
    rivals: list[WriterLock] = []

    def come_late(key: str, parts: Any) -> None:
        if key != LOCK and not rivals:
            rivals.append(WriterLock.acquire(open_store(store.location, writable=True)))
        create(key, parts)

    monkeypatch.setattr(store, "create", come_late)
    with pytest.raises(ExistsError, match=f"process {os.getpid()} "):
        WriterLock.acquire(store)
    assert dict(store.list()).keys() == {LOCK}
    rivals[0].release()
    assert not list(store.list())
