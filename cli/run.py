"""`lmcleaner run`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lmcleaner.cli.console import Reporter, print_json, print_table, print_text
from lmcleaner.cli.shared import AsJson, Quiet

if TYPE_CHECKING:
    from lmcleaner.experiments.description import Experiments

# Columns of the table beside a cell's name and choices; summary.csv has more.
_COLUMNS = ("state", "verdict", "audit", "relative_error", "estimated_error", "seconds")


def run(
    file: Annotated[Path, typer.Argument(metavar="FILE.yaml", help="What to record, to unlearn and to check.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the file, list the cells and stop.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Run experiments from a file: recordings, requests and audits, or a grid of them; finished cells aren't repeated.

    Example: `lmcleaner run experiments.yaml`
    """
    from lmcleaner.experiments.description import read_experiments

    experiments = read_experiments(file)
    if dry_run:
        _print_cells(experiments, as_json=as_json)
        return
    from lmcleaner.experiments.running import run_experiments

    with Reporter(quiet=quiet or as_json) as reporter:
        summary = run_experiments(experiments, reporter)
    if as_json:
        print_json({"name": summary.name, "exit_code": summary.exit_code, "cells": summary.rows})
    else:
        choices = list(experiments.cells[0].choices)
        print_table(["cell", *choices, *_COLUMNS], summary.rows)
        for row in summary.rows:
            if row["state"] == "failed":
                print_text(f"failed   {row['cell']}: {row['error']}")
        print_text(f"summary  {summary.folder}/summary.json, summary.csv")
    if summary.exit_code:
        raise typer.Exit(summary.exit_code)


def _print_cells(experiments: "Experiments", *, as_json: bool) -> None:
    cells: list[dict[str, Any]] = [
        {
            "cell": cell.name,
            "log": cell.recording.log,
            "is_there": bool(cell.options.output and cell.options.output.exists()),
        }
        for cell in experiments.cells
    ]
    if as_json:
        print_json({"name": experiments.name, "cells": cells})
        return
    print_table(["cell", "log", "is_there"], cells)
    print_text("dry run: nothing was changed")
