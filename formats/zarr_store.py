"""A log behind a URL, or in any other store of Zarr's."""

from collections.abc import Coroutine, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from zarr.abc.store import RangeByteRequest
from zarr.abc.store import Store as Backend
from zarr.buffer import cpu
from zarr.storage import FsspecStore

from lmcleaner.formats.errors import DamagedError, LmcleanerError, ResourceError, UsageError
from lmcleaner.formats.requests import BROKEN, Answer, at_once, entries, run
from lmcleaner.formats.store import OBJECT_BYTES, split_key


class ZarrStore:
    """The store of a log in a store of Zarr's; see `Store`."""

    def __init__(self, backend: Backend, location: str, *, writable: bool = False) -> None:
        """Looks at nothing yet.

        Args:
            backend: what to read and write; it stays open.
            location: what messages call it.
            writable: whether it may be changed.

        Raises:
            UsageError: `writable`, but the backend isn't.
        """
        if writable and (backend.read_only or not backend.supports_writes or not backend.supports_deletes):
            raise UsageError(f"a log can't be written there: {location}", hint="record into a folder, then copy it")
        self.location = location
        self._backend = backend
        self._writable = writable

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """See `Store.read`."""
        limit = OBJECT_BYTES if length is None else length
        # One byte more than allowed tells a whole object from one that is too large.
        data = self._get(key, start, limit + 1 if length is None else max(limit, 1))
        if len(data) > limit and length != 0:
            raise DamagedError(f"{self.location}: {key}: expected at most {limit} bytes, found more")
        return data[:limit]

    def size(self, key: str) -> int:
        """See `Store.size`."""
        self._get(key, 0, 1)  # some backends give a size to folders
        with self._reading(key):
            return self._run(self._backend.getsize(key))

    def exists(self, key: str) -> bool:
        """See `Store.exists`."""
        try:
            self._get(key, 0, 1)
        except FileNotFoundError:
            return False
        return True

    def write(self, key: str, parts: Iterable[bytes]) -> None:
        """See `Store.write`; Zarr's stores take an object whole, so the parts are joined in memory."""
        data = b"".join(parts)
        with self._changing(key):
            self._run(self._backend.set(key, cpu.Buffer.from_bytes(data)))

    def create(self, key: str, parts: Iterable[bytes]) -> None:
        """See `Store.create`; with backends that can't refuse an existing object, the last of several writers wins."""
        data = b"".join(parts)
        with self._changing(key):
            if self.exists(key):
                raise FileExistsError(f"{self.location}/{key}")
            self._run(self._create(key, data))
            if self.read(key) != data:
                raise FileExistsError(f"{self.location}/{key}")

    def sync(self) -> None:
        """See `Store.sync`; a backend answers when it has stored what it was given."""

    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """See `Store.list`.

        Yields:
            Key and size.
        """
        folder = "/".join([*split_key(self.location, prefix), ""]) if prefix else ""
        with self._reading(f"what lies in {prefix or 'it'}"):
            found = self._run(entries(self._backend, folder))
        yield from sorted(found)

    def delete(self, prefix: str) -> None:
        """See `Store.delete`."""
        keys = [key for key, _ in self.list(prefix)]
        if prefix and self.exists(prefix):
            keys.append(prefix)
        with self._changing(prefix or "zarr.json"):
            self._run(at_once([self._backend.delete(key) for key in keys]))

    def _get(self, key: str, start: int, length: int) -> bytes:
        split_key(self.location, key)
        with self._reading(key):
            found = self._run(self._backend.get(key, cpu.buffer_prototype, RangeByteRequest(start, start + length)))
        if found is None:
            raise FileNotFoundError(f"{self.location}/{key}")
        return found.to_bytes()

    async def _create(self, key: str, data: bytes) -> None:
        if isinstance(self._backend, FsspecStore):
            # Zarr would look whether the object is there and then write it; fsspec lets the server decide.
            await self._backend.fs._pipe_file(f"{self._backend.path.rstrip('/')}/{key}", data, mode="create")
        else:
            await self._backend.set_if_not_exists(key, cpu.Buffer.from_bytes(data))

    def _run(self, request: Coroutine[Any, Any, Answer]) -> Answer:
        return run(self._backend, request)

    @contextmanager
    def _reading(self, key: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, LmcleanerError):
            raise
        except BROKEN as error:
            raise DamagedError(f"{self.location}: {key}: expected bytes that can be unpacked ({error})") from error
        except OSError as error:
            raise ResourceError(
                f"can't read: {self.location}: {key}: {error}", hint="check the address and the right to read there"
            ) from error

    @contextmanager
    def _changing(self, key: str) -> Iterator[None]:
        if not self._writable:
            raise UsageError(f"the log was opened for reading: {self.location}")
        split_key(self.location, key)
        try:
            yield
        except (FileExistsError, LmcleanerError):
            raise
        except OSError as error:
            raise ResourceError(
                f"can't write: {self.location}/{key}: {error}", hint="check the address and the right to write there"
            ) from error


def open_url(url: str, *, writable: bool) -> ZarrStore:
    """The store behind a URL.

    Args:
        url: of the log; fsspec knows its protocol.
        writable: whether it will be written.

    Returns:
        The store.

    Raises:
        UsageError: a package is missing, or the protocol is unknown.
    """
    try:
        backend = FsspecStore.from_url(url, read_only=not writable)
    except ImportError as error:
        raise UsageError(
            f"can't open {url}: {error}",
            hint="install what reads it: `pip install 'lmcleaner[remote]'`, and the package that the message names",
        ) from error
    except ValueError as error:
        raise UsageError(f"can't open {url}: {error}", hint="use a folder, a zip file, or a URL of fsspec's") from error
    return ZarrStore(backend, url, writable=writable)
