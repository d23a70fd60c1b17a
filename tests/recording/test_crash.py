"""What is left of a recording when the disk fills, the process dies, or somebody else writes or reads the log."""

import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from lmcleaner.formats.errors import DamagedError, ExistsError, NotFoundError, ResourceError
from lmcleaner.formats.layout import METADATA
from lmcleaner.formats.local_files import LocalFiles
from lmcleaner.formats.lock import holder
from lmcleaner.formats.places import check_place
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.store import open_store
from lmcleaner.formats.verify import Problem, find_problems
from lmcleaner.formats.writer import LogWriter
from lmcleaner.progress import Silent
from lmcleaner.recording.options import RecordOptions
from lmcleaner.recording.training import record
from tiny_runs import TinyRun, rows, write_rows

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def damage(log: TrainingLog) -> list[Problem]:
    return [problem for problem in find_problems(log) if problem and problem.kind != "leftover"]


@pytest.fixture
def options(base_model: Path, tmp_path: Path) -> RecordOptions:
    data = write_rows(tmp_path / "train.jsonl", rows(20))
    return RecordOptions(
        model=str(base_model), data=str(data), output=tmp_path / "model", batch_size=2, lr=1e-3, checkpoint_every=10
    )


@contextmanager
def limited_files(size: int) -> Iterator[None]:
    """No file may become larger, as if the disk were full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_stops_the_run_with_a_log_that_can_go_on(options: RecordOptions, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with limited_files(170_000), pytest.raises(ResourceError, match=r"can't write: .*File too large") as caught:
        record(log, options)
    assert caught.value.exit_code == 30
    left = TrainingLog(log)
    assert 0 < left.num_steps < 30
    assert not damage(left)
    assert holder(open_store(log)) is None
    assert not options.output.exists()
    record(log, replace(options, resume=True))
    assert TrainingLog(log).commit.finished
    assert (options.output / "model.safetensors").is_file()


# In a namespace of its own, where it may mount: a disk that is full, one with room again, one that can't be written.
DISKS = """
import subprocess, sys
from pathlib import Path
from crash import SETTINGS, content, train
from lmcleaner.formats.errors import ResourceError
from lmcleaner.formats.reader import TrainingLog

def mount(options):
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)], check=True)

def run(log, resume):
    try:
        train(str(log), SETTINGS[0], resume, str(folder / "taken"))
    except ResourceError as error:
        return error.message

folder = Path(sys.argv[1])
disk = folder / "disk"
disk.mkdir()
mount("size=500k")
problem = run(disk / "log", resume=False)
assert "No space left on device" in problem, problem
left = TrainingLog(disk / "log")
assert 0 < left.num_steps < 90 and not left.commit.finished, left.commit
mount("remount,size=50m")
assert run(disk / "log", resume=True) is None
assert run(folder / "log", resume=False) is None
assert content(TrainingLog(disk / "log")) == content(TrainingLog(folder / "log"))
mount("remount,ro")
problem = run(disk / "another", resume=False)
assert "Read-only file system" in problem, problem
"""


def _can_mount() -> bool:
    unshare = shutil.which("unshare")
    return unshare is not None and subprocess.run([unshare, "-rm", "true"], check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not _can_mount(), reason="this system lets nobody mount a small disk")
def test_a_small_disk_and_one_that_cannot_be_written(tmp_path: Path) -> None:
    command = ["unshare", "-rm", sys.executable, "-c", DISKS, str(tmp_path)]
    subprocess.run(command, check=True, cwd=BENCHMARKS, env={"PYTHONPATH": str(BENCHMARKS), "OMP_NUM_THREADS": "1"})


def test_of_two_writers_the_second_is_refused(options: RecordOptions, tmp_path: Path) -> None:
    class Second(Silent):
        refused = 0

        def advance(self) -> None:
            for choice in (replace(options, overwrite=True), replace(options, resume=True), options):
                with pytest.raises(ExistsError, match=r"being written: .*by process|exists already") as caught:
                    record(tmp_path / "log", choice)
                assert caught.value.exit_code == 11
                self.refused += 1

    options, second = replace(options, max_steps=2), Second()
    record(tmp_path / "log", options, second)
    assert second.refused == 6
    assert TrainingLog(tmp_path / "log").commit.finished


def test_a_reader_beside_the_writer_sees_a_sound_log_at_every_moment(options: RecordOptions, tmp_path: Path) -> None:
    log, seen, found = tmp_path / "log", list[int](), list[Problem]()
    is_over = threading.Event()

    def read() -> None:
        while not is_over.is_set():
            try:
                opened = TrainingLog(log)
            except (NotFoundError, DamagedError):
                assert not seen, "a log that was there is gone"
                continue
            found.extend(damage(opened))
            seen.append(opened.num_steps)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        record(log, replace(options, epochs=10))
    finally:
        is_over.set()
        reader.join()
    assert not found
    assert seen == sorted(seen)
    assert len(set(seen)) > 2


class Watched(LocalFiles):
    """A store that makes sure, after each deletion, that a process killed there leaves what can be overwritten."""

    def delete(self, prefix: str) -> None:
        super().delete(prefix)
        check_place(self, overwrite=True)


def test_a_log_whose_overwriting_was_killed_can_be_overwritten(adamw_run: TinyRun, tmp_path: Path) -> None:
    log = Path(shutil.copytree(adamw_run.log, tmp_path / "log"))
    manifest, start = adamw_run.open().manifest, adamw_run.open().checkpoint(0)
    LogWriter.create(Watched(log, writable=True), manifest, start, overwrite=True).close()
    assert TrainingLog(log).num_steps == 0


def test_a_place_where_a_writer_was_killed_at_once_is_free(adamw_run: TinyRun, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.mkdir()
    (log / f"{METADATA}.0123456789abcdef.tmp").touch()
    LogWriter.create(log, adamw_run.open().manifest, adamw_run.open().checkpoint(0)).close()
    assert TrainingLog(log).num_steps == 0


@pytest.mark.slow
def test_a_run_that_is_killed_at_any_moment_can_go_on() -> None:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "crash.py"), "--runs", "8"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "same content in the end          8" in done.stdout
