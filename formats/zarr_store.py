"""A log behind a URL, or in any other store of Zarr's."""

import asyncio
import zipfile
import zlib
from collections.abc import Coroutine, Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from typing import Any, TypeVar

from zarr.abc.store import RangeByteRequest
from zarr.abc.store import Store as Backend
from zarr.buffer import cpu
from zarr.core.sync import sync
from zarr.storage import FsspecStore, StorePath

from lmcleaner.formats.errors import DamagedError, LmcleanerError, ResourceError, UsageError
from lmcleaner.formats.store import OBJECT_BYTES, split_key

_Answer = TypeVar("_Answer")
# What a backend that unpacks raises for bytes that aren't those that were packed.
_BROKEN = (zipfile.BadZipFile, zlib.error)
_REQUESTS = 16  # at once, to one server: each waits long and works little


class ZarrStore:
    """The store of a log in a store of Zarr's; see `Store`."""

    def __init__(self, backend: Backend, location: str, *, writable: bool = False) -> None:
        """Looks at nothing yet.

        Args:
            backend: what to read and write; it stays open.
            location: what messages call it.
            writable: whether it may be changed.

        Raises:
            UsageError: it isn't a store, or `writable` and it can't be written.
        """
        if not isinstance(backend, Backend):
            raise UsageError(f"not a place of a log: expected a folder, a URL or a store, found {backend!r}")
        if writable and (backend.read_only or not backend.supports_writes or not backend.supports_deletes):
            raise UsageError(f"a log can't be written there: {location}", hint="record into a folder, then copy it")
        self.location, self._backend, self._writable = location, backend, writable

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
            return _run(self._backend, self._backend.getsize(key))

    def exists(self, key: str) -> bool:
        """See `Store.exists`."""
        with suppress(FileNotFoundError):
            self._get(key, 0, 1)
            return True
        return False

    def write(self, key: str, parts: Iterable[bytes]) -> None:
        """See `Store.write`; Zarr's stores take an object whole, so the parts are joined in memory."""
        data = b"".join(parts)
        with self._changing(key):
            _run(self._backend, self._backend.set(key, cpu.Buffer.from_bytes(data)))

    def create(self, key: str, parts: Iterable[bytes]) -> None:
        """See `Store.create`; with backends that can't refuse an existing object, the last of several writers wins."""
        data = b"".join(parts)
        with self._changing(key):
            if self.exists(key):
                raise FileExistsError(f"{self.location}/{key}")
            _run(self._backend, self._create(key, data))
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
            found = _run(self._backend, _entries(self._backend, folder))
        yield from sorted(found)

    def delete(self, prefix: str) -> None:
        """See `Store.delete`."""
        keys = [key for key, _ in self.list(prefix)]
        if prefix and self.exists(prefix):
            keys.append(prefix)
        with self._changing(prefix or "zarr.json"):
            _run(self._backend, _at_once([self._backend.delete(key) for key in keys]))

    def _get(self, key: str, start: int, length: int) -> bytes:
        split_key(self.location, key)
        with self._reading(key):
            span = RangeByteRequest(start, start + length)
            found = _run(self._backend, self._backend.get(key, cpu.buffer_prototype, span))
        if found is None:
            raise FileNotFoundError(f"{self.location}/{key}")
        return found.to_bytes()

    async def _create(self, key: str, data: bytes) -> None:
        if isinstance(self._backend, FsspecStore):
            # Zarr would look whether the object is there and then write it; fsspec lets the server decide.
            await self._backend.fs._pipe_file(f"{self._backend.path.rstrip('/')}/{key}", data, mode="create")
        else:
            await self._backend.set_if_not_exists(key, cpu.Buffer.from_bytes(data))

    def _reading(self, key: str) -> AbstractContextManager[None]:
        return self._reporting("read", key, FileNotFoundError)

    def _changing(self, key: str) -> AbstractContextManager[None]:
        if not self._writable:
            raise UsageError(f"the log was opened for reading: {self.location}")
        split_key(self.location, key)
        return self._reporting("write", key, FileExistsError)

    @contextmanager
    def _reporting(self, action: str, key: str, expected: type[OSError]) -> Iterator[None]:
        try:
            yield
        except (expected, LmcleanerError):
            raise
        except (NotImplementedError, ValueError) as error:  # what backends raise that have no way to write
            if action != "write":
                raise
            hint = "record into a folder, then copy it"
            raise UsageError(f"a log can't be written there: {self.location}: {error}", hint=hint) from error
        except _BROKEN as error:
            raise DamagedError(f"{self.location}: {key}: expected bytes that can be unpacked ({error})") from error
        except OSError as error:
            hint = "check the address, and what you may do there"
            raise ResourceError(f"can't {action}: {self.location}: {key}: {error}", hint=hint) from error


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
        hint = "install what reads it: `pip install 'lmcleaner[remote]'`, and the package that the message names"
        raise UsageError(f"can't open {url}: {error}", hint=hint) from error
    except ValueError as error:
        raise UsageError(f"can't open {url}: {error}", hint="use a folder, a zip file, or a URL of fsspec's") from error
    return ZarrStore(backend, url, writable=writable)


def _run(backend: Backend, request: Coroutine[Any, Any, _Answer]) -> _Answer:
    """Waits for a request; an error that only the backend's own package has a name for becomes `OSError`."""
    answer = sync(_outcome(backend, request))[0]
    if not isinstance(answer, BaseException):
        return answer
    if isinstance(answer, _BROKEN) or type(answer).__module__ == "builtins":
        raise answer
    raise OSError(f"{type(answer).__name__}: {answer}") from answer


async def _outcome(backend: Backend, request: Coroutine[Any, Any, _Answer]) -> tuple[_Answer | BaseException]:
    async def answer() -> _Answer:
        with closing(request):
            await StorePath.open(backend, "")  # some backends don't open themselves
            return await request

    return await asyncio.gather(answer(), return_exceptions=True)


async def _entries(backend: Backend, folder: str) -> list[tuple[str, int]]:
    try:
        keys = [key async for key in backend.list_prefix(folder) if key.startswith(folder) and not key.endswith("/")]
    except FileNotFoundError:
        return []
    return list(zip(keys, await _at_once([backend.getsize(key) for key in keys]), strict=True))


async def _at_once(requests: list[Coroutine[Any, Any, Any]]) -> list[Any]:
    free = asyncio.Semaphore(_REQUESTS)

    async def wait(request: Coroutine[Any, Any, Any]) -> Any:
        async with free:
            return await request

    return await asyncio.gather(*(wait(request) for request in requests))
