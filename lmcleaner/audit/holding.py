"""Holds what a document and the files beside it state against what was measured again."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lmcleaner.audit.agreement import Agreement
from lmcleaner.audit.asked import ASKED
from lmcleaner.audit.evaluation import EVALS, evals_files
from lmcleaner.audit.measuring import Measured
from lmcleaner.formats.audit_document import EVALUATION, Document, read_json
from lmcleaner.formats.errors import DamagedError

ENVIRONMENT, ORACLE = "environment", "oracle"

Tolerance = Callable[[Document], float]


def held_against(
    measured: Measured,
    document: Document,
    evaluation: Document | None,
    folder: Path,
    tolerance: Tolerance,
) -> dict[str, Agreement]:
    """Compares every value.

    Args:
        measured: what was measured again.
        document: the audit document without its evaluation.
        evaluation: the evaluation that it holds, with `asked`; None without one.
        folder: where both lie.
        tolerance: how far numbers may be apart that were measured in an environment.

    Returns:
        Name of each check, and what it found.
    """
    found = dict[str, Agreement]()
    if measured.oracle is not None:
        found[ORACLE] = Agreement(tolerance(document[ENVIRONMENT]))
        found[ORACLE].compare(ORACLE, document[ORACLE], _as_json(measured.oracle))
    if evaluation is not None and measured.evaluation is not None:
        found |= {name: Agreement(tolerance(evaluation[ENVIRONMENT])) for name in (EVALUATION, EVALS)}
        left_out = {ASKED, ENVIRONMENT} | ({"tasks"} - measured.evaluation.keys())
        stated, own = (_without(one, left_out) for one in (evaluation, _as_json(measured.evaluation)))
        found[EVALUATION].compare(EVALUATION, stated, own)
        for place, content in evals_files(measured.scores).items():
            compare_file(found[EVALS], folder, place, content)
    return found


def compare_file(agreement: Agreement, folder: Path, place: str, content: Document) -> None:
    """Compares a file of scores.

    Args:
        agreement: is told what is wrong.
        folder: where the document lies.
        place: of the file beside it.
        content: what the file should hold.
    """
    try:
        stated = read_json(folder / place)
    except FileNotFoundError:
        agreement.problems.append(f"{place}: it is missing")
    except DamagedError as error:
        agreement.problems.append(error.message)
    else:
        agreement.compare(place, stated, _as_json(content))


def _as_json(value: Any) -> Any:
    """As it reads once it was written."""
    return json.loads(json.dumps(value))


def _without(document: Document, names: set[str]) -> Document:
    return {name: value for name, value in document.items() if name not in names}
