"""What an evaluation was asked for, as its document states it, so that it can be measured again."""

from dataclasses import replace
from pathlib import Path

from lmcleaner.audit.options import AuditOptions, VerifyOptions
from lmcleaner.audit.statements import unequal
from lmcleaner.formats.audit_document import Document

ASKED = "asked"


def asked_document(options: AuditOptions) -> Document:
    """The `asked` of an evaluation.

    Args:
        options: that it was measured with.

    Returns:
        The options that serve an evaluation; places on this machine are absolute.
    """
    return {
        "evaluate": _place(options.evaluate),
        "gold": _place(options.gold),
        "deploy": [rounding.value for rounding in options.deploy],
        "stress": options.stress,
        "relearn_lr": options.relearn_lr,
        "tasks": list(options.tasks),
        "tasks_path": _place(options.tasks_path),
        "tasks_limit": options.tasks_limit,
    }


def asked_problem(evaluation: Document) -> str | None:
    """Whether an evaluation has the parts that were asked for, and no others.

    Args:
        evaluation: of a document, with `asked`.

    Returns:
        What is wrong, or None.
    """
    asked = evaluation[ASKED]
    given = "oracle" if asked["gold"] is None else "model"
    rate = evaluation.get("stress", {}).get("relearning", {}).get("lr")
    return (
        unequal("evaluation: gold", evaluation["gold"], given)
        or unequal("evaluation: gold_model", "gold_model" in evaluation, given == "model")
        or unequal("evaluation: deployment", sorted(evaluation.get("deployment", ())), sorted(asked["deploy"]))
        or unequal("evaluation: stress", "stress" in evaluation, asked["stress"])
        or unequal("evaluation: lr", rate, rate if asked["relearn_lr"] is None else asked["relearn_lr"])
        or unequal("evaluation: tasks", "tasks" in evaluation, bool(asked["tasks"]))
        or unequal("evaluation: limit", evaluation.get("tasks", {}).get("limit"), asked["tasks_limit"])
    )


def asked_again(evaluation: Document, options: VerifyOptions) -> AuditOptions:
    """The options to measure an evaluation with once more.

    Tasks of a folder are left out until somebody says where that folder lies: its files can hold code.

    Args:
        evaluation: of a document, with `asked`.
        options: where things lie now, if they moved.

    Returns:
        The options.

    Raises:
        UsageError: what the document states doesn't go together.
    """
    asked = evaluation[ASKED]
    stated = AuditOptions(
        model=options.model, device=options.device, evaluate=options.evaluate or asked["evaluate"],
        gold=options.gold or _path(asked["gold"]), deploy=asked["deploy"], stress=asked["stress"],
        relearn_lr=asked["relearn_lr"], tasks=asked["tasks"], tasks_path=_path(asked["tasks_path"]),
        tasks_limit=asked["tasks_limit"],
    )  # fmt: skip
    if stated.tasks_path is None:
        return stated
    if options.tasks_path is None:
        return without_tasks(stated)
    return replace(stated, tasks_path=options.tasks_path)


def without_tasks(options: AuditOptions) -> AuditOptions:
    """The same, but no tasks."""
    return replace(options, tasks=(), tasks_path=None, tasks_limit=None)


def _place(given: str | Path | None) -> str | None:
    """A name as it is, a path from the root."""
    return None if given is None else str(Path(given).resolve() if Path(given).exists() else given)


def _path(stated: str | None) -> Path | None:
    return None if stated is None else Path(stated)
