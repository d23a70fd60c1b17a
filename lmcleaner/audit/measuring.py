"""What `audit` measures anew: the error against the oracle, and an evaluation of all three models."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from lmcleaner.audit.deployment import deployment, deployment_problem
from lmcleaner.audit.evaluation import evaluation_document, rows_to_evaluate, score_models, write_evaluation
from lmcleaner.audit.options import AuditOptions
from lmcleaner.audit.oracle import compare_with_oracle, model_at, replay_counterfactual
from lmcleaner.audit.statements import stated_forget_set, unequal
from lmcleaner.audit.stress import relearning_problem, relearning_rate, stress
from lmcleaner.choices import Denominator
from lmcleaner.evaluation.comparison import Side, compare
from lmcleaner.formats.audit_document import Document
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.progress import Progress
from lmcleaner.training.replay import open_replay, open_unlearned

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
    forget_set, rows = stated_forget_set(document), None
    lr = None
    if options.evaluate is not None:
        rows = rows_to_evaluate(log, forget_set, options.evaluate, options.model, progress)
        lr = relearning_rate(log, rows, options.relearn_lr) if options.stress else None
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
    if rows is not None:
        if options.gold is None:
            kind, gold = "oracle", model_at(replay, counterfactual)
        else:
            kind, gold = "model", open_unlearned(replay, options.gold, options.model).module
        models = {Side.BEFORE: model_at(replay, trained), Side.UNLEARNED: unlearned.module, Side.GOLD: gold}
        scores = score_models(models, rows.parts, rows.tokenizer, progress)
        exact = compare(scores, progress)
        evaluation = evaluation_document(scores, exact, rows, forget_set, kind)
        if options.deploy:
            evaluation["deployment"] = deployment(models, rows, exact, options.deploy, progress)
        if lr is not None:
            evaluation["stress"] = stress(models, rows, lr, progress)
        write_evaluation(folder, evaluation, scores)
    return oracle, evaluation


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
