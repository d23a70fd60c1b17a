"""Rows of a file: JSON, JSON lines, CSV or Parquet."""

import csv
import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from lmcleaner.formats.errors import NotFoundError, UsageError

Row = dict[str, Any]


def rows_of(path: Path, content: bytes) -> list[Row]:
    """The rows that a file holds, in order.

    Args:
        path: of the file; a name that ends in none of `SUFFIXES` is read as JSON.
        content: its bytes.

    Returns:
        One mapping from column to value a row.

    Raises:
        UsageError: something is not a row, named by its line or number.
        NotFoundError: the library for Parquet isn't there.
    """
    if path.suffix == ".parquet":
        return _parquet_rows(path, content)
    return _TEXTS.get(path.suffix, _json_rows)(_text(path, content), path)


def _text(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UsageError(f"not UTF-8: {path}: line {line}: {error.reason}", hint="save the file as UTF-8") from error


def _json_rows(text: str, path: Path) -> list[Row]:
    """Rows of one JSON list, or of one JSON object a line, whatever the file is called."""
    if text.lstrip().startswith("["):
        numbered = [(f"row {number}", row) for number, row in enumerate(_loads(text, f"{path}"), start=1)]
    else:
        lines = [(f"line {number}", line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
        numbered = [(place, _loads(line, f"{path}: {place}")) for place, line in lines]
    for place, row in numbered:
        if not isinstance(row, dict):
            raise UsageError(f"not a row: {path}: {place}: expected a JSON object, found {type(row).__name__}")
    return [row for _, row in numbered]


def _loads(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f", line {error.lineno}" if error.lineno > 1 else ""
        raise UsageError(f"not JSON: {where}{line}, column {error.colno}: {error.msg}") from error


def _csv_rows(text: str, path: Path) -> list[Row]:
    """Rows of a table with a header, separated by commas (RFC 4180)."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, [])
        if len(set(header)) != len(header):
            raise UsageError(f"not a header: {path}: line 1: expected distinct columns, found {header}")
        return list(_as_rows(header, reader, lambda: f"{path}: line {reader.line_num}"))
    except csv.Error as error:
        raise UsageError(f"not CSV: {path}: line {reader.line_num}: {error}") from error


def _as_rows(header: list[str], lines: Iterable[list[str]], where: Callable[[], str]) -> Iterable[Row]:
    for values in lines:
        if not values:
            continue
        if len(values) != len(header):
            raise UsageError(f"not a row: {where()}: expected {len(header)} values, found {len(values)}")
        yield dict(zip(header, values, strict=True))


def _parquet_rows(path: Path, content: bytes) -> list[Row]:
    try:
        from pyarrow import ArrowException, BufferReader
        from pyarrow.parquet import read_table
    except ImportError as error:
        raise NotFoundError(
            f"Parquet needs the pyarrow library: {path}", hint="`pip install 'lmcleaner[datasets]'`"
        ) from error
    try:
        return list(read_table(BufferReader(content)).to_pylist())
    except (ArrowException, OSError) as error:
        raise UsageError(f"not Parquet: {path}: {error}") from error


_TEXTS: dict[str, Callable[[str, Path], list[Row]]] = {".json": _json_rows, ".jsonl": _json_rows, ".csv": _csv_rows}
SUFFIXES = (*_TEXTS, ".parquet")
