"""Before, unlearned and gold: the metrics, and answers against the oracle."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmcleaner.audit.evaluation import EVALS
from lmcleaner.audit.oracle import counted_samples
from lmcleaner.audit.statements import stated_forget_set
from lmcleaner.evaluation.harness import EVAL_FILE
from lmcleaner.evaluation.wording import ARROWS, GOLDS, SIDES
from lmcleaner.formats.audit_document import Document
from lmcleaner.formats.canonical import json_digest
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.reporting.markup import NOTHING, Html, code, folded, pairs, table, tag
from lmcleaner.reporting.page import Section
from lmcleaner.reporting.values import at, by_step, number, shown

_ORACLE_SIDES = {"Before": "trained", "LMCleaner": "unlearned", "Oracle": "oracle"}
_MEASURES = {"answer probability": "answer_probability", "KL from the oracle": "kl_from_oracle"}
_MODELS = {"before": "before", "unlearned": "", "gold": "gold"}


def answers(oracle: Any) -> Section:
    """Answers of all three models, as the comparison with the oracle measured them; empty without one."""
    rows = [
        [f"{kind} rows, {name}", *(at(oracle, model, kind, measure) for model in _ORACLE_SIDES.values())]
        for kind in ("forgotten", "retained")
        for name, measure in _MEASURES.items()
        if at(oracle, "trained", kind) is not None
    ]
    columns = ["What", *_ORACLE_SIDES]
    return Section("Against the oracle", [table("Answers, as a mean over rows", columns, rows)])


def metrics(evaluation: Document | None, changes: Html, *, is_fresh: bool) -> Section:
    """The metric table with its intervals; empty without an evaluation.

    Args:
        evaluation: of the document, or fresh; None without one.
        changes: those of each row.
        is_fresh: whether it was measured just now.

    Returns:
        The section.
    """
    if evaluation is None:
        return Section("Evaluation", [])
    level = number(at(evaluation, "intervals", "level"))
    caption = "All metrics" if level is None else f"All metrics; in brackets {level:.0%} intervals"
    about = {
        "measured": "just now" if is_fresh else "by an earlier audit; audit verify measures it again",
        "gold": GOLDS[evaluation["gold"]],
        "rows": ", ".join(f"{part['rows']:,} {name}" for name, part in evaluation["rows"].items()),
        "of those to forget in the request": evaluation.get("requested"),
    }
    content = [
        void_reason(evaluation["void"]),
        metric_table(caption, evaluation["metrics"]),
        pairs("What was compared", about),
        changes,
    ]
    return Section("Evaluation", content)


def metric_table(caption: str, found: Document) -> Html:
    """A document's `metrics` of all three models, with intervals."""
    rows = [
        [
            name, better(metric["direction"]), *(estimate(metric[side]) for side in SIDES.values()),
            metric["closer_to_gold"],
        ]
        for name, metric in found.items()
    ]  # fmt: skip
    return table(caption, ["Metric", "Better", *SIDES, "Closer to gold"], rows)


def void_reason(void: str | None) -> Html:
    """Why a comparison shows nothing; nothing where it shows something."""
    return tag("p", tag("strong", void), class_="bad") if void is not None else NOTHING


def estimate(found: Document) -> str:
    """A value with its interval, if it has one."""
    return shown(found["value"]) if found["low"] is None else f"{shown(found['value'])} {between(found)}"


def between(found: Document) -> str:
    """An interval, from `low` to `high`."""
    return f"[{shown(found['low'])},\u00a0{shown(found['high'])}]"


def better(direction: str) -> str:
    """Which way is better; an arrow alone says nothing to who hears the page."""
    is_arrow = direction in {"higher", "lower"}
    return f"{ARROWS[direction]}\u00a0{direction}" if is_arrow else ARROWS[direction]


def evaluated_rows(evaluation: Document, document: Document, log: TrainingLog) -> list[str]:
    """Digests of the evaluated rows to forget, in order, where they are the log's own; else none."""
    digests = [sample.digest.hex() for sample in counted_samples(log, stated_forget_set(document), inside=True)]
    return digests if json_digest(digests) == evaluation["rows"]["forget"]["sha256"] else []


def row_changes(folder: Path, digests: Sequence[str], texts: Mapping[str, str] | None) -> Html:
    """How probable each forgotten row's answer is, from the values by row that lie beside the document.

    Args:
        folder: the output folder.
        digests: of the evaluated rows; rows are numbered without them.
        texts: text of each row by its digest; None shows none.

    Returns:
        A table; nothing where the values aren't there.
    """
    found = {side: dict(_by_row(folder / EVALS / place / EVAL_FILE)) for side, place in _MODELS.items()}
    numbers = sorted(found["before"].keys() & found["unlearned"].keys() & found["gold"].keys())
    if not numbers:
        return NOTHING
    named = dict(zip(numbers, digests, strict=True)) if len(digests) == len(numbers) else {}
    rows = [
        [
            code(named[place]) if named else f"row {place + 1}", *(found[side][place] for side in SIDES.values()),
            (texts or {}).get(named.get(place, "")),
        ]
        for place in numbers
    ]  # fmt: skip
    return folded("Row by row", table("Answer probability of each row to forget", ["Row", *SIDES, "Text"], rows))


def _by_row(file: Path) -> Iterator[tuple[int, float]]:
    try:
        values = at(json.loads(file.read_bytes()), "forget_Q_A_Prob", "value_by_index")
    except (OSError, ValueError):
        return
    if isinstance(values, dict):
        yield from by_step({row: at(value, "prob") for row, value in values.items()})
