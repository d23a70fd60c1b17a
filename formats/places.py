"""Where a log may be written, and what is cleared away there."""

import json
from pathlib import Path

from lmcleaner.formats.documents import DOCUMENT_BYTES, metadata_key
from lmcleaner.formats.errors import ExistsError
from lmcleaner.formats.layout import COMMIT, LOCK, METADATA, SCHEMA, is_uncounted
from lmcleaner.formats.lock import WriterLock
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.store import Store, open_store


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


def clear(store: Store) -> None:
    """Removes what lies there but the lock, the commit record first, so that no half of a log is ever seen.

    The root stays until it is replaced: it says that what a kill leaves half removed is a log and may be overwritten.
    """
    store.delete(COMMIT)
    for name in {key.split("/")[0] for key, _ in store.list()} - {LOCK, METADATA}:
        store.delete(name)


def lock_log(location: Store | Path | str) -> tuple[Store, WriterLock]:
    """Takes the lock of a log that is there.

    Args:
        location: folder, URL or store of the log.

    Returns:
        The log's store, which can be written, and its lock.

    Raises:
        UsageError: the place can't be written.
        NotFoundError: no log lies there.
        ExistsError: somebody writes the log.
    """
    store = open_store(location, writable=True)
    TrainingLog(store)  # before the lock, which would be the first file where no log is
    return store, WriterLock.acquire(store)


def remove_uncommitted(store: Store, log: TrainingLog) -> None:
    """Removes all objects that the log's commit record doesn't count, but for the lock and the request ledger.

    Args:
        store: where the log lies.
        log: the log.

    Raises:
        DamagedError: a table can't be read, so that nobody knows what the record counts.
    """
    found = [key for key, _ in store.list()]
    kept = {*log.objects(), *filter(is_uncounted, found)}
    folders = {"/".join(parts[:n]) for parts in (key.split("/") for key in kept) for n in range(len(parts))}
    # Whole folders where nothing in them is kept: an empty one would puzzle other readers of Zarr.
    uncounted = [_topmost(key, folders) for key in found if key not in kept]
    for name in dict.fromkeys(uncounted):
        store.delete(name)


def _topmost(key: str, folders: set[str]) -> str:
    """The object, or the outermost folder of it that isn't one of `folders`."""
    parts = key.split("/")
    outer = ("/".join(parts[:n]) for n in range(1, len(parts)))
    return next((folder for folder in outer if folder not in folders), key)
