"""Open folders: every step is taken from the folder before it, so that no link can lead elsewhere."""

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def enter(folder: int, name: str) -> int:
    """Opens a folder inside of an open one.

    Args:
        folder: the open one.
        name: of the one inside.

    Returns:
        The open folder, for the caller to close.

    Raises:
        OSError: with ELOOP, a link lies there, wherever it leads.
    """
    try:
        return os.open(name, FOLDER | os.O_NOFOLLOW, dir_fd=folder)
    except NotADirectoryError as error:
        if stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            raise OSError(errno.ELOOP, "a link") from error
        raise


def make_folder(folder: int, name: str) -> bool:
    """Makes a folder inside of an open one.

    Args:
        folder: the open one.
        name: of the one inside.

    Returns:
        Whether it is new.
    """
    try:
        os.mkdir(name, dir_fd=folder)
    except FileExistsError:
        return False
    return True


def write_new(folder: int, name: str, parts: Iterable[bytes]) -> None:
    """Writes a file that isn't there yet, whole and down to the disk, or leaves none.

    Args:
        folder: the open folder.
        name: of the file.
        parts: its bytes, joined.
    """
    with os.fdopen(os.open(name, _NEW_FILE, 0o666, dir_fd=folder), "wb") as file:
        try:
            file.writelines(parts)
            file.flush()
            # A name must never outlive its bytes: a record would count what isn't there.
            os.fsync(file.fileno())
        except BaseException:
            os.unlink(name, dir_fd=folder)
            raise


def sync_folder(path: str) -> None:
    """Makes the names in a folder survive a power loss.

    Args:
        path: of the folder.
    """
    folder = os.open(path, FOLDER)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def walk(folder: int, prefix: str, depth: int) -> Iterator[tuple[str, int]]:
    """Everything below an open folder.

    Args:
        folder: the open folder; it must stay open.
        prefix: of its keys, with `/`, or "".
        depth: how many levels to look at; a folder below the last one is named like a file.

    Yields:
        Key and size, in the order of the keys; 0 for what isn't a file.
    """
    with os.scandir(folder) as found:
        # A folder sorts as the prefix that it is, so that whole keys come in order.
        names = sorted(entry.name + "/" * entry.is_dir(follow_symlinks=False) for entry in found)
    for name in names:
        with suppress(FileNotFoundError):  # a writer may be removing it
            if name.endswith("/") and depth > 1:
                yield from _walk_into(folder, prefix, name, depth - 1)
            else:
                status = os.stat(name.rstrip("/"), dir_fd=folder, follow_symlinks=False)
                yield prefix + name.rstrip("/"), status.st_size if stat.S_ISREG(status.st_mode) else 0


def _walk_into(folder: int, prefix: str, name: str, depth: int) -> Iterator[tuple[str, int]]:
    inner = enter(folder, name.rstrip("/"))
    try:
        yield from walk(inner, prefix + name, depth)
    finally:
        os.close(inner)
