"""Scores of several models on the same rows."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from lmcleaner.evaluation.generation import generate_answers, true_answers
from lmcleaner.evaluation.membership import reference_score, zlib_score
from lmcleaner.evaluation.parts import PartRows, Parts
from lmcleaner.evaluation.passes import Wanted, score_rows
from lmcleaner.evaluation.rouge import rouge_recalls
from lmcleaner.evaluation.scores import Array, Columns, Part, Scores
from lmcleaner.formats.samples import IGNORED_LABEL, Sample
from lmcleaner.progress import Progress, Silent

MAX_NEW_TOKENS = 200  # open-unlearning's for TOFU
_MEMBERSHIP = (Part.FORGET, Part.HOLDOUT)


def evaluate(
    models: Mapping[str, nn.Module],
    tokenizer: Any,
    parts: Parts,
    *,
    gold: str | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    progress: Progress | None = None,
) -> dict[str, Scores]:
    """Scores models on all parts: one forward pass for each model and answer, and one generation for each row.

    Args:
        models: causal language models of transformers by name, with one tokenizer.
        tokenizer: it.
        parts: the rows.
        gold: the name of a model that never saw the rows to forget, if there is one; the others are compared with it.
        max_new_tokens: where a generated answer is cut off.
        progress: is told of every batch.

    Returns:
        Every model's scores.

    Raises:
        NotFoundError: a library of the extra `evaluate` isn't installed.
    """
    progress = progress or Silent()
    found: dict[str, dict[Part, Columns]] = {name: {} for name in models}
    for part, rows in parts.items():
        is_attacked = part in _MEMBERSHIP and all(member in parts for member in _MEMBERSHIP)
        wanted = Wanted(tokens=True, gradients=is_attacked, gold=gold)
        scored = score_rows(models, rows.samples, wanted, progress, f"scoring {part}")
        others = _other_answers(models, rows, progress, f"scoring other answers of {part}")
        answers = true_answers(rows.samples, tokenizer)
        for name, model in models.items():
            columns = {**scored[name], **others[name], "mia_zlib": _zlib(scored[name]["loss"], rows.samples, tokenizer)}
            if gold is not None:
                columns["mia_reference"] = reference_score(columns["loss"], scored[gold]["loss"])
            if part is not Part.HOLDOUT:
                what = f"generating answers of {part} by {name}"
                said = generate_answers(model, rows.samples, tokenizer, max_new_tokens, progress, what)
                columns["rougeL_recall"] = rouge_recalls(answers, said)
            found[name][part] = columns
    return {name: dict(scores) for name, scores in found.items()}


def _other_answers(
    models: Mapping[str, nn.Module], rows: PartRows, progress: Progress, what: str
) -> dict[str, dict[str, Array]]:
    """Loss and probability of paraphrases and of wrong answers."""
    samples = [*rows.paraphrases, *(sample for answers in rows.wrong for sample in answers)]
    if not samples:
        return {name: {} for name in models}
    split = len(rows.paraphrases)
    found: dict[str, dict[str, Array]] = {}
    for name, columns in score_rows(models, samples, Wanted(), progress, what).items():
        found[name] = {}
        for column, values in columns.items():
            if rows.paraphrases:
                found[name][f"paraphrase_{column}"] = values[:split]
            if rows.wrong:
                found[name][f"wrong_{column}"] = values[split:].reshape(len(rows.wrong), -1)
    return found


def _zlib(losses: Array, samples: Sequence[Sample], tokenizer: Any) -> Array:
    """The attack's score of each row, from the text of the tokens that the loss counts."""
    counted = [sample.labels[sample.labels != IGNORED_LABEL].tolist() for sample in samples]
    texts = [str(tokenizer.decode(tokens, skip_special_tokens=True)) for tokens in counted]
    return np.array([zlib_score(float(loss), text) for loss, text in zip(losses, texts, strict=True)])
