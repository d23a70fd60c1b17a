"""Writes a training log: data first, the commit record last."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from lmcleaner.formats.arrays import group_metadata
from lmcleaner.formats.bits import Bits
from lmcleaner.formats.canonical import array_digest
from lmcleaner.formats.codecs import CODECS
from lmcleaner.formats.commit import Change, CheckpointCommit, Commit
from lmcleaner.formats.documents import DOCUMENT_BYTES, metadata_key
from lmcleaner.formats.errors import ExistsError, ResourceError
from lmcleaner.formats.layout import COMMIT, GRADIENTS, LOCK, METADATA, SCHEMA, UPDATES, generation_name
from lmcleaner.formats.lock import WriterLock
from lmcleaner.formats.manifest import Manifest
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.rows import RowWriter
from lmcleaner.formats.stacks import StackWriter, spans_of
from lmcleaner.formats.states import write_checkpoint
from lmcleaner.formats.steps import Checkpoint, StepRecord
from lmcleaner.formats.store import Store, open_store
from lmcleaner.formats.tables import TableWriter
from lmcleaner.formats.tree import Tree
from lmcleaner.formats.vectors import VectorWriter

FLUSH_STEPS = 16  # steps between two commit records; a kill loses at most these


class GenerationWriter:
    """Appends steps and checkpoints to one generation of a log; what it commits is a record, for the caller to write.

    Attributes:
        num_steps: steps appended so far.
    """

    def __init__(self, store: Store, tree: Tree, log: TrainingLog | None = None) -> None:
        """Begins an empty generation, or goes on behind the committed steps of a log.

        Args:
            store: where the log lies.
            tree: of the generation.
            log: the log to go on with, opened at the same generation.
        """
        self._store, self._tree = store, tree
        self.num_steps = log.num_steps if log else 0
        self._tables = {
            name: TableWriter(store, tree.path(name), layout, log.table(name) if log else None)
            for name, layout in tree.tables.items()
        }
        self._rows = RowWriter(self._tables, log.sample_rows if log else {}, tree.manifest.loss_divisor)
        self._stacks = {name: StackWriter(store, tree, name, self.num_steps) for name in tree.stacks}
        self._checkpoints: dict[int, CheckpointCommit] = dict(log.commit.checkpoints) if log else {}
        self._corrections = list(log.commit.corrections) if log else []
        self._bits: Bits | None = log.reconstruction(self.num_steps) if log and UPDATES in tree.stacks else None
        self._is_lossy = UPDATES in tree.stacks and CODECS[tree.codec(UPDATES)].is_lossy

    def append(self, step: StepRecord, parameters: Bits, gradient: Bits | None = None) -> None:
        """Adds one step.

        Args:
            step: what the step did.
            parameters: bit patterns of θ after the step, `[num_elements]`; the writer's from now on.
            gradient: bit patterns of the gradient that the optimizer was given, where the log holds gradients.
        """
        self._rows.append(step)
        self._append_digest("steps/parameters_sha256", array_digest(parameters))
        if UPDATES in self._stacks:
            self._append_update(parameters)
        if GRADIENTS in self._stacks:
            assert gradient is not None
            self._append_gradient(gradient)
        self.num_steps += 1
        if self._is_lossy and self.num_steps % self._tree.manifest.checkpoint_every == 0:
            self._correct(parameters)

    def write_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Writes the state before step `checkpoint.step`, which must be the next one."""
        assert checkpoint.step == self.num_steps, (checkpoint.step, self.num_steps)
        if self._is_lossy and self.num_steps and self.num_steps not in self._corrections:
            self._correct(checkpoint.parameters)
        if UPDATES in self._stacks:
            self._bits = checkpoint.parameters
        self._checkpoints[self.num_steps] = write_checkpoint(self._store, self._tree, checkpoint)

    def flush(self, *, finished: bool, history: tuple[Change, ...]) -> Commit:
        """Writes what waits.

        Args:
            finished: whether the run came to its own end.
            history: what was done to the log since.

        Returns:
            The record of everything that is written now.
        """
        for stack in self._stacks.values():
            stack.flush()
        return Commit(
            generation=self._tree.generation,
            steps=self.num_steps,
            finished=finished,
            tables={name: table.flush() for name, table in self._tables.items()},
            checkpoints=dict(self._checkpoints),
            updates=((0, self.num_steps),) if UPDATES in self._stacks else (),
            gradients=((0, self.num_steps),) if GRADIENTS in self._stacks else (),
            corrections=tuple(self._corrections),
            history=history,
        )

    def _append_update(self, parameters: Bits) -> None:
        assert self._bits is not None
        for span in spans_of(len(parameters)):
            self._stacks[UPDATES].append_span(self._bits[span], parameters[span])
        if self._is_lossy:
            self._append_digest("steps/reconstruction_sha256", array_digest(self._bits))
        else:
            self._bits = parameters

    def _append_gradient(self, gradient: Bits) -> None:
        digest = hashlib.sha256()
        for span in spans_of(len(gradient)):
            stored = np.zeros_like(gradient[span])
            self._stacks[GRADIENTS].append_span(stored, gradient[span])
            digest.update(stored.data)
        self._append_digest("steps/gradient_sha256", digest.digest())

    def _append_digest(self, table: str, digest: bytes) -> None:
        self._tables[table].append([np.frombuffer(digest, np.uint8)])

    def _correct(self, parameters: Bits) -> None:
        """Takes a lossy reconstruction to the run's own bits, and writes how."""
        assert self._bits is not None
        exact, dtype = CODECS["lossless"], self._tree.manifest.model.dtype
        writer = VectorWriter(self._store, self._tree.correction(self.num_steps))
        for span in spans_of(len(parameters)):
            writer.add(exact.encode(self._bits[span], parameters[span], dtype)[0])
        self._corrections.append(self.num_steps)


class LogWriter:
    """Appends steps and checkpoints to a log, and holds its lock until it is closed.

    A step becomes visible to readers with the commit record that follows it: every `FLUSH_STEPS` steps, at each
    checkpoint and at the end.
    """

    def __init__(self, store: Store, lock: WriterLock, tree: Tree, log: TrainingLog | None) -> None:
        """Not for callers: see `create` and `resume`."""
        self._store, self._lock, self._tree = store, lock, tree
        self._manifest_digest = log.manifest_digest if log else tree.manifest.digest
        self._generation = GenerationWriter(store, tree, log)
        self._history = log.commit.history if log else ()
        self._metadata: dict[str, bytes] = {}

    @classmethod
    def create(
        cls, location: Store | Path | str, manifest: Manifest, start: Checkpoint, *, overwrite: bool = False
    ) -> Self:
        """A new log with its checkpoint of step 0.

        Args:
            location: folder or URL of the log; nothing must lie there, or a log if `overwrite`.
            manifest: what the log says of the run.
            start: θ[0] and the optimizer's state.
            overwrite: removes a log that lies there.

        Returns:
            The writer.

        Raises:
            ExistsError: something lies there, or somebody writes it.
        """
        store = open_store(location, writable=True)
        check_place(store, overwrite)
        root = _limited(group_metadata(manifest.to_json()), store, "the model has too many parameters for a log")
        lock = WriterLock.acquire(store)
        with _released_on_error(lock):
            _clear(store)
            store.write(metadata_key(""), [root])
            writer = cls(store, lock, Tree(manifest, 0), None)
            writer.write_checkpoint(start)
            return writer

    @classmethod
    def resume(cls, location: Store | Path | str) -> Self:
        """A log that goes on behind its last committed step; what lies beyond is removed.

        Args:
            location: folder or URL of the log.

        Returns:
            The writer.

        Raises:
            ExistsError: somebody writes the log.
            DamagedError: what the log must go on from can't be read.
        """
        store = open_store(location, writable=True)
        TrainingLog(store)  # before the lock, which would be the first file where no log is
        lock = WriterLock.acquire(store)
        with _released_on_error(lock):
            log = TrainingLog(store)
            remove_uncommitted(store, log)
            return cls(store, lock, Tree(log.manifest, log.commit.generation), log)

    @property
    def num_steps(self) -> int:
        """Steps appended so far, committed or not."""
        return self._generation.num_steps

    def append(self, step: StepRecord, parameters: Bits, gradient: Bits | None = None) -> None:
        """Records one step.

        Args:
            step: what the step did.
            parameters: bit patterns of θ after the step, `[num_elements]`; the writer's from now on.
            gradient: bit patterns of the gradient that the optimizer was given, where the log holds gradients.
        """
        self._generation.append(step, parameters, gradient)
        if self.num_steps % FLUSH_STEPS == 0:
            self.commit()

    def write_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Writes the state before step `checkpoint.step`, which must be the next one, and commits."""
        self._generation.write_checkpoint(checkpoint)
        self.commit(with_metadata=True)

    def commit(self, *, finished: bool = False, with_metadata: bool = False) -> None:
        """Writes what waits, then the commit record that makes it visible.

        Args:
            finished: whether the run came to its own end.
            with_metadata: tells other readers of Zarr how many rows there are; always at the end.
        """
        commit = self._generation.flush(finished=finished, history=self._history)
        if finished or with_metadata:
            write_metadata(self._store, self._tree, commit, self._metadata)
        write_commit(self._store, commit, self._manifest_digest)

    def close(self) -> None:
        """Gives the lock back; what was appended since the last commit is not in the log."""
        self._lock.release()

    def __enter__(self) -> Self:
        """Does nothing: the lock is held since the writer was made."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Gives the lock back."""
        self.close()


def write_metadata(store: Store, tree: Tree, commit: Commit, written: dict[str, bytes]) -> None:
    """Writes the metadata of groups and arrays, which only other readers of Zarr need.

    Args:
        store: where the log lies.
        tree: of the log.
        commit: what the metadata shall tell.
        written: key -> content of what is known to be there; is added to.
    """
    for key, content in tree.metadata(commit):
        if written.get(key) != content:
            store.write(key, [content])
            written[key] = content


def write_commit(store: Store, commit: Commit, manifest_digest: str) -> None:
    """Makes everything durable that was written before, then the record that counts it.

    Args:
        store: where the log lies.
        commit: the record.
        manifest_digest: SHA-256 of the manifest.
    """
    content = _limited(group_metadata(commit.to_json(manifest_digest)), store, "take fewer checkpoints")
    store.sync()
    store.write(metadata_key(COMMIT), [content])
    store.sync()


def remove_uncommitted(store: Store, log: TrainingLog) -> None:
    """Removes all objects that the log's commit record doesn't count.

    Args:
        store: where the log lies.
        log: the log.
    """
    kept = {LOCK, METADATA, COMMIT, generation_name(log.commit.generation)}
    for name in {key.split("/")[0] for key, _ in store.list()} - kept:
        store.delete(name)
    counted = {LOCK, *log.tree.objects(log.commit)}
    for key in [key for key, _ in store.list() if key not in counted]:
        store.delete(key)


def check_place(location: Store | Path | str, overwrite: bool) -> None:
    """Makes sure that a log may be created: nothing lies there, or a log that may be removed.

    Args:
        location: folder or URL of the log to be.
        overwrite: whether a log that lies there may be removed; anything else never is.

    Raises:
        ExistsError: something lies there.
    """
    store = open_store(location, writable=True)
    is_free = all(_is_of_killed_writer(key) for key, _ in store.list())
    if not (is_free or (overwrite and _holds_log(store))):
        raise ExistsError(
            f"the log exists already: {store.location}",
            hint="choose another place, or give --overwrite to remove the log first",
        )


def _is_of_killed_writer(key: str) -> bool:
    """Whether an object may lie where a writer was killed before its log had a root."""
    return key == LOCK or (key.startswith(f"{METADATA}.") and key.endswith(".tmp"))


def _holds_log(store: Store) -> bool:
    """Whether the root says that it is a training log, of whatever version and however damaged further down."""
    try:
        document = json.loads(store.read(metadata_key(""), 0, DOCUMENT_BYTES))
        return bool(document["attributes"]["schema"] == SCHEMA)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return False


def _clear(store: Store) -> None:
    """Removes what lies there but the lock, the commit record first, so that no half of a log is ever seen.

    The root stays until it is replaced: it says that what a kill leaves half removed is a log and may be overwritten.
    """
    store.delete(COMMIT)
    for name in {key.split("/")[0] for key, _ in store.list()} - {LOCK, METADATA}:
        store.delete(name)


@contextmanager
def _released_on_error(lock: WriterLock) -> Iterator[None]:
    try:
        yield
    except BaseException:
        lock.release()
        raise


def _limited(content: bytes, store: Store, hint: str) -> bytes:
    if len(content) > DOCUMENT_BYTES:
        raise ResourceError(
            f"the log's metadata would be too large: {store.location}: expected at most {DOCUMENT_BYTES} bytes, "
            f"found {len(content)}",
            hint=hint,
        )
    return content
