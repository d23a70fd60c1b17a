"""Requests as the tests of the ledger and of audits give them, and what they look at."""

from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from lmcleaner.audit.check import AuditReport
from lmcleaner.cli.main import app
from tiny_runs import TinyRun, unlearn_tiny


def served(run: TinyRun, output: Path, forget: str | list[str], **options: Any) -> dict[str, Any]:
    """Unlearns with the log's ledger; the audit document."""
    document = unlearn_tiny(run, output, forget=forget, **{"ledger": True, **options}).document
    assert document is not None
    return document


def lmcleaner(*arguments: object) -> Result:
    """The command line, in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def failed_checks(report: AuditReport) -> dict[str, str]:
    """Name -> problem of the checks that failed."""
    return {name: problem for name, problem in report.checks.items() if problem is not None}
