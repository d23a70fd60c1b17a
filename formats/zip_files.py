"""A log in a zip file, which can only be read."""

import errno
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from lmcleaner.formats.errors import DamagedError, ResourceError, UsageError
from lmcleaner.formats.store import OBJECT_BYTES, split_key

# What zipfile raises for an archive that is damaged or encrypted, or for offsets that no file has.
_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, OverflowError, RuntimeError, ValueError)

# How many bytes one byte can become. zipfile unpacks all that it has read of any other compression, however large.
_EXPANSION = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: 1032}


class ZipFiles:
    """The store of a log in a zip file; see `Store`. The log lies at its top, or in its one folder that holds one."""

    def __init__(self, path: Path, *, writable: bool = False) -> None:
        """Reads the archive's directory.

        Args:
            path: of an existing file.
            writable: whether it is to be changed, which is refused.

        Raises:
            UsageError: `writable`.
            DamagedError: it isn't a zip file.
            ResourceError: it can't be read.
        """
        self.location = str(path)
        if writable:
            self._refuse()
        with self._reading("its directory"):
            self._length = path.stat().st_size
            self._archive = zipfile.ZipFile(path)
        files = {entry.filename: entry for entry in self._archive.infolist() if not entry.filename.endswith("/")}
        root = _root(files)
        self._entries = {name.removeprefix(root): entry for name, entry in files.items() if name.startswith(root)}

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """See `Store.read`."""
        entry = self._entry(key)
        count = max(0, entry.file_size - start if length is None else min(length, entry.file_size - start))
        if count > OBJECT_BYTES:
            raise DamagedError(f"{self.location}: {key}: expected at most {OBJECT_BYTES} bytes, found {count}")
        with self._reading(key), self._archive.open(entry) as file:
            file.seek(start)
            return file.read(count)

    def size(self, key: str) -> int:
        """See `Store.size`."""
        return self._entry(key).file_size

    def exists(self, key: str) -> bool:
        """See `Store.exists`."""
        split_key(self.location, key)
        return key in self._entries

    def write(self, key: str, parts: Iterable[bytes]) -> None:
        """Refused, as all changes are."""
        self._refuse()

    def create(self, key: str, parts: Iterable[bytes]) -> None:
        """Refused, as all changes are."""
        self._refuse()

    def sync(self) -> None:
        """Nothing was written."""

    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """See `Store.list`.

        Yields:
            Key and size.
        """
        folder = "/".join([*split_key(self.location, prefix), ""]) if prefix else ""
        for key in sorted(self._entries):
            if key.startswith(folder):
                entry = self._entries[key]
                yield key, entry.file_size if self._is_sound(entry) else 0

    def delete(self, prefix: str) -> None:
        """Refused, as all changes are."""
        self._refuse()

    def _entry(self, key: str) -> zipfile.ZipInfo:
        if not self.exists(key):
            raise FileNotFoundError(f"{self.location}/{key}")
        entry = self._entries[key]
        if not self._is_sound(entry):
            raise DamagedError(f"{self.location}: {key}: expected a stored or deflated file of a size that it can have")
        return entry

    def _is_sound(self, entry: zipfile.ZipInfo) -> bool:
        """Whether the stated size is possible; zipfile would look for bytes that can't be there until it is reached."""
        packed = min(entry.compress_size, self._length)
        return entry.file_size <= packed * _EXPANSION.get(entry.compress_type, -1)

    def _refuse(self) -> NoReturn:
        raise UsageError(
            f"a zip file can only be read: {self.location}",
            hint="record into a folder LOG and zip it afterwards: `cd LOG && zip -0 -r ../log.zip .`",
        )

    @contextmanager
    def _reading(self, key: str) -> Iterator[None]:
        try:
            yield
        except (OSError, *_BROKEN) as error:
            # A place before the file's start, which only the archive can have named, is no fault of the disk.
            if isinstance(error, OSError) and error.errno not in {None, errno.EINVAL}:
                raise ResourceError(f"can't read: {self.location}: {key}: {error}") from error
            raise DamagedError(f"{self.location}: {key}: expected a sound zip file ({error})") from error


def _root(names: Iterable[str]) -> str:
    """The folder that the log lies in, with its `/`; "" for the top."""
    documents = {name for name in names if name.endswith("zarr.json") and name.count("/") <= 1}
    inside = {name.removesuffix("zarr.json") for name in documents if name.endswith("/zarr.json")}
    return inside.pop() if "zarr.json" not in documents and len(inside) == 1 else ""
