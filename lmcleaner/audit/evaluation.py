"""The evaluation of an audit: which rows, what was found on them, and where it is written."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lmcleaner.audit.oracle import counted_samples
from lmcleaner.data.rows import RowSource, read_rows
from lmcleaner.evaluation.comparison import (
    LEVEL,
    RESAMPLES,
    SEED,
    Comparison,
    Estimate,
    Side,
    void_reason,
)
from lmcleaner.evaluation.evaluate import evaluate
from lmcleaner.evaluation.harness import EVAL_FILE, SUMMARY_FILE, eval_document, summary_document
from lmcleaner.evaluation.libraries import check_libraries
from lmcleaner.evaluation.parts import PartRows, Parts, part_rows, reworded
from lmcleaner.evaluation.scores import Part, Scores
from lmcleaner.evaluation.spec import OF_THE_LOG, named_sources
from lmcleaner.formats.audit_document import Document, with_evaluation
from lmcleaner.formats.canonical import json_digest
from lmcleaner.formats.errors import InsufficientLogError
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.store import storage_errors
from lmcleaner.progress import Progress
from lmcleaner.training.models import load_tokenizer
from lmcleaner.training.numerics import computed_on
from lmcleaner.unlearning.naming import encode_rows
from lmcleaner.unlearning.request import ForgetSet

EVALS = "evals"  # folder beside the audit document

Models = Mapping[Side, nn.Module]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRows:
    """What models are evaluated on.

    Attributes:
        parts: the rows.
        digests: SHA-256 of each part's file, or of its rows where there is no file.
        tokenizer: the run's.
        reworded: the rows of those parts that have their questions in other words, too.
    """

    parts: Parts
    digests: Mapping[Part, str]
    tokenizer: Any
    reworded: Parts = field(default_factory=dict)


def rows_to_evaluate(
    log: TrainingLog, forget_set: ForgetSet, spec: str, source: str | None, progress: Progress
) -> EvaluationRows:
    """Reads all that an evaluation needs but the models, so that what is missing is known before they are made.

    Args:
        log: the training log.
        forget_set: what was forgotten.
        spec: "log" for the rows of the log, or what `named_sources` reads.
        source: where the base model with its tokenizer lies now, if it moved.
        progress: is told which parts there are no rows of.

    Returns:
        The rows.

    Raises:
        NotFoundError: the rows, the tokenizer or a library of the extra `evaluate` aren't there.
        InsufficientLogError: no forgotten row has a counted token, or the log doesn't say how rows became samples.
    """
    check_libraries()
    tokenizer = load_tokenizer(source or log.manifest.model.source)
    if spec == OF_THE_LOG:
        return _rows_of_the_log(log, forget_set, tokenizer)
    named = named_sources(spec, str(log.manifest.data.get("source", "")), progress)
    sources = {part: read_rows(place) for part, place in named.items()}
    others = {part: found for part, source in sources.items() if (found := reworded(source)) is not None}
    return EvaluationRows(
        parts=_encoded(sources, log, tokenizer),
        digests={part: found.sha256 for part, found in sources.items()},
        tokenizer=tokenizer,
        reworded=_encoded(others, log, tokenizer),
    )


def evaluated_on(device: torch.device) -> dict[str, str]:
    """The `environment` of an evaluation.

    Args:
        device: where it was computed.

    Returns:
        As `computed_on`, but for the number of threads that a shell asks for: the run's is restored.
    """
    return {name: value for name, value in computed_on(device).items() if name != "omp_num_threads"}


def score_models(models: Models, parts: Parts, tokenizer: Any, progress: Progress) -> Mapping[Side, Scores]:
    """Scores all three models.

    Args:
        models: the models.
        parts: rows to evaluate them on.
        tokenizer: of all of them.
        progress: is told of every batch.

    Returns:
        The scores of each.
    """
    named = {side.value: model for side, model in models.items()}
    found = evaluate(named, tokenizer, parts, gold=Side.GOLD.value, progress=progress)
    return {side: found[side.value] for side in models}


def evaluation_document(
    scores: Mapping[Side, Scores],
    found: Sequence[Comparison],
    rows: EvaluationRows,
    forget_set: ForgetSet,
    gold: Document,
) -> Document:
    """The `evaluation` of an audit document, which holds no content of a row.

    Args:
        scores: of each model.
        found: their comparison.
        rows: what they were evaluated on.
        forget_set: what was forgotten.
        gold: what the gold model is: as `gold` "oracle" or "model", and of a model the fingerprint as `gold_model`.

    Returns:
        The document.
    """
    parts = {name: {"rows": len(part.samples), "sha256": rows.digests[name]} for name, part in rows.parts.items()}
    return {
        "rows": {name.value: part for name, part in parts.items()},
        "requested": sum(sample.digest in forget_set.digests for sample in rows.parts[Part.FORGET].samples),
        **gold,
        "void": void_reason(scores),
        "intervals": {"level": LEVEL, "resamples": RESAMPLES, "seed": SEED},
        "metrics": metrics_document(found),
    }


def metrics_document(found: Sequence[Comparison]) -> Document:
    """The `metrics` of a document: all values, intervals and verdicts."""
    return {comparison.metric.name: _metric(comparison) for comparison in found}


def evals_files(scores: Mapping[Side, Scores]) -> dict[str, Document]:
    """The scores in open-unlearning's form.

    Args:
        scores: of each model; the unlearned one's lie where open-unlearning looks, the others' in folders of their own.

    Returns:
        Path beside the audit document -> content.
    """
    files: dict[str, Document] = {}
    for side, own in scores.items():
        document = eval_document(own, scores[Side.GOLD])
        files |= dict(zip(_evals_of(side), (document, summary_document(document)), strict=True))
    return files


def evals_paths() -> set[str]:
    """The paths of `evals_files`."""
    return {path for side in Side for path in _evals_of(side)}


def _evals_of(side: Side) -> tuple[str, str]:
    """Where the scores of a model and their summary lie beside the document."""
    place = EVALS if side is Side.UNLEARNED else f"{EVALS}/{side}"
    return f"{place}/{EVAL_FILE}", f"{place}/{SUMMARY_FILE}"


def write_evaluation(folder: Path, evaluation: Document, scores: Mapping[Side, Scores]) -> None:
    """Writes an evaluation into `audit.json`, and the scores into `evals/` as open-unlearning keeps them.

    Args:
        folder: the output folder of `unlearn`.
        evaluation: for the document.
        scores: of each model.

    Raises:
        ResourceError: the files can't be written.
    """
    with storage_errors(folder):
        for name, content in evals_files(scores).items():
            place = folder / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        with_evaluation(folder, evaluation)


def _rows_of_the_log(log: TrainingLog, forget_set: ForgetSet, tokenizer: Any) -> EvaluationRows:
    forgotten = counted_samples(log, forget_set, inside=True)
    if not forgotten:
        raise InsufficientLogError("nothing to evaluate: no forgotten row has a token that the loss counts")
    chosen = {Part.FORGET: forgotten, Part.RETAIN: counted_samples(log, forget_set, inside=False)}
    parts = {part: PartRows(samples=samples) for part, samples in chosen.items() if samples}
    digests = {part: json_digest([sample.digest.hex() for sample in rows.samples]) for part, rows in parts.items()}
    return EvaluationRows(parts=parts, digests=digests, tokenizer=tokenizer)


def _encoded(sources: Mapping[Part, RowSource], log: TrainingLog, tokenizer: Any) -> Parts:
    return {part: part_rows(found, lambda it: encode_rows(log, it, tokenizer)) for part, found in sources.items()}


def _metric(found: Comparison) -> Document:
    sides = {side.value: _estimate(estimate) for side, estimate in found.sides.items()}
    return {"direction": found.metric.direction.value, **sides, "closer_to_gold": found.closer.value}


def _estimate(estimate: Estimate) -> Document:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}
