"""Outputs that are there whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lmcleaner.formats.errors import ExistsError, ResourceError
from lmcleaner.formats.store import storage_errors


def check_free(path: Path, option: str = "--output") -> None:
    """Makes sure that nothing lies at `path`.

    Args:
        path: where an output shall be.
        option: that names it, for the hint.

    Raises:
        ExistsError: something does.
    """
    if path.exists() or path.is_symlink():
        raise ExistsError(f"the output exists already: {path}", hint=f"choose another {option}; nothing is overwritten")


def check_room(path: Path, num_bytes: int) -> None:
    """Makes sure, before anything is computed, that an output can be written.

    Args:
        path: where it shall be; what is missing above it will be made.
        num_bytes: what it takes at least.

    Raises:
        ResourceError: nothing can be made there, or there is less room.
    """
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir():
        raise ResourceError(f"can't write: {path}: not a folder: {above}", hint="choose another folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise ResourceError(f"can't write: {path}: {above} is not writable", hint="choose another folder")
    free = shutil.disk_usage(above).free
    if free < num_bytes:
        raise ResourceError(
            f"no room for the output: {path}: expected {num_bytes / 1e6:.1f} MB, found {free / 1e6:.1f} MB free",
            hint="free some space or choose another folder",
        )


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Gives a temporary folder beside `path` that becomes `path` when the block ends without an error.

    Args:
        path: the folder to make.

    Yields:
        The temporary folder; it is removed if the block fails or is interrupted.

    Raises:
        ExistsError: something lies at `path`.
        ResourceError: it can't be written.
    """
    check_free(path)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            yield temporary
            _sync(temporary)
            temporary.chmod(0o755)
            check_free(path)
            temporary.rename(path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def write_file(path: Path, content: str, option: str) -> None:
    """Writes a new file of text.

    Args:
        path: the file to make.
        content: of it.
        option: that names it, for the hint.

    Raises:
        ExistsError: something lies at `path`.
        ResourceError: it can't be written.
    """
    check_free(path, option)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            check_free(path, option)
            temporary.rename(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _sync(folder: Path) -> None:
    """Flushes every file of the folder to the disk, so that the name never outlives the bytes."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
