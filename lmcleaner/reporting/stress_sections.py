"""What an evaluation found under harder conditions: rounded weights, relearning, questions in other words."""

from lmcleaner.evaluation.wording import NOT_REWORDED, SIDES, came_back
from lmcleaner.formats.audit_document import Document
from lmcleaner.reporting.charts import line_chart
from lmcleaner.reporting.evaluation_sections import between, estimate, metric_table, void_reason
from lmcleaner.reporting.markup import Html, bullets, folded, pairs, paragraph, table
from lmcleaner.reporting.page import Section
from lmcleaner.reporting.values import at, number, shown

_RELEARNED = {name: side for name, side in SIDES.items() if side != "before"}
# What relearning measures, by its keys in the document.
_MEASURES = {"probability": "answer probability", "rougeL_recall": "ROUGE-L recall"}


def deployment(evaluation: Document | None) -> Section:
    """Whether what was forgotten comes back with rounded weights; empty where nothing was rounded.

    Args:
        evaluation: of a valid document, or fresh; None without one.

    Returns:
        The section.
    """
    found = (evaluation or {}).get("deployment", {})
    what = (
        "All three models once more, with their weights rounded alike. Of what was to forget, a share of 1 is there "
        "before, and of 0 in gold."
    )
    rows = [
        [f"{name}, {rounding}", one["exact"], one["rounded"], between(one), one["came_back"]]
        for rounding, rounded in found.items()
        for name, one in rounded["returned"].items()
    ]
    columns = ["Metric, weights", "Share as it is", "Share rounded", "Growth, interval", "Came back"]
    content = [
        paragraph(what),
        bullets(f"{rounding}: {came_back(rounded)}" for rounding, rounded in found.items()),
        table("Share of what was to forget that is still there", columns, rows),
        *(_of_rounded(rounding, rounded) for rounding, rounded in found.items()),
    ]
    return Section("Deployment check", content if found else [])


def relearning(evaluation: Document | None) -> Section:
    """How fast the rows are learned again, beside gold; empty where they weren't.

    Args:
        evaluation: of a valid document, or fresh; None without one.

    Returns:
        The section.
    """
    found = at(evaluation, "stress", "relearning")
    if found is None:
        return Section("Relearning", [])
    about = {
        "rows to forget that are trained on": found["rows"]["learned"],
        "others that are measured": found["rows"]["measured"],
        "learning rate": found["lr"],
        "rows a step": found["batch_size"],
    }
    leads = [[_named(metric), estimate(lead), lead["faster"]] for metric, lead in found["lead"].items()]
    content = [
        table("Lead over gold; in brackets its interval", ["What", "Lead", "Faster than gold"], leads),
        *(_curve(found, metric) for metric in _MEASURES),
        _marks(found),
        pairs("How it was learned again", about),
    ]
    return Section("Relearning", content)


def reworded(evaluation: Document | None) -> Section:
    """The metrics with questions in other words; empty where nobody asked for them.

    Args:
        evaluation: of a valid document, or fresh; None without one.

    Returns:
        The section.
    """
    stress = at(evaluation, "stress")
    if stress is None:
        return Section("Paraphrased questions", [])
    found = stress["reworded"]
    if found is None:
        return Section("Paraphrased questions", [paragraph(f"Paraphrased questions: {NOT_REWORDED}.")])
    content = [
        void_reason(found["void"]),
        metric_table("All metrics with paraphrased questions", found["metrics"]),
        pairs("Rows with a paraphrased question", found["rows"]),
    ]
    return Section("Paraphrased questions", content)


def _of_rounded(rounding: str, rounded: Document) -> Html:
    whole = metric_table(f"All metrics with weights rounded to {rounding}", rounded["metrics"])
    return folded(f"All metrics, {rounding}", void_reason(rounded["void"]), whole)


def _named(metric: str) -> str:
    return _MEASURES.get(metric, metric)


def _curve(found: Document, metric: str) -> Html:
    """LMCleaner's line, and gold's dashed beside it."""
    name, other = _RELEARNED
    lines = {
        side: [
            (step, value)
            for step, value in zip(found["steps"], found[key][metric], strict=False)
            if number(step) is not None
        ]
        for side, key in _RELEARNED.items()
    }
    title = f"{_named(metric)} of the measured rows while others are learned again, {name}"
    return line_chart(title[0].upper() + title[1:], [lines[name]], beside=(other, lines[other]))


def _marks(found: Document) -> Html:
    """The same in figures."""
    columns = [f"{_named(metric)}, {side}" for metric in _MEASURES for side in _RELEARNED]
    values = [found[key][metric] for metric in _MEASURES for key in _RELEARNED.values()]
    rows = [[f"step {shown(step)}", *marks] for step, *marks in zip(found["steps"], *values, strict=False)]
    return table("Measured after so many steps, means over rows", ["After", *columns], rows)
