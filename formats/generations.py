"""Writes a log anew beside itself: into the next generation, which one commit record then makes the log's."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from lmcleaner.formats.bits import Bits
from lmcleaner.formats.commit import Change, Commit
from lmcleaner.formats.generation import FLUSH_STEPS, GenerationWriter
from lmcleaner.formats.places import lock_log, remove_uncommitted
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.steps import Checkpoint, StepRecord
from lmcleaner.formats.store import Store
from lmcleaner.formats.tree import Tree
from lmcleaner.formats.writer import write_commit, write_metadata


class NextGeneration:
    """Steps and checkpoints that become the log's with `switch`, all at once."""

    def __init__(self, store: Store, log: TrainingLog) -> None:
        """Not for callers: see `next_generation`."""
        self._store, self._log = store, log
        self._tree = Tree(log.manifest, log.commit.generation + 1)
        self._writer = GenerationWriter(store, self._tree)

    @property
    def num_steps(self) -> int:
        """Steps appended so far."""
        return self._writer.num_steps

    def append(self, step: StepRecord, parameters: Bits, gradient: Bits | None = None) -> None:
        """Adds one step; see `GenerationWriter.append`."""
        self._writer.append(step, parameters, gradient)
        if self.num_steps % FLUSH_STEPS == 0:
            self.flush()

    def write_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Writes the state before the next step; see `GenerationWriter.write_checkpoint`."""
        self._writer.write_checkpoint(checkpoint)

    def flush(self) -> Commit:
        """Writes what waits, so that a full disk shows before the switch.

        Returns:
            The record of everything that is written now, without what is done to the log by it.
        """
        return self._writer.flush(finished=self._log.commit.finished, history=self._log.commit.history)

    def switch(self, change: Change) -> None:
        """Makes the generation the log's, by one write of the commit record.

        Args:
            change: what is done to the log by it.
        """
        commit = self.flush()
        commit = replace(commit, history=(*commit.history, change))
        write_metadata(self._store, self._tree, commit, {})
        write_commit(self._store, commit, self._log.manifest_digest)


@contextmanager
def open_to_rewrite(location: Store | Path | str) -> Iterator[TrainingLog]:
    """Opens a log for somebody who will write it anew, and holds its lock.

    Args:
        location: folder, URL or store of the log.

    Yields:
        The log, on a store that can be written.

    Raises:
        UsageError: the place can't be written.
        NotFoundError: no log lies there.
        ExistsError: somebody writes the log.
    """
    store, lock = lock_log(location)
    with lock:
        yield TrainingLog(store)


def clean(log: TrainingLog) -> bool:
    """Removes all objects that the commit record doesn't count, such as a killed writer leaves.

    Args:
        log: the log, on a store that can be written and whose lock the caller holds.

    Returns:
        Whether there were any.
    """
    before = {key for key, _ in log.store.list()}
    remove_uncommitted(log.store, log)
    log.store.sync()
    return before != {key for key, _ in log.store.list()}


@contextmanager
def next_generation(log: TrainingLog) -> Iterator[NextGeneration]:
    """An empty next generation. When the block ends, however it does, one generation is left: the commit record's.

    Args:
        log: the log, on a store that can be written and whose lock the caller holds.

    Yields:
        The generation.
    """
    clean(log)
    try:
        yield NextGeneration(log.store, log)
    finally:
        log.store.sync()
        clean(TrainingLog(log.store))
