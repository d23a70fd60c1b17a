"""Evaluates the logged, the unlearned and the gold model, and writes what was found into the output folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from lmcleaner.audit.options import AuditOptions
from lmcleaner.audit.oracle import counted_samples
from lmcleaner.data.rows import read_rows
from lmcleaner.evaluation.comparison import (
    LEVEL,
    RESAMPLES,
    Comparison,
    Estimate,
    Side,
    compare,
    void_reason,
)
from lmcleaner.evaluation.evaluate import evaluate
from lmcleaner.evaluation.harness import EVAL_FILE, SUMMARY_FILE, eval_document, summary_document
from lmcleaner.evaluation.parts import PartRows, Parts, part_rows
from lmcleaner.evaluation.scores import Part, Scores
from lmcleaner.evaluation.spec import OF_THE_LOG, named_sources
from lmcleaner.formats.audit_document import Document, with_evaluation
from lmcleaner.formats.canonical import json_digest
from lmcleaner.formats.errors import InsufficientLogError
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.store import storage_errors
from lmcleaner.progress import Progress
from lmcleaner.training.models import load_tokenizer
from lmcleaner.unlearning.naming import encode_rows
from lmcleaner.unlearning.request import ForgetSet

EVALS = "evals"  # folder beside the audit document


def evaluate_models(
    log: TrainingLog,
    forget_set: ForgetSet,
    models: Mapping[Side, nn.Module],
    folder: Path,
    options: AuditOptions,
    progress: Progress,
) -> Document:
    """Compares the models, and writes the result into `audit.json` and, as open-unlearning keeps it, into `evals/`.

    Args:
        log: the training log.
        forget_set: what was forgotten.
        models: the models.
        folder: the output folder of `unlearn`.
        options: which rows, and where the base model with its tokenizer lies now.
        progress: is told of every batch.

    Returns:
        The document's `evaluation`, which holds no content of a row.

    Raises:
        NotFoundError: the rows, the tokenizer or a library aren't there.
        InsufficientLogError: no forgotten row has a counted token, or the log doesn't say how rows became samples.
        ResourceError: the files can't be written.
    """
    tokenizer = load_tokenizer(options.model or log.manifest.model.source)
    parts, digests = _parts(log, forget_set, str(options.evaluate), tokenizer, progress)
    named = {side.value: model for side, model in models.items()}
    found = evaluate(named, tokenizer, parts, gold=Side.GOLD.value, progress=progress)
    scores = {side: found[side.value] for side in models}
    requested = sum(sample.digest in forget_set.digests for sample in parts[Part.FORGET].samples)
    evaluation = {
        "rows": {part.value: {"rows": len(rows.samples), "sha256": digests[part]} for part, rows in parts.items()},
        "requested": requested,
        "gold": "oracle" if options.gold is None else "model",
        "void": void_reason(scores),
        "intervals": {"level": LEVEL, "resamples": RESAMPLES},
        "metrics": {line.metric.name: _metric(line) for line in compare(scores, progress)},
    }
    with storage_errors(folder):
        _write_harness(folder / EVALS, scores)
        with_evaluation(folder, evaluation)
    return evaluation


def _parts(
    log: TrainingLog, forget_set: ForgetSet, spec: str, tokenizer: Any, progress: Progress
) -> tuple[Parts, dict[Part, str]]:
    """The rows of each part, and their digest."""
    if spec == OF_THE_LOG:
        chosen = {
            part: counted_samples(log, forget_set, inside=part is Part.FORGET) for part in (Part.FORGET, Part.RETAIN)
        }
        if not chosen[Part.FORGET]:
            raise InsufficientLogError("nothing to evaluate: no forgotten row has a token that the loss counts")
        parts = {part: PartRows(samples=samples) for part, samples in chosen.items() if samples}
        return parts, {part: json_digest([s.digest.hex() for s in rows.samples]) for part, rows in parts.items()}
    named = named_sources(spec, str(log.manifest.data.get("source", "")), progress)
    sources = {part: read_rows(place) for part, place in named.items()}
    parts = {part: part_rows(source, lambda it: encode_rows(log, it, tokenizer)) for part, source in sources.items()}
    return parts, {part: source.sha256 for part, source in sources.items()}


def _metric(found: Comparison) -> Document:
    sides = {side.value: _estimate(estimate) for side, estimate in found.sides.items()}
    return {"direction": found.metric.direction.value, **sides, "closer_to_gold": found.closer.value}


def _estimate(estimate: Estimate) -> Document:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}


def _write_harness(folder: Path, scores: Mapping[Side, Scores]) -> None:
    """The unlearned model's files where open-unlearning looks for them, the others' in folders of their own."""
    for side, own in scores.items():
        place = folder if side is Side.UNLEARNED else folder / side
        place.mkdir(parents=True, exist_ok=True)
        document = eval_document(own, scores[Side.GOLD])
        for name, content in ((EVAL_FILE, document), (SUMMARY_FILE, summary_document(document))):
            (place / name).write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
