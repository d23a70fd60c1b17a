"""How `audit` shows an evaluation."""

from typing import Any

from lmcleaner.cli.console import print_table, print_text
from lmcleaner.evaluation.wording import ARROWS, GOLDS, NOT_REWORDED, SIDES, came_back

Document = dict[str, Any]


def print_evaluation(evaluation: Document) -> None:
    """Metric | Before | LMCleaner | Gold, each with its interval; then what else was asked for."""
    _print_metrics(evaluation["metrics"])
    parts = ", ".join(f"{part['rows']} {name}" for name, part in evaluation["rows"].items())
    print_text(f"rows: {parts}; {evaluation['requested']} of those to forget are in the request")
    print_text(f"gold: {GOLDS[evaluation['gold']]}; in brackets: {evaluation['intervals']['level']:.0%} intervals")
    if "deployment" in evaluation:
        _print_deployment(evaluation["metrics"], evaluation["deployment"])
    if "stress" in evaluation:
        _print_relearning(evaluation["stress"]["relearning"])
        _print_reworded(evaluation["stress"]["reworded"])
    if "tasks" in evaluation:
        _print_tasks(evaluation["tasks"])


def _print_metrics(metrics: Document) -> None:
    rows = [
        {
            "Metric": name,
            "Better": ARROWS[metric["direction"]],
            **{column: _estimate(metric[side]) for column, side in SIDES.items()},
            "Closer to gold": metric["closer_to_gold"],
        }
        for name, metric in metrics.items()
    ]
    print_table(["Metric", "Better", *SIDES, "Closer to gold"], rows)


def _print_deployment(metrics: Document, deployment: Document) -> None:
    print_text("\nweights rounded, LMCleaner (gold rounded alike)")
    columns = {"As it is": metrics} | {name: rounded["metrics"] for name, rounded in deployment.items()}
    rows = [
        {"Metric": name, **{column: _beside_gold(found[name]) for column, found in columns.items()}} for name in metrics
    ]
    print_table(["Metric", *columns], rows)
    for name, rounded in deployment.items():
        print_text(f"{name}: {_returned(rounded)}")


def _returned(rounded: Document) -> str:
    """Whether forgetting came back, and which share of what was to forget is there by each metric."""
    said, found = came_back(rounded), rounded["returned"]
    if rounded["void"] is not None or not found:
        return said
    shares = ", ".join(f"{name} {one['exact']:.0%} → {one['rounded']:.0%}" for name, one in found.items())
    return f"{said}; of what was to forget there was and is: {shares}"


def _print_relearning(relearning: Document) -> None:
    rows, steps = relearning["rows"], relearning["steps"]
    print_text(
        f"\nrelearning: {rows['learned']} rows to forget are trained on, lr {relearning['lr']:g}; {rows['measured']} "
        f"others are measured, LMCleaner (gold)"
    )
    lines = []
    for metric, found in relearning["lead"].items():
        pairs = zip(steps, relearning["unlearned"][metric], relearning["gold"][metric], strict=True)
        curve = {f"step {step}": f"{value:.4g} ({gold:.4g})" for step, value, gold in pairs}
        lines.append({"Metric": metric, **curve, "Lead": _estimate(found), "Faster than gold": found["faster"]})
    print_table(["Metric", *(f"step {step}" for step in steps), "Lead", "Faster than gold"], lines)


def _print_reworded(reworded: Document | None) -> None:
    if reworded is None:
        print_text(f"paraphrased questions: {NOT_REWORDED}")
        return
    parts = ", ".join(f"{count} {name}" for name, count in reworded["rows"].items())
    print_text(f"\nparaphrased questions: {parts}")
    _print_metrics(reworded["metrics"])
    if reworded["void"] is not None:
        print_text(reworded["void"])


def _print_tasks(tasks: Document) -> None:
    limit = "" if tasks["limit"] is None else f", at most {tasks['limit']} rows each"
    print_text(f"\ntasks of the lm-evaluation-harness {tasks['harness']}{limit}, ± its standard errors")
    rows = [
        {
            "Task": name,
            "Rows": task["rows"],
            "Metric": metric,
            "Better": ARROWS[found["direction"]],
            **{column: _with_error(found[side]) for column, side in SIDES.items()},
        }
        for name, task in tasks["results"].items()
        for metric, found in task["metrics"].items()
    ]
    print_table(["Task", "Rows", "Metric", "Better", *SIDES], rows)


def _with_error(measured: Document) -> str:
    value, error = measured["value"], measured["stderr"]
    if value is None:
        return "–"
    return f"{value:.4g}" if error is None else f"{value:.4g} ± {error:.2g}"


def _beside_gold(metric: Document) -> str:
    return f"{metric['unlearned']['value']:.4g} ({metric['gold']['value']:.4g})"


def _estimate(estimate: Document) -> str:
    interval = "" if estimate["low"] is None else f" [{estimate['low']:.3g}, {estimate['high']:.3g}]"
    return f"{estimate['value']:.4g}{interval}"
