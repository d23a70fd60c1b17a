"""Appends to the request ledger in two steps, so that a kill between an output and its entry loses no request.

The entry is prepared before the output gets its name, and entered afterwards. What a killed run had only prepared
counts as an entry for every reader, and the next writer enters it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from lmcleaner.formats.arrays import group_metadata
from lmcleaner.formats.documents import metadata_key
from lmcleaner.formats.errors import LmcleanerError, UsageError
from lmcleaner.formats.layout import LEDGER, PREPARED, entry_name
from lmcleaner.formats.ledger import ENTRY_BYTES, LEDGER_BYTES, Ledger, LedgerEntry, ServedRequest, read_ledger
from lmcleaner.formats.places import lock_log
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.store import Store


class LedgerWriter:
    """Appends to the ledger of a log.

    Attributes:
        log: the log, as it is since its lock is held.
        ledger: the entries before.
    """

    def __init__(self, log: TrainingLog) -> None:
        """Enters what a killed run had prepared.

        Args:
            log: the log, on a store that can be written and whose lock the caller holds.

        Raises:
            DamagedError: the ledger is damaged.
            ResourceError: the place can't be written.
        """
        self.log, self.ledger = log, read_ledger(log)
        self._prepared: LedgerEntry | None = None
        if self.ledger.has_prepared:
            self._prepared = self.ledger.entries[-1]
            self.enter()

    def prepare(
        self, *, requests: Sequence[ServedRequest], forget_set: str, audit_sha256: str, model_after: str
    ) -> None:
        """Writes down what the next entry will be; from here on the requests count as served.

        Args:
            requests: those of the run.
            forget_set: digest of the union that was served.
            audit_sha256: of the audit document's file.
            model_after: fingerprint of the model.

        Raises:
            UsageError: the entry would be too large.
            ResourceError: the place can't be written.
        """
        entry = _next_entry(
            self.ledger, requests, forget_set=forget_set, audit_sha256=audit_sha256, model_after=model_after
        )
        _check_size(self.log, self.ledger, entry)
        if not self.log.store.exists(metadata_key(LEDGER)):
            self.log.store.write(metadata_key(LEDGER), [group_metadata({})])
        self._write(PREPARED, entry)
        self._prepared = entry

    def enter(self) -> None:
        """Makes the prepared entry, if there is one, part of the chain.

        Raises:
            ResourceError: the place can't be written; the entry stays prepared.
        """
        if self._prepared is not None:
            self._write(entry_name(self._prepared.number), self._prepared)
            self.withdraw()

    def withdraw(self) -> None:
        """Takes back what was prepared, if anything was.

        Raises:
            ResourceError: the place can't be written; the entry stays prepared.
        """
        if self._prepared is not None:
            self.log.store.delete(PREPARED)
            self.log.store.sync()
            self._prepared = None

    def _write(self, path: str, entry: LedgerEntry) -> None:
        self.log.store.write(metadata_key(path), [group_metadata(entry.to_json())])
        self.log.store.sync()


def check_room(log: TrainingLog, ledger: Ledger, requests: Sequence[ServedRequest]) -> None:
    """Makes sure, before they are served, that requests can be entered and read back.

    Args:
        log: the log.
        ledger: the entries before.
        requests: of the next entry.

    Raises:
        UsageError: the entry would be too large.
    """
    digest = "0" * 64
    _check_size(log, ledger, _next_entry(ledger, requests, forget_set=digest, audit_sha256=digest, model_after=digest))


def _next_entry(ledger: Ledger, requests: Sequence[ServedRequest], **digests: str) -> LedgerEntry:
    return LedgerEntry(
        number=len(ledger.entries),
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        previous=ledger.head,
        requests=tuple(requests),
        **digests,
    )


def _check_size(log: TrainingLog, ledger: Ledger, entry: LedgerEntry) -> None:
    size = len(group_metadata(entry.to_json()))
    if size > ENTRY_BYTES or ledger.num_bytes + 2 * size > LEDGER_BYTES:  # for a moment it lies there twice
        raise UsageError(
            f"the request is too large for the ledger: {log.location}: expected an entry of at most {ENTRY_BYTES} "
            f"bytes and at most {LEDGER_BYTES} bytes in all, found {size} beside {ledger.num_bytes}",
            hint="cut the request into several, or serve what the ledger holds for good with --redact",
        )


@contextmanager
def writing_ledger(location: Store | Path | str) -> Iterator[LedgerWriter]:
    """Takes a log's lock for somebody who has something to enter. What is prepared in the block is entered after it.

    Args:
        location: folder, URL or store of the log.

    Yields:
        The writer; if the block fails, what it had prepared is withdrawn. If it is interrupted, that stays prepared.

    Raises:
        UsageError: the place can't be written.
        NotFoundError: no log lies there.
        ExistsError: somebody writes the log.
        DamagedError: the log or its ledger is damaged.
        ResourceError: the place can't be written.
    """
    store, lock = lock_log(location)
    with lock, entering(TrainingLog(store)) as writer:
        yield writer


@contextmanager
def entering(log: TrainingLog) -> Iterator[LedgerWriter]:
    """The same for somebody who holds the lock already; see `writing_ledger`.

    Args:
        log: the log, on a store that can be written.

    Yields:
        The writer.

    Raises:
        DamagedError: the ledger is damaged.
        ResourceError: the place can't be written.
    """
    writer = LedgerWriter(log)
    try:
        yield writer
    except (LmcleanerError, OSError):  # not an interrupt: nobody knows whether the output is in its place already
        writer.withdraw()
        raise
    writer.enter()
