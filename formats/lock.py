"""One writer a log: a small object at the log's root says who writes."""

import time
from types import TracebackType
from typing import Self

from lmcleaner.formats.errors import DamagedError, ExistsError
from lmcleaner.formats.holder import Holder
from lmcleaner.formats.store import Store

LOCK = "lock.json"
_LOCK_BYTES = 4096
_ATTEMPTS = 100  # each ends because another writer has just come or gone; so many don't come and go at once


class WriterLock:
    """The right to write a log, until it is released."""

    def __init__(self, store: Store, holder: Holder, key: str = LOCK) -> None:
        """Holds what `acquire` took."""
        self._store, self._holder, self._key = store, holder, key

    @classmethod
    def acquire(cls, store: Store) -> Self:
        """Takes the lock, from a dead writer if need be.

        Args:
            store: where the log lies or will lie.

        Returns:
            The lock; release it.

        Raises:
            ExistsError: somebody writes the log, or may be writing it.
            ResourceError: the place can't be written.
        """
        return cls._take(store, LOCK)

    @classmethod
    def _take(cls, store: Store, key: str) -> Self:
        own = cls(store, Holder.this_process(), key)
        content = [own._holder.encode()]
        for _ in range(_ATTEMPTS):
            try:
                store.create(key, content)
                return own
            except FileExistsError:
                stale = _stale(store, key)
            if stale is None:
                continue
            # Only one of several takers gets the right to replace this very lock; whoever comes later finds another
            # token there. That right can be left by a dead taker as well, and is taken over in the same way.
            with cls._take(store, f"{key}.{stale.token}"):
                if _read(store, key) == stale:
                    store.write(key, content)
                    return own
        raise _held(store, key, None)

    def release(self) -> None:
        """Gives the lock up; a lock that isn't this one any more is left alone.

        Raises:
            ResourceError: the place can't be written.
        """
        if _read(self._store, self._key) == self._holder:
            self._store.delete(self._key)

    def __enter__(self) -> Self:
        """The lock itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Releases the lock."""
        self.release()


def holder(store: Store) -> Holder | None:
    """Who holds the lock of a log, dead or alive.

    Args:
        store: where the log lies.

    Returns:
        None if nobody does, or if the lock doesn't say who.

    Raises:
        ResourceError: the place can't be read.
    """
    return _read(store, LOCK)


def _read(store: Store, key: str) -> Holder | None:
    try:
        data = store.read(key, 0, _LOCK_BYTES + 1)
    except (FileNotFoundError, DamagedError):
        return None
    return Holder.parse(data) if len(data) <= _LOCK_BYTES else None


def _stale(store: Store, key: str) -> Holder | None:
    """The dead holder of a lock; None if the lock has just gone."""
    for pause in (0.0, 0.01, 0.1):  # the lock's name is there before its bytes
        time.sleep(pause)
        found = _read(store, key)
        if found is not None and found.is_alive() is False:
            return found
        if found is not None or not store.exists(key):
            break
    if found is None and not store.exists(key):
        return None
    raise _held(store, key, found)


def _held(store: Store, key: str, by: Holder | None) -> ExistsError:
    hint = "wait until it has ended, or end it"
    if by is None or by.is_alive() is None:
        hint = f"make sure that nobody writes the log, then remove {store.location.rstrip('/')}/{key}"
    return ExistsError(f"the log is being written: {store.location}: by {by or 'somebody unknown'}", hint=hint)
