"""A log that somebody made to do harm: every digest in it is right, and reading it ends in an error that says so."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from hostile_logs import (
    NUM_STEPS,
    TABLE_NAMES,
    WORST,
    Document,
    attributes,
    forge,
    forge_table,
    shard_of,
)
from lmcleaner.cli.main import app
from lmcleaner.formats.errors import DamagedError, LmcleanerError, NotFoundError, VersionError
from lmcleaner.formats.layout import TABLES
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.verify import find_problems, usable

if TYPE_CHECKING:
    from tests.formats.conftest import Run

MakeRun = Callable[..., "Run"]
WriteRun = Callable[..., Path]
MEMORY_BYTES = 200_000_000

# Reads what the first argument names and prints "ERROR-CLASS SECONDS BYTES", without the time and memory of imports.
READ_ALONE = """
import sys, time
from lmcleaner.formats.errors import LmcleanerError
from lmcleaner.formats.layout import TABLES
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.verify import find_problems, num_parts, usable
import google_crc32c, jsonschema, numcodecs.blosc

def attempts(log):
    yield lambda: usable(log, [problem for problem in find_problems(log) if problem])
    yield lambda: num_parts(log)
    for table in TABLES:
        yield lambda: log.table(table.name)
    yield lambda: log.step(0)
    yield lambda: log.sample(0)
    yield lambda: log.checkpoint(0)
    yield lambda: log.parameters(1)
    yield lambda: log.parameters(log.num_steps)
    yield lambda: log.named_parameters(1, [entry.name for entry in log.manifest.parameters])
    yield lambda: log.gradient(0)
    yield lambda: list(log.window(0, 2, updates=log.has_updates))
    yield lambda: log.bytes_on_disk()

def read():
    log = TrainingLog(sys.argv[1])
    found = {problem.kind for problem in find_problems(log) if problem}
    for attempt in attempts(log):
        try:
            attempt()
        except LmcleanerError as error:
            found.add(type(error).__name__)
    return "DamagedError" if "damaged" in found else ",".join(sorted(found)) or "nothing"

def resident(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

before = resident("VmHWM")
started = time.perf_counter()
try:
    found = read()
except LmcleanerError as error:
    found = type(error).__name__
print(found, time.perf_counter() - started, resident("VmHWM") - before)
"""


@pytest.fixture(scope="module")
def logs(make_run: MakeRun, write_run: WriteRun, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A log of each kind, which no test changes."""
    folder = tmp_path_factory.mktemp("logs")
    kinds = {"lossless": "int8", "int8": "lossless", "none": "none"}
    return {
        updates: write_run(folder / updates, make_run(NUM_STEPS, updates=updates, gradients=gradients))
        for updates, gradients in kinds.items()
    }


@pytest.fixture
def log(logs: dict[str, Path], tmp_path: Path) -> Path:
    """A lossless log to change."""
    return shutil.copytree(logs["lossless"], tmp_path / "log")


def read_everything(path: Path) -> list[LmcleanerError]:
    """Tries whatever a reader can do with a log; its errors, none but our own."""
    try:
        log = TrainingLog(path)
    except LmcleanerError as error:
        return [error]
    errors: list[LmcleanerError] = []
    for attempt in attempts(log):
        try:
            attempt()
        except LmcleanerError as error:
            errors.append(error)
    return errors


def attempts(log: TrainingLog) -> Iterator[Callable[[], object]]:
    """Everything that can be read, one thing after the other.

    Yields:
        A function that reads it.
    """
    yield lambda: usable(log, [problem for problem in find_problems(log) if problem is not None])
    yield from (partial(log.table, table.name) for table in TABLES)
    yield lambda: log.occurrence_steps
    yield lambda: log.sample_rows
    yield lambda: [log.sample(row) for row in range(len(log.table("samples/stop")))]
    for step in (0, 1, NUM_STEPS):
        yield from (partial(read, step) for read in (log.step, log.parameters, log.gradient))
        yield partial(log.named_parameters, step, ["norm"])
    yield from (partial(log.checkpoint, step) for step in log.checkpoint_steps[:8])
    yield lambda: list(log.window(0, 3, updates=True))
    yield lambda: list(log.window(1, 3, gradients=True, names=["head"]))
    yield lambda: log.bytes_on_disk()


def read_alone(path: Path) -> tuple[str, float, int]:
    """What reading everything gave in a process of its own: an error's class, seconds, and bytes of memory."""
    command = [sys.executable, "-c", READ_ALONE, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found, seconds, num_bytes = done.stdout.split()
    return found, float(seconds), int(num_bytes)


def assert_refused(path: Path) -> None:
    """Reading must fail with one of our errors, soon, and without much memory."""
    found, seconds, num_bytes = read_alone(path)
    assert found in {"DamagedError", "VersionError", "NotFoundError"}, found
    assert num_bytes < MEMORY_BYTES, num_bytes
    assert seconds < 5  # one second at rest; the machine may be busy


def places(document: Any, prefix: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON document.

    Yields:
        The keys and indexes that lead there.
    """
    items = document.items() if isinstance(document, dict) else enumerate(document) if type(document) is list else ()
    for key, value in items:
        yield (*prefix, key)
        yield from places(value, (*prefix, key))


HUGE = [2**31, 2**32, 2**40, 2**63, 2**64, 10**12, 10**30]
STRANGE: list[Any] = [None, True, False, 0, -1, 1, 7, *HUGE, 0.5, -0.0, 1e308, "", "x", "x" * 2000, "../../etc/passwd"]
STRANGE += ["/", "a/b", "\0", "ä", [], {}, [[]], [0, 10**12], {"": 0}, {"../x": "00"}, [[0, 10**12]], "ab" * 32]


@st.composite
def changes(draw: st.DrawFn, document: Document) -> Document:
    """A document with one to three places replaced, removed, renamed or doubled."""
    changed = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        *path, last = draw(st.sampled_from(sorted(places(changed), key=repr)))
        parent = changed
        for key in path:
            parent = parent[key]
        how = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
        if how == "replace":
            parent[last] = copy.deepcopy(draw(st.sampled_from(STRANGE)))
        elif how == "remove":
            del parent[last]
        elif isinstance(parent, list):
            parent.append(copy.deepcopy(parent[last]))
        else:
            parent[draw(st.sampled_from(["later", "", "../x", str(last) + "0"]))] = copy.deepcopy(parent[last])
        if not changed:
            break
    return changed


fuzzed = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.mark.parametrize("kind", ["lossless", "int8", "none"])
@pytest.mark.parametrize("group", ["", "commit"])
@fuzzed
@given(data=st.data())
def test_any_change_of_a_record_is_refused_or_harmless(
    logs: dict[str, Path], tmp_path: Path, kind: str, group: str, data: st.DataObject
) -> None:
    shutil.rmtree(tmp_path / "log", ignore_errors=True)
    log = shutil.copytree(logs[kind], tmp_path / "log")
    changed = data.draw(changes(attributes(log, group)))
    forge(log, **{"commit" if group else "manifest": changed})
    assert all(str(error) for error in read_everything(log))


@fuzzed
@given(data=st.data())
def test_any_rows_of_any_table_are_refused_or_harmless(
    logs: dict[str, Path], tmp_path: Path, data: st.DataObject
) -> None:
    shutil.rmtree(tmp_path / "log", ignore_errors=True)
    log = shutil.copytree(logs["lossless"], tmp_path / "log")
    name = data.draw(st.sampled_from(TABLE_NAMES))
    old = TrainingLog(log).table(name)
    raw = data.draw(st.binary(min_size=old.nbytes, max_size=old.nbytes))
    edges = data.draw(st.lists(st.tuples(st.integers(0, max(0, old.size - 1)), st.integers(-3, 40)), max_size=3))
    rows = np.frombuffer(raw, old.dtype).copy() if data.draw(st.booleans()) else old.reshape(-1).copy()
    for place, value in edges:
        if place < rows.size:
            rows[place] = np.array(value).astype(old.dtype)
    forge_table(log, name, rows)
    assert all(str(error) for error in read_everything(log))


RAW: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"\xff\xfe",
    "NaN": b'{"attributes":{"schema":"lmcleaner-log","loss_divisor":NaN}}',
    "infinity": b'{"attributes":{"schema":"lmcleaner-log","loss_divisor":1e999}}',
    "a list": b"[1]",
    "a number": b"7",
    "deep lists": b'{"attributes":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep objects": b'{"attributes":{"schema":"lmcleaner-log","data":' + b'{"a":' * 50_000 + b"1" + b"}" * 50_002,
    "a number of many digits": b'{"attributes":{"schema":"lmcleaner-log","version":' + b"9" * 1_000_000 + b"}}",
    "half a character": b'{"attributes":{"schema":"lmcleaner-log","created":"\\ud800"}}',
    "the same key twice": b'{"attributes":{"schema":"a"},"attributes":{"schema":"lmcleaner-log"}}',
    "five megabytes": b'{"attributes":{"schema":"lmcleaner-log","created":"' + b"x" * 5_000_000 + b'"}}',
}


@pytest.mark.parametrize("name", ["zarr.json", "commit/zarr.json"])
@pytest.mark.parametrize("content", RAW)
def test_a_record_that_is_no_canonical_document_is_refused(log: Path, content: str, name: str) -> None:
    (log / name).write_bytes(RAW[content])
    with pytest.raises((DamagedError, VersionError, NotFoundError)):
        TrainingLog(log)


@pytest.mark.parametrize("attack", WORST)
def test_what_would_exhaust_a_reader_is_refused_soon_and_in_little_memory(
    log: Path, attack: Callable[[Path], None]
) -> None:
    attack(log)
    assert_refused(log)


@pytest.mark.parametrize("command", [("inspect",), ("inspect", "--verify"), ("inspect", "--sizes"), ("prune",)])
@pytest.mark.parametrize("attack", WORST)
def test_commands_end_with_a_report_or_an_error_that_has_its_exit_code(
    log: Path, attack: Callable[[Path], None], command: tuple[str, ...]
) -> None:
    attack(log)
    name, *options = command
    result = CliRunner().invoke(app, [name, str(log), *options, "--json"])
    document = json.loads(result.stdout)
    codes = {cls.kind: cls.exit_code for cls in LmcleanerError.__subclasses__()}
    expected = {codes[document["error"]["kind"]]} if "error" in document else {0, 1}
    assert result.exit_code in expected, result.output
    assert command != ("inspect", "--verify") or result.exit_code, "nothing found"


NOWHERE = 2**64 - 1
INDEXES: dict[str, Callable[[list[tuple[int, int]]], list[tuple[int, int]]]] = {
    "far outside": lambda index: [(2**62, 100), *index[1:]],
    "beyond what can be counted": lambda index: [(0, 2**63), *index[1:]],
    "sizes whose sum comes round": lambda index: [(0, 2**63), (2**63, 2**63), *index[2:]],
    "a negative offset": lambda index: [index[0], (NOWHERE - 1, 10), *index[2:]],
    "the index itself": lambda index: [(index[0][0], index[0][1] + 40), *index[1:]],
    "the same chunk again": lambda index: [index[0], index[0], *index[2:]],
    "chunks in another order": lambda index: [index[1], index[0], *index[2:]],
    "an empty chunk": lambda index: [(0, 0), (0, index[0][1] + index[1][1]), *index[2:]],
    "no chunk": lambda index: [(NOWHERE, NOWHERE)] * len(index),
    "a hole": lambda index: [(NOWHERE, NOWHERE), *index[1:]],
    "half a chunk": lambda index: [(0, NOWHERE), *index[1:]],
}


@pytest.mark.parametrize("lie", INDEXES)
def test_a_shard_whose_index_lies_is_refused(log: Path, lie: str) -> None:
    file = log / "generation-0" / "updates" / "c" / "0" / "0"
    content = file.read_bytes()
    body, index = content[: -(16 * 16 + 4)], np.frombuffer(content[-(16 * 16 + 4) : -4], "<u8").reshape(-1, 2)
    shard_of(file, [body], INDEXES[lie]([(int(offset), int(size)) for offset, size in index]))
    with pytest.raises(DamagedError, match="updates, step 0: "):
        TrainingLog(log).parameters(1)
    assert any(isinstance(error, DamagedError) for error in read_everything(log))


def test_names_that_leave_the_log_are_refused(log: Path) -> None:
    for name in ("../../secret", "optimizer/../../x", "/etc/passwd", "optimizer/", "parameters\n"):
        commit = attributes(log, "commit")
        commit["checkpoints"]["0"]["blake3"][name] = "ab" * 32
        forge(log, commit=commit)
        with pytest.raises(DamagedError, match="commit"):
            TrainingLog(log)
        del commit["checkpoints"]["0"]["blake3"][name]
        commit["checkpoints"]["0"]["dtypes"][name.removeprefix("optimizer/")] = "float32"
        forge(log, commit=commit)
        with pytest.raises(DamagedError, match="commit"):
            TrainingLog(log)
        forge(log, commit=commit | {"checkpoints": {"0": commit["checkpoints"]["0"] | {"dtypes": {}}}})


def link_outside(place: Path) -> None:
    """A link to the same content somewhere else."""
    place.symlink_to(shutil.move(place, f"{place}.elsewhere"))


def link_cycle(place: Path) -> None:
    """Two links that lead to each other."""
    remove(place)
    place.symlink_to(place.with_name("other"))
    place.with_name("other").symlink_to(place)


def link_upwards(place: Path) -> None:
    """A link to a folder further up: a walk would never end."""
    remove(place)
    place.symlink_to("..")


def pipe(place: Path) -> None:
    """A pipe that nobody writes to."""
    remove(place)
    os.mkfifo(place)


def remove(place: Path) -> None:
    shutil.rmtree(place) if place.is_dir() else place.unlink()


@pytest.mark.parametrize("trick", [link_outside, link_cycle, link_upwards, pipe])
@pytest.mark.parametrize(
    "name",
    [
        "zarr.json",
        "commit",
        "commit/zarr.json",
        "generation-0",
        "generation-0/updates",
        "generation-0/updates/c/0/0",
        "generation-0/samples/tokens/c/0",
        "generation-0/checkpoints/00000000/parameters/c/0",
    ],
)
def test_links_and_pipes_are_refused_at_once(log: Path, name: str, trick: Callable[[Path], None]) -> None:
    trick(log / name)
    errors = read_everything(log)
    assert any(isinstance(error, DamagedError | NotFoundError) for error in errors)
