"""The stress of an evaluation: relearning, and questions in other words."""

from dataclasses import asdict
from typing import Any

from lmcleaner.audit.evaluation import EvaluationRows, Models, metrics_document, score_models
from lmcleaner.evaluation.comparison import SEED, Finding, Side, compare, void_reason
from lmcleaner.evaluation.evaluate import MAX_NEW_TOKENS
from lmcleaner.evaluation.relearning import BATCH_SIZE, MARKS, lead, relearn, split_rows
from lmcleaner.evaluation.scores import Part
from lmcleaner.formats.audit_document import Document
from lmcleaner.formats.errors import InsufficientLogError, UsageError
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.progress import Progress

_LEAST_ROWS = 4  # half of them are measured
_RELEARNED = (Side.UNLEARNED, Side.GOLD)


def relearning_rate(log: TrainingLog, rows: EvaluationRows, given: float | None) -> float:
    """The learning rate to relearn with; also makes sure that there is something to relearn.

    Args:
        log: the training log.
        rows: what models are evaluated on.
        given: the rate, if somebody chose one.

    Returns:
        It, or the run's largest.

    Raises:
        InsufficientLogError: there are fewer than four rows to forget; one measured row has no interval.
        UsageError: none was given, and the run's isn't one of Adam's.
    """
    found = len(rows.parts[Part.FORGET].samples)
    if found < _LEAST_ROWS:
        raise InsufficientLogError(
            f"too little to relearn: expected {_LEAST_ROWS} rows to forget at least, found {found}",
            hint="leave --stress out, or give more rows with --evaluate",
        )
    if given is not None:
        return given
    name = log.manifest.optimizer.name
    if "Adam" not in name:
        raise UsageError(
            f"relearning takes AdamW, and the run's learning rate is for {name}", hint="choose one with --relearn-lr"
        )
    return float(log.table("steps/lr").max())


def stress(models: Models, rows: EvaluationRows, lr: float, progress: Progress) -> Document:
    """Learns again what was forgotten, and asks in other words.

    Args:
        models: the models; they aren't changed.
        rows: what to evaluate them on.
        lr: learning rate of the relearning.
        progress: is told of every batch.

    Returns:
        `relearning` and `reworded`; the latter is null where the rows have no question in other words.
    """
    return {"relearning": _relearning(models, rows, lr, progress), "reworded": _reworded(models, rows, progress)}


def relearning_problem(document: Document) -> str | None:
    """Whether the unlearned model learns faster than gold.

    Args:
        document: what `stress` returned.

    Returns:
        The problem, or None.
    """
    leads = document["relearning"]["lead"]
    names = [name for name, found in leads.items() if found["faster"] == Finding.YES]
    return f"traces are left: it relearns faster than gold, by {' and '.join(names)}" if names else None


def _relearning(models: Models, rows: EvaluationRows, lr: float, progress: Progress) -> Document:
    learned, measured = split_rows(rows.parts[Part.FORGET].samples)
    curves = {
        side: relearn(
            models[side], learned, measured, rows.tokenizer, lr=lr, max_new_tokens=MAX_NEW_TOKENS, progress=progress,
            what=f"relearning from {side}",
        )
        for side in _RELEARNED
    }  # fmt: skip
    unlearned, gold = (curves[side] for side in _RELEARNED)
    means = {
        side.value: {column: values.mean(axis=1).tolist() for column, values in columns.items()}
        for side, columns in curves.items()
    }
    return {
        "lr": lr,
        "seed": SEED,
        "batch_size": BATCH_SIZE,
        "rows": {"learned": len(learned), "measured": len(measured)},
        "steps": list(MARKS),
        **means,
        "lead": {column: asdict(lead(values, gold[column])) for column, values in unlearned.items()},
    }


def _reworded(models: Models, rows: EvaluationRows, progress: Progress) -> dict[str, Any] | None:
    if Part.FORGET not in rows.reworded:
        progress.say("not asked in other words: the rows to forget have no paraphrased_question")
        return None
    scores = score_models(models, rows.reworded, rows.tokenizer, progress)
    return {
        "rows": {part.value: len(found.samples) for part, found in rows.reworded.items()},
        "void": void_reason(scores),
        "metrics": metrics_document(compare(scores, progress)),
    }
