"""The deployment check of an evaluation: the same metrics of rounded models."""

from collections.abc import Sequence
from dataclasses import asdict

from lmcleaner.audit.evaluation import EvaluationRows, Models, metrics_document, score_models
from lmcleaner.choices import Rounding
from lmcleaner.evaluation.comparison import Comparison, Finding, compare, void_reason
from lmcleaner.evaluation.deployment import returns
from lmcleaner.evaluation.rounding import rounded_model
from lmcleaner.formats.audit_document import Document
from lmcleaner.progress import Progress

_FORGOT = "with its weights rounded the model before doesn't know what was to forget"


def deployment(
    models: Models, rows: EvaluationRows, exact: Sequence[Comparison], roundings: Sequence[Rounding], progress: Progress
) -> Document:
    """Evaluates all three models with rounded weights.

    Args:
        models: the models; they aren't changed, and one rounding after the other is in memory beside them.
        rows: what to evaluate them on.
        exact: the comparison of the models as they are, on the same rows.
        roundings: which.
        progress: is told of every batch.

    Returns:
        For each rounding its `metrics`, what `returned`, and why it shows nothing, or null, as `void`.
    """
    return {rounding.value: _rounded(models, rows, exact, rounding, progress) for rounding in roundings}


def _came_back(rounded: Document) -> list[str]:
    """The metrics by which a rounding brought back what was forgotten; none where it shows nothing."""
    if rounded["void"] is not None:
        return []
    return [name for name, found in rounded["returned"].items() if found["came_back"] == Finding.YES]


def deployment_problem(document: Document) -> str | None:
    """Which roundings bring back what was forgotten.

    Args:
        document: what `deployment` returned.

    Returns:
        The problem, or None.
    """
    found = {rounding: _came_back(rounded) for rounding, rounded in document.items()}
    problems = [f"{rounding} ({', '.join(names)})" for rounding, names in found.items() if names]
    return f"forgetting came back: {'; '.join(problems)}" if problems else None


def _rounded(
    models: Models, rows: EvaluationRows, exact: Sequence[Comparison], rounding: Rounding, progress: Progress
) -> Document:
    progress.say(f"weights rounded to {rounding}")
    rounded = {side: rounded_model(model, rounding) for side, model in models.items()}
    scores = score_models(rounded, rows.parts, rows.tokenizer, progress)
    found = compare(scores, progress)
    return {
        "void": void_reason(scores, _FORGOT),
        "metrics": metrics_document(found),
        "returned": {name: asdict(returned) for name, returned in returns(exact, found).items()},
    }
