"""A log in a folder. Links are never followed below the log's root, neither for reading nor for writing."""

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from lmcleaner.formats.errors import DamagedError, ResourceError, UsageError
from lmcleaner.formats.folders import FOLDER, enter, make_folder, sync_folder, walk, write_new
from lmcleaner.formats.store import OBJECT_BYTES, split_key, storage_errors

# A log's own folders are at most a dozen deep; a tree beyond this was made to exhaust whoever walks through it.
FOLDER_DEPTH = 32

# A pipe or a device must not block the one who opens it, nor become its terminal.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG}
_FOREIGN = {errno.ELOOP, errno.ENXIO, errno.ENODEV}


class LocalFiles:
    """The store of a log in a folder; see `Store`."""

    def __init__(self, root: Path, *, location: str | None = None, writable: bool = False) -> None:
        """Looks at nothing yet.

        Args:
            root: the log's folder; a link to one is followed.
            location: what messages call it; by default its path.
            writable: whether it may be changed.
        """
        self.location = str(root) if location is None else location
        self._root = os.path.abspath(root)
        self._writable = writable
        self._changed: set[str] = set()

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """See `Store.read`."""
        with self._object(key) as (file, size):
            count = max(0, size - start if length is None else min(length, size - start))
            if count > OBJECT_BYTES:
                raise DamagedError(f"{self.location}: {key}: expected at most {OBJECT_BYTES} bytes, found {count}")
            return os.pread(file, count, start) if count else b""

    def size(self, key: str) -> int:
        """See `Store.size`."""
        with self._object(key) as (_, size):
            return size

    def exists(self, key: str) -> bool:
        """See `Store.exists`."""
        try:
            self.size(key)
        except FileNotFoundError:
            return False
        return True

    def write(self, key: str, parts: Iterable[bytes]) -> None:
        """See `Store.write`."""
        with self._changing(key) as (folder, name):
            temporary = f"{name[:200]}.{secrets.token_hex(8)}.tmp"
            write_new(folder, temporary, parts)
            try:
                os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                os.unlink(temporary, dir_fd=folder)
                raise

    def create(self, key: str, parts: Iterable[bytes]) -> None:
        """See `Store.create`."""
        with self._changing(key) as (folder, name):
            write_new(folder, name, parts)

    def sync(self) -> None:
        """See `Store.sync`; the files' own bytes are on the disk already when `write` returns."""
        with storage_errors(self.location):
            while self._changed:
                path = self._changed.pop()
                with suppress(FileNotFoundError):
                    sync_folder(path)

    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """See `Store.list`; a folder that lies too deep is named like an object.

        Yields:
            Key and size; 0 for what isn't a file.
        """
        parts = split_key(self.location, prefix) if prefix else []
        try:
            with self._reading(prefix), self._folder(parts) as folder:
                yield from walk(folder, f"{prefix}/" if prefix else "", FOLDER_DEPTH - len(parts))
        except FileNotFoundError:
            return

    def delete(self, prefix: str) -> None:
        """See `Store.delete`."""
        if not prefix:
            with suppress(FileNotFoundError), self._reading(prefix), self._folder([]) as folder:
                for name in os.listdir(folder):  # a folder may hold no object
                    self.delete(name)
            return
        with suppress(FileNotFoundError), self._changing(prefix, make=False) as (folder, name):
            if stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                shutil.rmtree(name, dir_fd=folder)
            else:
                os.unlink(name, dir_fd=folder)

    @contextmanager
    def _object(self, key: str) -> Iterator[tuple[int, int]]:
        """Opens an object.

        Yields:
            The open file, and its size.
        """
        *folders, name = split_key(self.location, key)
        with self._reading(key), self._folder(folders) as folder:
            file = os.open(name, _FILE, dir_fd=folder)
            try:
                status = os.fstat(file)
                if not stat.S_ISREG(status.st_mode):
                    raise OSError(errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.ENODEV, "no file")
                yield file, status.st_size
            finally:
                os.close(file)

    @contextmanager
    def _changing(self, key: str, *, make: bool = True) -> Iterator[tuple[int, str]]:
        """Prepares the change of an object.

        Yields:
            The open folder that it lies in, and its name there.
        """
        if not self._writable:
            raise UsageError(f"the log was opened for reading: {self.location}")
        *folders, name = split_key(self.location, key)
        with storage_errors(os.path.join(self._root, key)):
            try:
                with self._folder(folders, make=make) as folder:
                    self._changed.add(os.path.join(self._root, *folders))
                    yield folder, name
            except OSError as error:
                if error.errno not in _FOREIGN | {errno.ENOTDIR, errno.EISDIR}:
                    raise
                raise self._foreign(key) from error

    @contextmanager
    def _folder(self, parts: Sequence[str], *, make: bool = False) -> Iterator[int]:
        """Enters folders one by one, so that no link on the way can lead out of the log.

        Yields:
            The last one, open.
        """
        if make:
            self._make_root()
        folder, path = os.open(self._root, FOLDER), self._root
        try:
            for part in parts:
                if make and make_folder(folder, part):
                    self._changed.add(path)
                inner = enter(folder, part)
                os.close(folder)
                folder, path = inner, os.path.join(path, part)
            yield folder
        finally:
            os.close(folder)

    def _make_root(self) -> None:
        there = self._root
        while not os.path.lexists(there):
            there = os.path.dirname(there)
            self._changed.add(there)
        if there != self._root:
            with suppress(FileExistsError, NotADirectoryError):
                os.makedirs(self._root, exist_ok=True)
        if not os.path.isdir(self._root):
            raise UsageError(f"a log can't be written there: {self.location}", hint="name a folder, or a new place")

    @contextmanager
    def _reading(self, key: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in _FOREIGN:
                raise self._foreign(key) from error
            if error.errno in _ABSENT:
                raise FileNotFoundError(errno.ENOENT, "no such object", os.path.join(self._root, key)) from error
            raise ResourceError(f"can't read: {self.location}: {key}: {error.strerror}") from error

    def _foreign(self, key: str) -> DamagedError:
        return DamagedError(f"{self.location}: {key}: expected plain files in plain folders, found something else")
