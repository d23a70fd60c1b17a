"""What `audit` measures anew: the error against the oracle, and an evaluation of all three models."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lmcleaner.audit.deployment import deployment, deployment_problem
from lmcleaner.audit.evaluation import (
    EvaluationRows,
    Models,
    evaluation_document,
    rows_to_evaluate,
    score_models,
    write_evaluation,
)
from lmcleaner.audit.options import AuditOptions
from lmcleaner.audit.oracle import compare_with_oracle, model_at, replay_counterfactual
from lmcleaner.audit.statements import stated_forget_set, unequal
from lmcleaner.audit.stress import relearning_problem, relearning_rate, stress
from lmcleaner.audit.tasks import task_results
from lmcleaner.choices import Denominator
from lmcleaner.evaluation.comparison import Comparison, Side, compare
from lmcleaner.evaluation.tasks import Tasks, load_tasks
from lmcleaner.formats.audit_document import Document
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.progress import Progress
from lmcleaner.training.replay import open_replay, open_unlearned
from lmcleaner.unlearning.request import ForgetSet

Measured = dict[str, Any] | None


def measure(
    document: Document, log: TrainingLog, folder: Path, options: AuditOptions, progress: Progress
) -> tuple[Measured, Measured]:
    """Replays the counterfactual once for all that needs it, and evaluates.

    What an evaluation lacks is found out first.

    Args:
        document: the audit document.
        log: the training log.
        folder: the output folder of `unlearn`; an evaluation is written into it.
        options: what is asked for.
        progress: is told of every step and batch.

    Returns:
        The comparison with the oracle and the evaluation, None where it isn't asked for.
    """
    forget_set, wanted = stated_forget_set(document), None
    if options.evaluate is not None:
        wanted = _wanted(log, forget_set, options.evaluate, options, progress)
    replay = open_replay(log.manifest, options.model, options.device)
    trained = replay.load(log.parameters(log.num_steps))
    unlearned = open_unlearned(replay, folder, options.model)
    oracle = evaluation = None
    counterfactual: Sequence[Tensor] = ()
    if options.oracle or options.gold is None:
        denominator = Denominator(document["config"].get("denominator", Denominator.LOGGED))
        counterfactual = replay_counterfactual(log, replay, forget_set, denominator, progress)
    if options.oracle:
        found = [parameter.detach() for parameter in unlearned.parameters]
        oracle = compare_with_oracle(log, replay, forget_set, trained, found, counterfactual)
    if wanted is not None:
        if options.gold is None:
            kind, gold = "oracle", model_at(replay, counterfactual)
        else:
            kind, gold = "model", open_unlearned(replay, options.gold, options.model).module
        models = {Side.BEFORE: model_at(replay, trained), Side.UNLEARNED: unlearned.module, Side.GOLD: gold}
        scores = score_models(models, wanted.rows.parts, wanted.rows.tokenizer, progress)
        exact = compare(scores, progress)
        evaluation = evaluation_document(scores, exact, wanted.rows, forget_set, kind)
        evaluation |= _further(models, exact, wanted, options, progress)
        write_evaluation(folder, evaluation, scores)
    return oracle, evaluation


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """What an evaluation needs but the models."""

    rows: EvaluationRows
    lr: float | None  # of the relearning; None without one
    tasks: Tasks | None


def _wanted(log: TrainingLog, forget_set: ForgetSet, spec: str, options: AuditOptions, progress: Progress) -> _Wanted:
    tasks = load_tasks(options.tasks, options.tasks_path, options.tasks_limit) if options.tasks else None
    rows = rows_to_evaluate(log, forget_set, spec, options.model, progress)
    lr = relearning_rate(log, rows, options.relearn_lr) if options.stress else None
    return _Wanted(rows=rows, lr=lr, tasks=tasks)


def _further(
    models: Models, exact: Sequence[Comparison], wanted: _Wanted, options: AuditOptions, progress: Progress
) -> Document:
    """What else was asked for."""
    found: Document = {}
    if options.deploy:
        found["deployment"] = deployment(models, wanted.rows, exact, options.deploy, progress)
    if wanted.lr is not None:
        found["stress"] = stress(models, wanted.rows, wanted.lr, progress)
    if wanted.tasks is not None:
        found["tasks"] = task_results(models, wanted.rows.tokenizer, wanted.tasks, progress)
    return found


def oracle_problem(document: Document, oracle: dict[str, Any], largest: float) -> str | None:
    """Whether an oracle's relative error is small enough, and the one that the document states.

    Args:
        document: the audit document.
        oracle: the comparison that was made now.
        largest: relative error that passes.

    Returns:
        The problem, or None.
    """
    limit = min(0.9, largest)
    if oracle["relative_error"] >= limit:
        return f"the relative error is {oracle['relative_error']:.4f}, expected below {limit:g}"
    stated = document["oracle"]
    if stated is not None and not math.isclose(stated["relative_error"], oracle["relative_error"], abs_tol=1e-3):
        return unequal("relative_error", stated["relative_error"], oracle["relative_error"])
    return None


def evaluation_checks(evaluation: Document) -> dict[str, str | None]:
    """What an evaluation shows, as checks.

    Args:
        evaluation: the one that was made now.

    Returns:
        For each check what is wrong, or None: the model knew what it was to forget; rounding brought nothing back; gold
        is learned as fast.
    """
    checks = {"evaluation": evaluation["void"]}
    if "deployment" in evaluation:
        checks["deployment"] = deployment_problem(evaluation["deployment"])
    if "stress" in evaluation:
        checks["relearning"] = relearning_problem(evaluation["stress"])
    return checks
