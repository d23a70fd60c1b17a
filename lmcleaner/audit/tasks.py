"""What general-ability tasks found, for an audit document."""

import math
from collections.abc import Mapping
from typing import Any

from lmcleaner.audit.evaluation import Models
from lmcleaner.evaluation.comparison import Side
from lmcleaner.evaluation.tasks import Tasks, run_tasks
from lmcleaner.formats.audit_document import Document
from lmcleaner.progress import Progress

_DIRECTIONS = {True: "higher", False: "lower", None: "unknown"}
_ONLY_FILTER = "none"  # how the harness names that there is no choice of one

Results = Mapping[Side, Mapping[str, Any]]


def task_results(models: Models, tokenizer: Any, tasks: Tasks, progress: Progress) -> Document:
    """Runs tasks on all three models.

    Args:
        models: the models; they aren't changed.
        tokenizer: of all of them.
        tasks: which.
        progress: is told of every model.

    Returns:
        `tasks` of an evaluation: of each task and group its metrics, with the harness's standard errors.
    """
    found = run_tasks({side.value: model for side, model in models.items()}, tokenizer, tasks, progress)
    return tasks_document({side: found[side.value] for side in models}, tasks)


def tasks_document(found: Results, tasks: Tasks) -> Document:
    """The harness's results side by side.

    Args:
        found: what the harness returned for each model.
        tasks: which were asked for; they come first.

    Returns:
        The document.
    """
    names = found[Side.UNLEARNED]["results"]
    order = [name for name in tasks.names if name in names] + [name for name in names if name not in tasks.names]
    results = {name: _task(found, name) for name in order}
    return {
        "harness": tasks.harness,
        "limit": tasks.limit,
        "results": {name: result for name, result in results.items() if result["metrics"]},
    }


def _task(found: Results, name: str) -> Document:
    """A group without an aggregate has no metrics."""
    one = found[Side.UNLEARNED]
    own = one["results"][name]
    keys = [key for key in own if "," in key and "_stderr," not in key]
    return {
        "rows": own.get("sample_len", 0),
        "shots": one["n-shot"].get(name),
        "version": str(one["versions"].get(name)),
        "metrics": {_named(key): _metric(found, name, key) for key in keys},
    }


def _named(key: str) -> str:
    """A metric, with the filter of the answers if there are several."""
    metric, _, chosen = key.partition(",")
    return metric if chosen == _ONLY_FILTER else f"{metric}, {chosen}"


def _metric(found: Results, name: str, key: str) -> Document:
    metric, _, chosen = key.partition(",")
    directions = found[Side.UNLEARNED]["higher_is_better"].get(name, {})
    sides = {
        side.value: {
            "value": _number(one["results"][name][key]),
            "stderr": _number(one["results"][name].get(f"{metric}_stderr,{chosen}")),
        }
        for side, one in found.items()
    }
    return {"direction": _DIRECTIONS[directions.get(metric)], **sides}


def _number(value: object) -> float | None:
    """None where the harness has none, which it spells "N/A"."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
