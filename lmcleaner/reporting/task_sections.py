"""General-ability tasks, before, unlearned and gold."""

from lmcleaner.evaluation.wording import SIDES
from lmcleaner.formats.audit_document import Document
from lmcleaner.reporting.evaluation_sections import better
from lmcleaner.reporting.markup import pairs, table
from lmcleaner.reporting.page import Section
from lmcleaner.reporting.values import at, shown


def ability(evaluation: Document | None) -> Section:
    """The harness's tasks with its standard errors; empty where none were run.

    Args:
        evaluation: of a valid document, or fresh; None without one.

    Returns:
        The section.
    """
    tasks = at(evaluation, "tasks")
    if tasks is None:
        return Section("General ability", [])
    rows = [
        [name, task["rows"], metric, better(found["direction"]), *(_measured(found[side]) for side in SIDES.values())]
        for name, task in tasks["results"].items()
        for metric, found in task["metrics"].items()
    ]
    about = {
        "lm-evaluation-harness": tasks["harness"],
        "rows of each task": "all" if tasks["limit"] is None else f"at most {shown(tasks['limit'])}",
    }
    caption = "Tasks, ± the harness's standard errors"
    columns = ["Task", "Rows", "Metric", "Better", *SIDES]
    return Section("General ability", [table(caption, columns, rows), pairs("What ran them", about)])


def _measured(found: Document) -> str:
    value, error = found["value"], found["stderr"]
    return shown(value) if error is None else f"{shown(value)} ± {shown(error)}"
