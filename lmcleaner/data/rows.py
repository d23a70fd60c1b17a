"""Reads rows from a file, a folder or a hub data set, and finds others of the same data set by name."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lmcleaner.data.files import SUFFIXES, Row, rows_of
from lmcleaner.data.hub import read_split
from lmcleaner.formats.canonical import json_digest
from lmcleaner.formats.errors import NotFoundError, UsageError

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+){0,2}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSource:
    """Rows and where they came from.

    Attributes:
        source: absolute path, or name of a hub data set with its configuration.
        split: name of the split that was read; the file's stem for a file.
        sha256: digest of the file, or of the rows where there is no file.
        rows: the rows in order, each without the columns that it has no value in.
    """

    source: str
    split: str
    sha256: str
    rows: tuple[Row, ...]


def read_rows(source: str) -> RowSource:
    """Reads training rows.

    Args:
        source: a file of JSON, JSON lines, CSV or Parquet; a folder that holds one of them or one called `train`, or
            with `:NAME` the one of that name; or a hub data set, with `:NAME` for a configuration or a split, or with
            `:CONFIG:SPLIT`.

    Returns:
        At least one row.

    Raises:
        NotFoundError: nothing there, or a library that it needs isn't.
        UsageError: something in it is no row, or no rows at all.
    """
    path = file_of(source)
    if path is not None:
        return _read_file(path)
    name, *parts = source.split(":")
    split, rows = read_split(name, parts)
    return RowSource(source=source, split=split, sha256=json_digest(rows), rows=_with_values(rows, source))


def file_of(source: str) -> Path | None:
    """The file that a source of `read_rows` names.

    Args:
        source: as `read_rows` takes it.

    Returns:
        The file; None for a hub data set, which isn't looked up.

    Raises:
        NotFoundError: there is no such file, and it can't be the name of a hub data set.
        UsageError: several files have that name.
    """
    path = _local(source)
    if path is None and (Path(source).suffix in SUFFIXES or not _HUB_NAME.fullmatch(source)):
        raise NotFoundError(f"no such data file: {source}")
    return path


def beside(source: str, name: str) -> str | None:
    """Where another part of a data set is.

    Args:
        source: where a part of it came from, as `RowSource` says.
        name: of the other part: of a file in the same folder, with or without its suffix, or of a configuration or a
            split of the same hub data set.

    Returns:
        A source for `read_rows`: the file's path, or the hub's name, which isn't looked up. None where there can't be
        such a part.

    Raises:
        UsageError: several files have that name.
    """
    if Path(source).is_absolute():
        file = _named(Path(source).parent, name)
        return None if file is None else str(file)
    dataset, *parts = source.split(":")
    named = ":".join([dataset, *parts[:-1], name])
    return named if _HUB_NAME.fullmatch(source) and _HUB_NAME.fullmatch(named) else None


def _local(source: str) -> Path | None:
    """The file that a source names, if it is on the disk."""
    path = Path(source)
    if path.is_file():
        return path
    if path.is_dir():
        return _only_file(path)
    folder, colon, name = source.rpartition(":")
    if not colon or not Path(folder).is_dir():
        return None
    file = _named(Path(folder), name)
    if file is None:
        found = [file.name for file in _files(Path(folder))]
        raise NotFoundError(f"no such data file: {source}: expected one of {found} in {folder}")
    return file


def _only_file(folder: Path) -> Path:
    files = _files(folder)
    named = [file for file in files if file.stem == "train"] or files
    if len(named) != 1:
        found = [file.name for file in files]
        raise NotFoundError(
            f"no data file to choose: {folder}: expected train.jsonl or one file, found {found}",
            hint=f"name one of them behind a colon, as in {folder}:{files[0].stem}" if files else None,
        )
    return named[0]


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES)


def _named(folder: Path, name: str) -> Path | None:
    found = [path for path in (folder / f"{name}{suffix}" for suffix in ("", *SUFFIXES)) if is_file(path)]
    if len(found) > 1:
        raise UsageError(
            f"several files of that name: {folder}: {[path.name for path in found]}",
            hint="give the name with its suffix",
        )
    return found[0] if found else None


def is_file(path: Path) -> bool:
    """Whether a file lies there; what is longer than any file name is none."""
    try:
        return path.is_file()
    except OSError:
        return False


def _read_file(path: Path) -> RowSource:
    content = path.read_bytes()
    rows = _with_values(rows_of(path, content), str(path))
    return RowSource(source=str(path.resolve()), split=path.stem, sha256=hashlib.sha256(content).hexdigest(), rows=rows)


def _with_values(rows: Sequence[Row], source: str) -> tuple[Row, ...]:
    if not rows:
        raise UsageError(f"no rows: {source}")
    return tuple({name: value for name, value in row.items() if value is not None} for row in rows)
