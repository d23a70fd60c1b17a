"""What an experiment leaves on the disk of each cell, and of all together."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmcleaner.audit.check import AuditReport
from lmcleaner.experiments.description import Cell
from lmcleaner.formats.audit_document import Document
from lmcleaner.formats.errors import DamagedError, ExistsError

RESULT = "evals/result.json"
PAGE = "evals/audit.html"
SUMMARY = "summary"
Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a run of experiments gave.

    Attributes:
        name: of the experiments.
        folder: where summary.json and summary.csv lie.
        rows: one a cell: its name, its choices in the grid, its state, and what was measured or why it failed.
    """

    name: str
    folder: Path
    rows: tuple[Row, ...]

    @property
    def exit_code(self) -> int:
        """The first failed cell's; else 1 if a verdict is poor or an audit failed; else 0."""
        failed = [int(row["exit_code"]) for row in self.rows if row["state"] == "failed"]
        is_poor = any(row.get("verdict") == "poor" or row.get("audit") == "failed" for row in self.rows)
        return failed[0] if failed else int(is_poor)


def measured(document: Document, report: AuditReport) -> Row:
    """The figures of a cell."""
    windows, result = document["windows"], document["result"]
    oracle = report.oracle or document["oracle"]
    errors = [w["linearization_error"] for w in windows if w["linearization_error"] is not None]
    row = {
        "verdict": result["verdict"],
        "audit": "passed" if report.passed else "failed",
        "relative_error": None if oracle is None else oracle["relative_error"],
        "estimated_error": result["estimated_error"],
        "linearization_error": max(errors, default=None),
        "change_norm": result["change_norm"],
        "samples": document["coverage"]["samples"],
        "occurrences": document["coverage"]["occurrences"],
        "gradients": sum(window["gradients"] for window in windows),
        "products": sum(window["hvp_calls"] for window in windows),
        "seconds": document["timing"]["sweep_seconds"],
        "peak_memory_bytes": document["timing"]["peak_memory_bytes"],
    }
    for rows in ("forgotten", "retained") if oracle is not None else ():
        for model in ("trained", "unlearned", "oracle"):
            answers = oracle[model][rows]
            row[f"{rows}_{model}"] = None if answers is None else answers["answer_probability"]
    return row


def finished(cell: Cell) -> Row | None:
    """The row of a cell that was finished before; None if it is still to be done.

    Raises:
        ExistsError: something else lies there, or it was made with other options.
        DamagedError: what lies there can't be read.
    """
    folder = cell.options.output
    assert folder is not None
    if not folder.exists():
        return None
    path = folder / RESULT
    if not path.is_file():
        raise ExistsError(f"not a finished cell: {folder}: expected {RESULT} in it", hint="move the folder away")
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        then, row = held["stated"], dict(held["row"])
        now = json.loads(json.dumps(cell.stated, default=str))
        keys = {(section, key) for stated in (then, now) for section in stated for key in stated[section]}
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"can't be read: {path}: {error!r}", hint="move the folder away") from error
    for section, key in sorted(keys):
        old, new = then.get(section, {}).get(key), now.get(section, {}).get(key)
        if old != new:
            raise ExistsError(
                f"the cell was finished with another {section}.{key}: {folder}: {old!r} then, {new!r} now",
                hint="give the experiments another name, or move the folder away",
            )
    return row


def write_result(folder: Path, cell: Cell, report: AuditReport, row: Row) -> None:
    """Writes what makes a cell a finished one, into the folder that gets its name afterwards."""
    evals = folder / "evals"
    evals.mkdir(exist_ok=True)  # an evaluation lies there
    checked = {"passed": report.passed, "checks": report.checks, "unchecked": report.unchecked}
    _write_json(evals / "audit.json", checked | {"oracle": report.oracle, "evaluation": report.evaluation})
    _write_json(folder / RESULT, {"stated": cell.stated, "row": row})


def write_summary(summary: Summary) -> None:
    """Writes all rows as JSON and as CSV."""
    summary.folder.mkdir(parents=True, exist_ok=True)
    document = {"name": summary.name, "exit_code": summary.exit_code, "cells": summary.rows}
    _write_json(summary.folder / f"{SUMMARY}.json", document)
    columns = list(dict.fromkeys(key for row in summary.rows for key in row))
    with (summary.folder / f"{SUMMARY}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(summary.rows)


def _write_json(path: Path, value: Mapping[str, Any] | Sequence[Any]) -> None:
    path.write_text(json.dumps(value, indent=2, default=str) + "\n", encoding="utf-8")
