"""The form in which open-unlearning keeps an evaluation: TOFU_EVAL.json and TOFU_SUMMARY.json.

Axes: row = rows of a part, wrong = perturbed answers of a row.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lmcleaner.evaluation.metrics import (
    ATTACKS,
    PREFIXES,
    attack_auc,
    possible_metrics,
    probability_among_choices,
    row_truth_ratios,
)
from lmcleaner.evaluation.scores import Array, Columns, Part, Scores, has_columns

EVAL_FILE, SUMMARY_FILE = "TOFU_EVAL.json", "TOFU_SUMMARY.json"
_ANSWERS = {"Q_A": "", "Q_A_PARA": "paraphrase_", "Q_A_PERT": "wrong_"}
_MEMORIZATION = ("extraction_strength", "exact_memorization")
_SUMMARIZED = {
    *_MEMORIZATION, *(f"mia_{attack}" for attack in ATTACKS), "forget_Q_A_Prob", "forget_Q_A_ROUGE", "forget_quality",
    "model_utility", "privleak",
}  # fmt: skip

Document = dict[str, Any]


def scores_of(document: Mapping[str, Any]) -> Scores:
    """The scores that an evaluation's file holds.

    Args:
        document: content of TOFU_EVAL.json.

    Returns:
        The columns of each part; rows in the order of the file.
    """
    columns: dict[Part, dict[str, Array]] = {part: {} for part in Part}
    for part, prefix in PREFIXES.items():
        for name, answer in _ANSWERS.items():
            if (found := document.get(f"{prefix}_{name}_Prob")) is not None:
                columns[part] |= {
                    f"{answer}probability": _values(found, "prob"),
                    f"{answer}loss": _values(found, "avg_loss"),
                }
        if (found := document.get(f"{prefix}_Q_A_ROUGE")) is not None:
            columns[part]["rougeL_recall"] = _values(found, "rougeL_recall")
    for name in _MEMORIZATION:
        if (found := document.get(name)) is not None:
            columns[Part.FORGET][name] = _values(found, "score")
    for attack in ATTACKS:
        if (found := document.get(f"mia_{attack}")) is not None:
            for part in (Part.FORGET, Part.HOLDOUT):
                columns[part][f"mia_{attack}"] = _values(found[part], "score")
    return {part: found for part, found in columns.items() if found}


def eval_document(scores: Scores, gold: Scores | None) -> Document:
    """The content of TOFU_EVAL.json, without the rows' text.

    Args:
        scores: of a model.
        gold: of a model that never saw the rows to forget, if there is one.

    Returns:
        For each metric its aggregate and, where it has them, the values by row.
    """
    document: Document = {}
    for part, prefix in PREFIXES.items():
        if part in scores:
            document |= _part_document(scores, part, prefix)
    for name in _MEMORIZATION:
        if has_columns(scores, Part.FORGET, [name]):
            document[name] = _aggregated({"score": scores[Part.FORGET][name]})
    for metric in possible_metrics(scores, gold):
        entry = document.setdefault(metric.name, {})
        entry["agg_value"] = metric.of(scores, gold)
    for attack in ATTACKS:
        if f"mia_{attack}" in document:
            document[f"mia_{attack}"] |= _attack_document(scores, attack)
    return document


def summary_document(document: Document) -> dict[str, float]:
    """The content of TOFU_SUMMARY.json: the aggregates that open-unlearning tabulates."""
    return {name: document[name]["agg_value"] for name in sorted(document.keys() & _SUMMARIZED)}


def _part_document(scores: Scores, part: Part, prefix: str) -> Document:
    columns, document = scores[part], {}
    for name, answer in _ANSWERS.items():
        if has_columns(scores, part, [f"{answer}probability", f"{answer}loss"]):
            found = {"prob": columns[f"{answer}probability"], "avg_loss": columns[f"{answer}loss"]}
            document[f"{prefix}_{name}_Prob"] = _aggregated(found)
    if "rougeL_recall" in columns:
        document[f"{prefix}_Q_A_ROUGE"] = _aggregated({"rougeL_recall": columns["rougeL_recall"]})
    names = {metric.name for metric in possible_metrics(scores, None)}
    ratio = "forget_truth_ratio" if part is Part.FORGET else f"{prefix}_Truth_Ratio"
    if ratio in names:
        document[ratio] = _aggregated({"score": row_truth_ratios(scores, part)})
    if f"{prefix}_Q_A_Prob_normalised" in names:
        document[f"{prefix}_Q_A_Prob_normalised"] = _aggregated({"prob": probability_among_choices(scores, part)})
    return document


def _attack_document(scores: Scores, attack: str) -> Document:
    parts = (Part.FORGET, Part.HOLDOUT)
    rows = {str(part): _aggregated({"score": scores[part][f"mia_{attack}"]}) for part in parts}
    return {**rows, "auc": attack_auc(scores, attack)}


def _values(found: Mapping[str, Any], name: str) -> Array:
    return np.array([row[name] for row in found["value_by_index"].values()], np.float64)


def _aggregated(columns: Columns) -> Document:
    """The mean of the first column, and all columns by row."""
    first = next(iter(columns.values()))
    by_index = {str(row): {name: values[row].tolist() for name, values in columns.items()} for row in range(len(first))}
    return {"agg_value": float(first.mean()), "value_by_index": by_index}
