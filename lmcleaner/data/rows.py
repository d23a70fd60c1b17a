"""Reads rows from a file, a folder or a hub data set."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmcleaner.formats.canonical import json_digest
from lmcleaner.formats.errors import NotFoundError, UsageError

Row = dict[str, Any]
_SUFFIXES = (".jsonl", ".json")


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSource:
    """Rows and where they came from.

    Attributes:
        source: absolute path, or name of a hub data set with its configuration.
        split: name of the split that was read; the file's stem for a file.
        sha256: digest of the file, or of the rows where there is no file.
        rows: the rows in order.
    """

    source: str
    split: str
    sha256: str
    rows: tuple[Row, ...]


def read_rows(source: str) -> RowSource:
    """Reads training rows.

    Args:
        source: a JSON or JSON-lines file; a folder that holds `train.jsonl`, `train.json` or just one such file; or a
            hub name with an optional `:config`.

    Returns:
        At least one row.

    Raises:
        NotFoundError: nothing there.
        UsageError: a line that isn't a JSON object, or no rows at all.
    """
    path = Path(source)
    if path.is_dir():
        path = _file_in(path)
    if path.is_file():
        return _read_file(path)
    if path.suffix in _SUFFIXES or source.startswith((".", "/", "~")):
        raise NotFoundError(f"no such data file: {source}")
    return _read_hub(source)


def _file_in(folder: Path) -> Path:
    files = sorted(file for file in folder.iterdir() if file.suffix in _SUFFIXES)
    named = [file for file in files if file.stem == "train"] or files
    if len(named) != 1:
        found = [file.name for file in files]
        raise NotFoundError(f"no data file to choose: {folder}: expected train.jsonl or one file, found {found}")
    return named[0]


def _read_file(path: Path) -> RowSource:
    content = path.read_bytes()
    rows = tuple(_parse(content.decode("utf-8"), path))
    if not rows:
        raise UsageError(f"no rows: {path}")
    digest = hashlib.sha256(content).hexdigest()
    return RowSource(source=str(path.resolve()), split=path.stem, sha256=digest, rows=rows)


def _parse(text: str, path: Path) -> list[Row]:
    """Rows of one JSON list, or of one JSON object a line, whatever the file is called."""
    if text.lstrip().startswith("["):
        numbered = list(enumerate(_loads(text, f"{path}"), start=1))
    else:
        lines = enumerate(text.splitlines(), start=1)
        numbered = [(number, _loads(line, f"{path}: line {number}")) for number, line in lines if line.strip()]
    for number, row in numbered:
        if not isinstance(row, dict):
            raise UsageError(f"not a row: {path}: row {number}: expected a JSON object, found {type(row).__name__}")
    return [row for _, row in numbered]


def _loads(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"not JSON: {where}, column {error.colno}: {error.msg}") from error


def _read_hub(source: str) -> RowSource:
    """The train split of a hub data set; needs the optional `datasets` library."""
    name, _, config = source.partition(":")
    try:
        from datasets import load_dataset  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise NotFoundError(
            f"no such data file, and hub data sets need the datasets library: {source}",
            hint="give an existing file, or `pip install 'lmcleaner[hub]'`",
        ) from error
    try:
        rows = tuple(dict(row) for row in load_dataset(name, config or None, split="train"))
    except (OSError, ValueError) as error:
        raise NotFoundError(f"the data set can't be loaded: {source}: {error}") from error
    return RowSource(source=source, split="train", sha256=json_digest(rows), rows=rows)
