"""The writer's thread: bounded, joined, its errors raised where the training is, its lock given back."""

import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lmcleaner.formats.errors import ResourceError
from lmcleaner.formats.generation import FLUSH_STEPS
from lmcleaner.formats.local_files import LocalFiles
from lmcleaner.formats.lock import holder
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.samples import Sample
from lmcleaner.formats.steps import MicrobatchRecord, StepRecord
from lmcleaner.formats.writer import LogWriter
from lmcleaner.recording.background import QUEUE_JOBS, BackgroundWriter
from lmcleaner.recording.describe import RunDescription, describe_run, take_checkpoint
from lmcleaner.training.vectors import bits_of


class Gate(LocalFiles):
    """A store that writes only while it is open, and fails where it is told to."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, writable=True)
        self.is_open = threading.Event()
        self.is_open.set()
        self.is_full = False

    def write(self, key: str, parts: Iterable[bytes]) -> None:
        assert self.is_open.wait(60)
        if self.is_full:
            raise ResourceError("no room left in the store")
        super().write(key, parts)


class Fixture:
    """A background writer of a log with a model of a few numbers."""

    def __init__(self, folder: Path) -> None:
        model = nn.Linear(3, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        manifest = describe_run(model, optimizer, RunDescription(model_source="none"))
        start = take_checkpoint(0, [*model.parameters()], optimizer, bits_of(model.parameters()))
        self.store = Gate(folder)
        self.bits = start.parameters.copy()
        self.writer = BackgroundWriter(LogWriter.create(self.store, manifest, start), spare=start.parameters)
        self.appended = 0

    def append(self, number: int) -> None:
        tokens = np.arange(4, dtype=np.int32)
        microbatch = MicrobatchRecord(
            samples=(Sample(tokens, tokens),), starts=(0,), width=4, has_mask=False, denominator=3.0, loss=1.0, rng=b""
        )
        step = StepRecord(microbatches=(microbatch,), lr=(0.1,), gradient_norm=1.0, seconds=1.0)
        for _ in range(number):
            vector = self.writer.take()
            np.add(self.bits, np.uint32(self.appended), out=vector)
            self.writer.append(step, vector)
            self.appended += 1


@pytest.fixture
def fixture(tmp_path: Path) -> Iterator[Fixture]:
    made = Fixture(tmp_path / "log")
    yield made
    made.store.is_open.set()
    for thread in threading.enumerate():
        if thread.name == "lmcleaner-writer":
            thread.join(60)
            assert not thread.is_alive()


def test_training_waits_for_a_slow_store(fixture: Fixture) -> None:
    fixture.store.is_open.clear()
    training = threading.Thread(target=fixture.append, args=(5 * QUEUE_JOBS,))
    training.start()
    most = FLUSH_STEPS - 1 + QUEUE_JOBS  # those before the first write, and those in line behind it
    while fixture.appended < most:
        time.sleep(0.01)
    training.join(0.3)
    assert fixture.appended == most
    fixture.store.is_open.set()
    training.join(60)
    fixture.writer.close(finished=True)
    log = TrainingLog(fixture.store)
    assert (log.num_steps, log.commit.finished) == (5 * QUEUE_JOBS, True)
    assert holder(fixture.store) is None


def test_an_error_stops_the_training_and_nothing_more_is_written(fixture: Fixture) -> None:
    fixture.append(FLUSH_STEPS)
    fixture.store.is_full = True
    with pytest.raises(ResourceError, match="no room left") as caught:
        fixture.append(5 * FLUSH_STEPS)
    assert "write" in [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    fixture.store.is_full = False
    with pytest.raises(ResourceError, match="no room left"):
        fixture.append(1)
    with pytest.raises(ResourceError, match="no room left"):
        fixture.writer.close(finished=True)
    log = TrainingLog(fixture.store)
    assert log.num_steps in {0, FLUSH_STEPS}
    assert not log.commit.finished
    assert holder(fixture.store) is None


def test_a_closed_writer_takes_nothing_more(fixture: Fixture) -> None:
    fixture.append(1)
    fixture.writer.close(finished=True)
    with pytest.raises(ValueError, match="closed"):
        fixture.append(1)
    assert TrainingLog(fixture.store).num_steps == 1


def test_an_interruption_while_it_closes_leaves_no_half_state(fixture: Fixture) -> None:
    fixture.append(3)
    fixture.store.is_open.clear()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores ctrl-C
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        fixture.writer.close(finished=True)
    signal.signal(signal.SIGINT, before)
    assert holder(fixture.store) is not None
    fixture.store.is_open.set()
    fixture.writer.close(finished=True)
    log = TrainingLog(fixture.store)
    assert (log.num_steps, log.commit.finished) == (3, True)
    assert holder(fixture.store) is None


ABANDONED = """
import sys
from lmcleaner.formats.golden.runs import GOLDEN, make_run
from lmcleaner.formats.store import open_store
from lmcleaner.formats.writer import LogWriter
from lmcleaner.recording.background import BackgroundWriter

run = make_run(GOLDEN[0])
store = open_store(sys.argv[1], writable=True)
writer = BackgroundWriter(LogWriter.create(store, run.manifest, run.checkpoints[0]), spare=run.parameters[0].copy())
for number in range(3):
    writer.append(run.steps[number], run.parameters[number + 1])
raise RuntimeError("nobody closes it")
"""


def test_a_process_that_nobody_closes_the_log_in_ends_and_leaves_what_was_recorded(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ABANDONED, tmp_path / "log"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "nobody closes it" in done.stderr
    log = TrainingLog(tmp_path / "log")
    assert (log.num_steps, log.commit.finished) == (3, False)
    assert holder(LocalFiles(tmp_path / "log")) is None
