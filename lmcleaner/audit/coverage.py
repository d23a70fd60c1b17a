"""Whether a document's requests cover all uses of what they name, each by itself and all together."""

import numpy as np

from lmcleaner.audit.statements import (
    edges_problem,
    forget_set_problem,
    handled_problem,
    stated_windows,
    unequal,
    windows_problem,
)
from lmcleaner.choices import Level
from lmcleaner.formats.audit_document import Document
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.unlearning.request import ForgetSet, Request, num_covered, occurrences_in


def request_checks(document: Document, forget_set: ForgetSet, log: TrainingLog) -> dict[str, str | None]:
    """Whether the digests were really used, and all of their uses were covered.

    Args:
        document: the audit document.
        forget_set: its requests.
        log: the log that it is about.

    Returns:
        Name of each check, and what is wrong; None where it passed.
    """
    unknown = sorted(digest.hex() for digest in forget_set.digests - log.sample_rows.keys())
    if unknown:
        return {"samples": f"the run never saw {len(unknown)} of the samples, such as {unknown[0]}"}
    problems = (_problem_of_part(request, log) for request in forget_set.requests)
    used = sorted({step for request in forget_set.requests for step in _steps_of(log, request)})
    windows = stated_windows(document, log, used)
    coverage, covered = document["coverage"], num_covered(log, forget_set.requests)
    stated = (coverage["samples"], coverage["occurrences"], coverage["steps"])
    return {
        "samples": forget_set_problem(document, forget_set),
        "coverage": next((problem for problem in problems if problem is not None), None)
        or unequal("samples, occurrences and steps", stated, (len(forget_set.digests), covered, len(used)))
        or unequal("steps", document["request"]["steps"], used)
        or handled_problem(document, covered),
        "windows": windows_problem(document, windows) or edges_problem(document, windows),
    }


def _problem_of_part(request: Request, log: TrainingLog) -> str | None:
    """What is wrong with the occurrences and steps of one request."""
    found = occurrences_in(log, request.digests, request.steps)
    return unequal("occurrences", request.num_occurrences, found) or unequal(
        "steps", list(request.steps), _steps_of(log, request)
    )


def _steps_of(log: TrainingLog, request: Request) -> list[int]:
    """Steps that a request must cover: all that hold one of its samples, or the steps that it names as a whole."""
    is_in_named = np.isin(log.occurrence_steps, request.steps)
    is_sample = np.isin(log.table("occurrences/sample"), [log.sample_rows[digest] for digest in request.digests])
    if request.level is Level.BATCH and not (is_in_named & ~is_sample).any():
        return sorted(request.step_set)
    return [int(step) for step in np.unique(log.occurrence_steps[is_sample])]
