"""What `audit` measures anew: the error against the oracle, and an evaluation of all three models."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lmcleaner.audit.asked import asked_document
from lmcleaner.audit.deployment import deployment, deployment_problem
from lmcleaner.audit.evaluation import (
    EvaluationRows,
    Models,
    evaluated_on,
    evaluation_document,
    rows_to_evaluate,
    score_models,
)
from lmcleaner.audit.options import AuditOptions
from lmcleaner.audit.oracle import compare_with_oracle, model_at, replay_counterfactual
from lmcleaner.audit.statements import stated_forget_set, unequal
from lmcleaner.audit.stress import relearning_problem, relearning_rate, stress
from lmcleaner.audit.tasks import task_results
from lmcleaner.choices import Denominator
from lmcleaner.evaluation.comparison import Comparison, Side, compare
from lmcleaner.evaluation.scores import Scores
from lmcleaner.evaluation.tasks import Tasks, load_tasks
from lmcleaner.formats.audit_document import Document
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.progress import Progress
from lmcleaner.training.fingerprint import model_fingerprint
from lmcleaner.training.replay import open_replay, open_unlearned


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What was measured; nothing is written yet.

    Attributes:
        oracle: the comparison with the oracle; None where it wasn't asked for.
        evaluation: the evaluation; None where it wasn't asked for.
        scores: of each model that was evaluated.
    """

    oracle: dict[str, Any] | None = None
    evaluation: Document | None = None
    scores: Mapping[Side, Scores] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What an evaluation needs but the models.

    Attributes:
        rows: to evaluate on.
        lr: of the relearning; None without one.
        tasks: to run; None without any.
    """

    rows: EvaluationRows
    lr: float | None
    tasks: Tasks | None


def find_wanted(document: Document, log: TrainingLog, options: AuditOptions, progress: Progress) -> Wanted | None:
    """Reads what an evaluation needs, so that what is missing is known before anything is computed.

    Args:
        document: the audit document.
        log: the training log.
        options: what is asked for.
        progress: is told which parts there are no rows of.

    Returns:
        It, or None where no evaluation is asked for.

    Raises:
        NotFoundError: rows, tokenizer, tasks or a library aren't there.
        InsufficientLogError: the log doesn't hold the rows, or there are too few.
        UsageError: no learning rate can be told.
    """
    if options.evaluate is None:
        return None
    tasks = load_tasks(options.tasks, options.tasks_path, options.tasks_limit) if options.tasks else None
    rows = rows_to_evaluate(log, stated_forget_set(document), options.evaluate, options.model, progress)
    lr = relearning_rate(log, rows, options.relearn_lr) if options.stress else None
    return Wanted(rows=rows, lr=lr, tasks=tasks)


def measure(
    document: Document,
    log: TrainingLog,
    folder: Path,
    options: AuditOptions,
    wanted: Wanted | None,
    progress: Progress,
) -> Measured:
    """Replays the counterfactual once for all that needs it, and evaluates.

    Args:
        document: the audit document.
        log: the training log.
        folder: the output folder of `unlearn`; isn't changed.
        options: what is asked for.
        wanted: what `find_wanted` found for it.
        progress: is told of every step and batch.

    Returns:
        What was measured.
    """
    forget_set = stated_forget_set(document)
    replay = open_replay(log.manifest, options.model, options.device)
    trained = replay.load(log.parameters(log.num_steps))
    unlearned = open_unlearned(replay, folder, options.model)
    oracle = None
    counterfactual: Sequence[Tensor] = ()
    if options.oracle or options.gold is None:
        denominator = Denominator(document["config"].get("denominator", Denominator.LOGGED))
        counterfactual = replay_counterfactual(log, replay, forget_set, denominator, progress)
    if options.oracle:
        found = [parameter.detach() for parameter in unlearned.parameters]
        oracle = compare_with_oracle(log, replay, forget_set, trained, found, counterfactual)
    if wanted is None:
        return Measured(oracle=oracle)
    if options.gold is None:
        gold = model_at(replay, counterfactual)
    else:
        gold = open_unlearned(replay, options.gold, options.model).module
    models = {Side.BEFORE: model_at(replay, trained), Side.UNLEARNED: unlearned.module, Side.GOLD: gold}
    scores = score_models(models, wanted.rows.parts, wanted.rows.tokenizer, progress)
    exact = compare(scores, progress)
    evaluation = evaluation_document(scores, exact, wanted.rows, forget_set, _gold(options, gold))
    evaluation |= _further(models, exact, wanted, options, progress)
    evaluation |= {"asked": asked_document(options), "environment": evaluated_on(replay.device)}
    return Measured(oracle=oracle, evaluation=evaluation, scores=scores)


def _gold(options: AuditOptions, gold: nn.Module) -> Document:
    """What gold is; a model that was given is named by its fingerprint."""
    if options.gold is None:
        return {"gold": "oracle"}
    return {"gold": "model", "gold_model": model_fingerprint(gold)}


def _further(
    models: Models, exact: Sequence[Comparison], wanted: Wanted, options: AuditOptions, progress: Progress
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
