"""Where a log's bytes lie: a folder, a zip file or a remote store, all seen as a tree of named objects."""

import errno
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable
from urllib.parse import unquote, urlsplit

from lmcleaner.formats.errors import DamagedError, ResourceError

if TYPE_CHECKING:
    import zarr.abc.store

# Objects are read in pieces or are small; a whole object beyond this is an attempt to exhaust the memory.
OBJECT_BYTES = 1 << 30

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EROFS, errno.EACCES, errno.EPERM}
_RUST_ERROR = re.compile(r"\(os error (\d+)\)")  # safetensors' only word of the system's error


@runtime_checkable
class Store(Protocol):
    """Named objects. A key is a relative path with `/`; keys that would leave the log are `DamagedError`.

    Attributes:
        location: the path or URL as the user gave it, for messages.
    """

    location: str

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """Bytes of an object, from `start` on.

        Args:
            key: of the object.
            start: first byte; nothing lies behind the end.
            length: the most to read; None for all, which must be at most `OBJECT_BYTES`.

        Raises:
            FileNotFoundError: there is no such object.
            DamagedError: something that a log doesn't hold lies there, or the object can't be decoded.
            ResourceError: the place can't be read.
        """

    def size(self, key: str) -> int:
        """How many bytes an object has.

        Raises:
            FileNotFoundError: there is no such object.
            DamagedError: something that a log doesn't hold lies there.
            ResourceError: the place can't be read.
        """

    def exists(self, key: str) -> bool:
        """Whether there is such an object; False for a folder.

        Raises:
            DamagedError: something that a log doesn't hold lies there.
            ResourceError: the place can't be read.
        """

    def write(self, key: str, parts: Iterable[bytes]) -> None:
        """Creates or replaces an object: readers see the old bytes or the new ones, and a failure leaves the old.

        Args:
            key: of the object.
            parts: its bytes, joined.

        Raises:
            DamagedError: something that a log doesn't hold lies in the way.
            ResourceError: there is no room, or the place can't be written.
            UsageError: the store was opened for reading.
        """

    def create(self, key: str, parts: Iterable[bytes]) -> None:
        """Creates an object that isn't there yet; of several writers at once only one succeeds.

        Args:
            key: of the object.
            parts: its bytes, joined.

        Raises:
            FileExistsError: the object is there.
            DamagedError: something that a log doesn't hold lies in the way.
            ResourceError: there is no room, or the place can't be written.
            UsageError: the store was opened for reading.
        """

    def sync(self) -> None:
        """Makes all that was written and deleted survive a power loss.

        Raises:
            ResourceError: there is no room, or the place can't be written.
        """

    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """All objects below a prefix, and whatever else lies there, in the order of their keys.

        Args:
            prefix: a folder; "" for the whole log.

        Yields:
            Key and size; 0 for what isn't an object. Nothing if the folder doesn't exist.

        Raises:
            ResourceError: the place can't be read.
        """

    def delete(self, prefix: str) -> None:
        """Removes an object, or a folder with everything below it; nothing happens if there is neither.

        Args:
            prefix: of the object or folder; "" for the whole log.

        Raises:
            ResourceError: the place can't be written.
            UsageError: the store was opened for reading.
        """


def open_store(location: "str | Path | Store | zarr.abc.store.Store", *, writable: bool = False) -> Store:
    """Finds the store for a place that the user named. Whether a log lies there isn't looked at.

    Args:
        location: a folder, an existing zip file, a URL, a store of Zarr's, or a store that is open already.
        writable: whether it will be written.

    Returns:
        The store; one that is open already as it is.

    Raises:
        UsageError: it isn't a place, nothing can read it, or it can't be written.
        DamagedError: the zip file isn't one.
    """
    # Imported here because these modules need this one, and because local logs needn't wait for zarr to load.
    from lmcleaner.formats.local_files import LocalFiles
    from lmcleaner.formats.zip_files import ZipFiles

    if isinstance(location, Store):
        return location
    if isinstance(location, str) and location.startswith("file://"):
        return LocalFiles(Path(unquote(urlsplit(location).path)), location=location, writable=writable)
    if isinstance(location, str | Path) and "://" not in str(location):
        path = Path(location)
        zipped = path.suffix.lower() == ".zip" and path.is_file()
        return ZipFiles(path, writable=writable) if zipped else LocalFiles(path, writable=writable)
    from lmcleaner.formats.zarr_store import ZarrStore, open_url

    if isinstance(location, str | Path):
        return open_url(str(location), writable=writable)
    return ZarrStore(location, str(location), writable=writable)


def split_key(location: str, key: str) -> list[str]:
    """Folders and name of a key that doesn't leave the log.

    Args:
        location: of the log.
        key: a relative path.

    Returns:
        The parts of the path, at least one.

    Raises:
        DamagedError: the key could name something outside of the log, or can't be a file's name.
    """
    parts = key.split("/")
    try:
        encoded = os.fsencode(key)
    except UnicodeEncodeError:
        encoded = b"\0"
    if b"\0" in encoded or b"\\" in encoded or not {"", ".", ".."}.isdisjoint(parts):
        raise DamagedError(f"the path escapes from the log {location}: {key!r}")
    return parts


@contextmanager
def storage_errors(place: Path | str) -> Iterator[None]:
    """Turns a full disk or an unwritable folder into an error that names the place.

    Args:
        place: what is being written.

    Yields:
        Nothing.

    Raises:
        ResourceError: the system has no room, or doesn't let us write.
    """
    try:
        yield
    except Exception as error:
        code = _system_code(error)
        if code is None or code not in {*_NO_ROOM, *_FORBIDDEN}:
            raise
        hint = "free some space or choose another folder" if code in _NO_ROOM else "choose another folder"
        raise ResourceError(f"can't write: {place}: {os.strerror(code)}", hint=hint) from error


def _system_code(error: Exception) -> int | None:
    """The number of the system's error behind one of Python's or of safetensors'."""
    if isinstance(error, OSError):
        return error.errno
    found = _RUST_ERROR.search(str(error)) if type(error).__name__ == "SafetensorError" else None
    return int(found[1]) if found is not None else None
