"""Writes a training log: data first, the commit record last."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from lmcleaner.formats.arrays import group_metadata
from lmcleaner.formats.bits import Bits
from lmcleaner.formats.commit import Commit
from lmcleaner.formats.documents import DOCUMENT_BYTES, metadata_key
from lmcleaner.formats.errors import InsufficientLogError, ResourceError
from lmcleaner.formats.generation import FLUSH_STEPS, GenerationWriter
from lmcleaner.formats.layout import COMMIT
from lmcleaner.formats.lock import WriterLock
from lmcleaner.formats.manifest import Manifest
from lmcleaner.formats.places import check_place, clear, lock_log, remove_uncommitted
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.steps import Checkpoint, StepRecord
from lmcleaner.formats.store import Store, open_store
from lmcleaner.formats.tree import Tree


class LogWriter:
    """Appends steps and checkpoints to a log, and holds its lock until it is closed.

    A step becomes visible to readers with the commit record that follows it: every `FLUSH_STEPS` steps, at each
    checkpoint and at the end.
    """

    def __init__(self, store: Store, lock: WriterLock, tree: Tree, log: TrainingLog | None, threads: int) -> None:
        """Not for callers: see `create` and `resume`."""
        self._store, self._lock, self._tree = store, lock, tree
        self._manifest_digest = log.manifest_digest if log else tree.manifest.digest
        self._generation = GenerationWriter(store, tree, log, threads=threads)
        self._history = log.commit.history if log else ()
        self._metadata: dict[str, bytes] = {}

    @classmethod
    def create(
        cls,
        location: Store | Path | str,
        manifest: Manifest,
        start: Checkpoint,
        *,
        overwrite: bool = False,
        threads: int = 1,
    ) -> Self:
        """A new log with its checkpoint of step 0.

        Args:
            location: folder or URL of the log; nothing must lie there, or a log if `overwrite`.
            manifest: what the log says of the run.
            start: θ[0] and the optimizer's state.
            overwrite: removes a log that lies there.
            threads: that compress.

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
            clear(store)
            store.write(metadata_key(""), [root])
            writer = cls(store, lock, Tree(manifest, 0), None, threads)
            writer.write_checkpoint(start)
            return writer

    @classmethod
    def resume(cls, location: Store | Path | str, *, threads: int = 1) -> Self:
        """A log that goes on behind its last committed step; what lies beyond is removed.

        Args:
            location: folder or URL of the log.
            threads: that compress.

        Returns:
            The writer.

        Raises:
            ExistsError: somebody writes the log.
            InsufficientLogError: the log was pruned or redacted.
            DamagedError: what the log must go on from can't be read.
        """
        store, lock = lock_log(location)
        with _released_on_error(lock):
            log = TrainingLog(store)
            check_unchanged(log)
            remove_uncommitted(store, log)
            return cls(store, lock, Tree(log.manifest, log.commit.generation), log, threads)

    @property
    def num_steps(self) -> int:
        """Steps appended so far, committed or not."""
        return self._generation.num_steps

    def append(self, step: StepRecord, parameters: Bits, gradient: Bits | None = None) -> None:
        """Records one step.

        Args:
            step: what the step did.
            parameters: bit patterns of θ after the step, `[num_elements]`.
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


def check_unchanged(log: TrainingLog) -> None:
    """Makes sure that the rows before the next one are all there: a writer counts every row up to its last.

    Args:
        log: the log.

    Raises:
        InsufficientLogError: the log was pruned or redacted.
    """
    if log.commit.history:
        change = log.commit.history[-1]
        raise InsufficientLogError(
            f"the log can't go on: {log.location}: {change.kind} on {change.time}",
            hint="its run would bring back what was removed; record a new run",
        )


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
