"""The sweep: its windows on the training's timeline, the deviation's norm, and the measured errors."""

from collections.abc import Iterator
from statistics import median
from typing import Any

from lmcleaner.formats.audit_document import Document
from lmcleaner.reporting.charts import line_chart, timeline
from lmcleaner.reporting.markup import Html, paragraph, table
from lmcleaner.reporting.page import Section
from lmcleaner.reporting.values import at, by_step, number, shown

# Fewer looks than this at a window's deviation are shown as points: nothing is known between them.
_FEW_LOOKS = 50

# A step beyond it is nobody's, and can't be drawn.
_LAST_STEP = 1 << 53

Row = list[object]


def windows(document: Document, num_steps: int) -> Section:
    """Where the sweep went.

    Args:
        document: a valid audit document.
        num_steps: length of the training.

    Returns:
        The section.
    """
    found = document["windows"]
    whole = _whole(document, num_steps)
    lanes = {
        "forgotten rows used": [_stretch(step, step + 1) for step in document["request"]["steps"]],
        "replayed": [_stretch(window["start"], window["tz"]) for window in found if _has_lead_in(window)],
        "deviation carried": [_stretch(window["tz"], window["tau"]) for window in found],
    }
    lanes = {name: stretches for name, stretches in lanes.items() if stretches}
    told = "; ".join(f"steps {window['tz']:,} to {window['tau']:,}" for window in found[:20])
    columns = ["Window", "First use", "Ends before", "K used", "Norm after the first use", "Largest", "At the end",
               "Gradients", "Products"]  # fmt: skip
    rows = [
        [place, window["tz"], window["tau"], window["K_used"], window["v0_norm"], window.get("v_peak_norm"),
         window["v_norm"], window["gradients"], window["hvp_calls"]]
        for place, window in enumerate(found, start=1)
    ]  # fmt: skip
    description = f"{whole:,} training steps; the deviation was carried through {told}."
    picture = timeline("Windows on the training's timeline", description, lanes, whole)
    return Section("Windows", [picture, table("Steps and norms of each window", columns, rows)])


def deviation(document: Document, num_steps: int) -> Section:
    """How long the deviation was, step by step."""
    lines = [by_step(window.get("norms")) or _ends(window) for window in document["windows"]]
    carried = max(window["tau"] - window["tz"] for window in document["windows"])
    is_sparse = max(map(len, lines)) < min(_FEW_LOOKS, carried)
    what = "Norm of the difference between the model and the one that never saw the rows, where it was looked at."
    picture = line_chart(
        "Deviation norm over steps", lines, x_range=(0, _whole(document, num_steps)), is_dotted=is_sparse
    )
    return Section("Deviation", [paragraph(what), picture] if picture else [])


def errors(document: Document, oracle: Any, num_steps: int) -> Section:
    """What was measured of the result's quality, beside where it stops being good.

    Args:
        document: a valid audit document.
        oracle: the comparison with the oracle, the document's or a fresh one; None without.
        num_steps: length of the training.

    Returns:
        The section.
    """
    marks = [by_step(window.get("linearization_errors")) for window in document["windows"]]
    threshold = _threshold(document, "linearization_error")
    picture = line_chart(
        "Relative error of the predicted gradients", marks, x_range=(0, _whole(document, num_steps)), is_dotted=True,
        limit=("threshold of the median", threshold) if threshold is not None else None,
    )  # fmt: skip
    whole = table("The result as a whole", ["Measure", "Found", "Expected", "Met"], _result_rows(document, oracle))
    return Section("Error measures", [whole, _of_windows(document, num_steps), picture])


def _of_windows(document: Document, num_steps: int) -> Html:
    """What was measured in each window; nothing had to settle where a window goes to the end."""
    off, settled = _threshold(document, "linearization_error"), _threshold(document, "settled")
    rows = []
    for place, window in enumerate(document["windows"], start=1):
        marks = [error for _, error in by_step(window.get("linearization_errors"))]
        error, left_out = median(marks) if marks else None, number(window.get("left_out"))
        is_cut = window["tau"] < num_steps
        rows.append([
            place, _found(error), _is_met(error, "at most", off), _found(left_out) if is_cut else "ends with the run",
            _is_met(left_out, "at most", settled) if is_cut else None, window.get("curvature_captured"),
        ])  # fmt: skip
    gradients = f"Gradients off by, median; at most {shown(off)}"
    columns = ["Window", gradients, "Met", f"Still to move; at most {shown(settled)}", "Met", "Curvature captured"]
    return table("Measures of each window", columns, rows)


def _result_rows(document: Document, oracle: Any) -> Iterator[Row]:
    surviving, threshold = document["result"]["surviving"], _threshold(document, "surviving")
    yield _row("change that rounding leaves, norm ratio", surviving["norm_ratio"], "at least", threshold)
    yield _row("change that rounding leaves, cosine", surviving["cosine"], "at least", threshold)
    limit = _threshold(document, "relative_error")
    yield _row("relative error, estimated", number(at(document, "result", "estimated_error")), "below", limit)
    yield _row("relative error against the oracle", number(at(oracle, "relative_error")), "below", limit)


def _row(name: str, found: float | None, relation: str, threshold: float | None) -> Row:
    """A measure, and in words whether it keeps its threshold."""
    expected = f"{relation} {shown(threshold)}" if threshold is not None else None
    return [name, _found(found), expected, _is_met(found, relation, threshold)]


def _found(value: float | None) -> object:
    return "not measured" if value is None else value


def _is_met(found: float | None, relation: str, threshold: float | None) -> bool | None:
    if found is None or threshold is None:
        return None
    return {"at most": found <= threshold, "at least": found >= threshold, "below": found < threshold}[relation]


def _threshold(document: Document, name: str) -> float | None:
    return number(at(document, "config", "thresholds", name))


def _whole(document: Document, num_steps: int) -> int:
    """Length of the timeline; a log from which steps were redacted since is shorter than the document's training."""
    return max([num_steps, *(_stretch(0, window["tau"])[1] for window in document["windows"])])


def _has_lead_in(window: Document) -> bool:
    start = number(window.get("start"))
    return start is not None and start < window["tz"]


def _stretch(first: int, end: int) -> tuple[int, int]:
    return min(first, _LAST_STEP), min(end, _LAST_STEP)


def _ends(window: Document) -> list[tuple[int, float]]:
    """All that documents tell which are from before they had the norms."""
    first, end = _stretch(window["tz"] + 1, window["tau"])
    known = {first: window["v0_norm"], end: window["v_norm"]}
    return [(step, found) for step, norm in known.items() if (found := number(norm)) is not None]
