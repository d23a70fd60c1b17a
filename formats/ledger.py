"""The request ledger: which requests a log has served, as a chain of entries that the log's root doesn't cover.

An entry is the attributes of a small group, is written once, and names the entry before it by its digest, the first one
the log's manifest. A damaged ledger is an error for whoever reads it: what it named would come back unnoticed.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Literal, Self

from lmcleaner.formats.canonical import json_digest
from lmcleaner.formats.documents import Json, metadata_key, problem_of, read_attributes
from lmcleaner.formats.errors import DamagedError
from lmcleaner.formats.layout import LEDGER, METADATA, PREPARED, damaged, entry_name, is_uncounted
from lmcleaner.formats.reader import TrainingLog

ENTRY_BYTES = 1 << 24  # of one entry: some 240,000 samples
LEDGER_BYTES = 1 << 28  # of all of them


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedRequest:
    """One request of an entry; digests only.

    Attributes:
        level: what happened to its steps.
        named: whether it named samples, wherever they are used, or steps as a whole.
        samples: digests, hexadecimal, ascending.
        steps: steps that were affected then, ascending; a run that went on since may hold more.
    """

    level: Literal["sample", "batch"]
    named: Literal["samples", "steps"]
    samples: tuple[str, ...]
    steps: tuple[int, ...]

    @property
    def forget_set(self) -> str:
        """Digest of the request's content, as in audit documents."""
        return json_digest({"level": self.level, "samples": list(self.samples), "steps": list(self.steps)})


@dataclass(frozen=True, kw_only=True)
class LedgerEntry:
    """The requests that one run of `unlearn` served for the first time, or once more.

    Attributes:
        number: entries before it.
        time: when it was made, UTC, ISO 8601.
        previous: `sha256` of the entry before it; of the first one, the digest of the log's manifest.
        requests: those of the run, without earlier ones that it served with them.
        forget_set: digest of the union that was served.
        audit_sha256: of the audit document's file.
        model_after: fingerprint of the model.
    """

    number: int
    time: str
    previous: str
    requests: tuple[ServedRequest, ...]
    forget_set: str
    audit_sha256: str
    model_after: str

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the canonical JSON of everything else."""
        return json_digest(self._plain())

    def to_json(self) -> Json:
        """The entry as it is stored, its digest included."""
        return {**self._plain(), "sha256": self.sha256}

    @classmethod
    def from_json(cls, document: Json, where: str, path: str) -> Self:
        """Builds the entry and checks it against its own digest.

        Args:
            document: attributes of its group.
            where: the log, for messages.
            path: of the group.

        Returns:
            The entry.

        Raises:
            DamagedError: it breaks its schema, or the digest doesn't match.
        """
        problem = problem_of(document, "ledger.schema.json")
        if problem is not None:
            raise damaged(where, path, f"the entry can't be read: {problem}")
        content = {name: value for name, value in document.items() if name != "sha256"}
        found = json_digest(content)
        if found != document["sha256"]:
            raise damaged(where, path, f"expected SHA-256 {document['sha256']}, found {found}")
        requests = [
            request | {key: tuple(request[key]) for key in ("samples", "steps")} for request in content["requests"]
        ]
        return cls(**content | {"requests": tuple(ServedRequest(**request) for request in requests)})

    def _plain(self) -> Json:
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """A whole ledger.

    Attributes:
        entries: in order, a prepared one included.
        num_settled: entries whose requests a redaction has served for good.
        has_prepared: whether the last entry is only prepared: a run that was killed may have served it.
        num_bytes: of all entries.
        head: what the next entry must name as `previous`.
    """

    entries: tuple[LedgerEntry, ...]
    num_settled: int
    has_prepared: bool
    num_bytes: int
    head: str

    @property
    def pending(self) -> tuple[LedgerEntry, ...]:
        """Entries whose requests the log itself doesn't keep: every later run must serve them again."""
        return self.entries[self.num_settled :]


def read_ledger(log: TrainingLog) -> Ledger:
    """Reads all entries.

    Args:
        log: the opened log.

    Returns:
        The ledger; one without entries where there is none.

    Raises:
        DamagedError: an entry is damaged, missing, or out of its place.
    """
    entries, has_prepared = [], False
    for path, found in walk_ledger(log):
        if isinstance(found, DamagedError):
            raise found
        entries.append(found)
        has_prepared = path == PREPARED
    return Ledger(
        entries=tuple(entries),
        num_settled=num_settled(log),
        has_prepared=has_prepared,
        num_bytes=sum(_sizes(log).values()),
        head=entries[-1].sha256 if entries else log.manifest_digest,
    )


def walk_ledger(log: TrainingLog) -> Iterator[tuple[str, LedgerEntry | DamagedError]]:
    """Goes through the entries, whatever is wrong with some of them.

    Args:
        log: the opened log.

    Yields:
        Path in the log, and the entry or what is wrong there. A prepared entry comes last, unless it is the one before.
    """
    sizes = _sizes(log)
    total = sum(sizes.values())
    if total > LEDGER_BYTES:
        yield LEDGER, damaged(log.location, LEDGER, f"expected at most {LEDGER_BYTES} bytes, found {total}")
        return
    expected, last, previous = 0, None, log.manifest_digest
    for number in sorted(int(path.removeprefix(f"{LEDGER}/")) for path in sizes if path != PREPARED):
        if number != expected:
            yield _gap(log, expected, number)
            previous = ""
        last = _read(log, entry_name(number), number, previous)
        yield entry_name(number), last
        expected, previous = number + 1, last.sha256 if isinstance(last, LedgerEntry) else ""
    if PREPARED in sizes:
        found = _read(log, PREPARED, None, "")
        if found != last:  # else the run was killed, or still is, between writing the entry and removing this
            yield (
                PREPARED,
                found if isinstance(found, DamagedError) else _placed(log, PREPARED, found, expected, previous),
            )
            expected += 1
    try:
        settled = num_settled(log)
    except DamagedError as error:
        yield LEDGER, error
        return
    if settled > expected:
        yield _gap(log, expected, settled)


def num_settled(log: TrainingLog) -> int:
    """How many entries redactions have served for good, as the log's own history says.

    Args:
        log: the opened log.

    Returns:
        The number of the first entry that no redaction covers.

    Raises:
        DamagedError: the history says no number.
    """
    counts = [change.details.get("ledger_entries", 0) for change in log.commit.history if change.kind == "redaction"]
    for count in counts:
        if type(count) is not int or count < 0:
            raise damaged(log.location, LEDGER, f"expected a number of entries in the log's history, found {count!r}")
    return max(counts, default=0)


def _sizes(log: TrainingLog) -> dict[str, int]:
    """Path of each entry -> bytes of its object."""
    listed = {key: size for key, size in log.store.list(LEDGER) if is_uncounted(key) and key != metadata_key(LEDGER)}
    return {key.removesuffix(f"/{METADATA}"): size for key, size in listed.items()}


def _read(log: TrainingLog, path: str, number: int | None, previous: str) -> LedgerEntry | DamagedError:
    """An entry, checked against its place if there is a number, or what is wrong with it."""
    try:
        entry = LedgerEntry.from_json(read_attributes(log.store, path, ENTRY_BYTES), log.location, path)
    except FileNotFoundError:
        return damaged(log.location, path, "it is missing")
    except DamagedError as error:
        return error
    return entry if number is None else _placed(log, path, entry, number, previous)


def _placed(log: TrainingLog, path: str, entry: LedgerEntry, number: int, previous: str) -> LedgerEntry | DamagedError:
    """An entry that belongs where it lies; `previous` is "" where the entry before it isn't known."""
    if entry.number != number:
        return damaged(log.location, path, f"expected entry {number}, found entry {entry.number}")
    if previous and entry.previous != previous:
        return damaged(log.location, path, f"expected {previous} as the entry before, found {entry.previous}")
    return entry


def _gap(log: TrainingLog, first: int, stop: int) -> tuple[str, DamagedError]:
    missing = f"entry {first} is missing" if stop - first == 1 else f"entries {first} to {stop - 1} are missing"
    return entry_name(first), damaged(log.location, entry_name(first), missing)
