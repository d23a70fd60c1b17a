"""The measurements of `modes.py` as tables: of every cell on the terminal, and of the documentation in Markdown."""

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from drawing import rank_correlation
from lmcleaner import HessianMode

RESULTS, MEMORY = "results.jsonl", "memory.jsonl"
MODES = [mode.value for mode in HessianMode]
NAMES = {"adamw": "AdamW", "sgd": "SGD"}
POOR = 0.9  # the error from which on a verdict is poor

Row = dict[str, Any]


def read_lines(path: Path) -> list[Row]:
    """JSON lines of a file, none where it isn't there."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def show(folder: Path, console: Console) -> None:
    """Prints all cells of a folder, and what memory each mode took."""
    names = ("forgets", "K", "mode", "rel. error", "estimated", "forgotten", "retained", "KL f.", "KL r.")
    costs = ("gradients", "products", "s", "x step", "planned s")
    rows = read_lines(folder / RESULTS)
    for run, optimizer in dict.fromkeys((row["cell"]["run"], row["cell"]["optimizer"]) for row in rows):
        table = Table(*names, *costs, title=f"{run}, {optimizer}")
        for row in rows:
            if (row["cell"]["run"], row["cell"]["optimizer"]) == (run, optimizer):
                table.add_row(*_cells_of(row))
        console.print(table)
    table = Table("run", "optimizer", "mode", "peak MB", "planned MB", title="memory")
    for run, optimizer, mode, peak, planned in _memory(folder):
        table.add_row(run, optimizer, mode, f"{peak:.1f}", f"{planned:.1f}")
    console.print(table)


def _cells_of(row: Row) -> list[str]:
    cell = row["cell"]
    head = [f"{cell['forget']} {cell['level']}", cell["K"], _name(cell)]
    if "diverged" in row:
        return [*head, "diverged"]
    answers = row["answers"]
    found = [
        f"{row['relative_error']:.3f}", f"{row['estimated_error']:.3f}" if row.get("estimated_error") else "",
        *(f"{answers[rows]['answer_probability']:.3f}" for rows in ("forgotten", "retained")),
        *(f"{answers[rows]['kl_from_oracle']:.3f}" for rows in ("forgotten", "retained")),
    ]  # fmt: skip
    if "plan" not in row:
        return [*head, *found, "", "", f"{row['seconds']:.1f}", f"{_cost(row):.2f}"]
    plan = row["plan"]
    return [
        *head, *found, str(_summed(row, "gradients")), str(_summed(row, "hvp_calls")), f"{row['seconds']:.1f}",
        f"{_cost(row):.2f}", f"{'to ' if plan['is_upper_bound'] else ''}{plan['seconds']:.1f}",
    ]  # fmt: skip


def as_markdown(folder: Path) -> str:
    """The tables of docs/choosing-a-mode.md, and what they say of estimates and plans.

    Args:
        folder: with the results.
    """
    rows = read_lines(folder / RESULTS)
    memory = [
        (run, NAMES[optimizer], mode, f"{peak:.1f}", f"{planned:.1f}")
        for run, optimizer, mode, peak, planned in _memory(folder)
    ]
    parts = [
        _against_cost(rows), _against_K(rows), _against_share(rows), _of_scattered(rows), *_of_estimates(rows),
        _of_plans(rows),
    ]  # fmt: skip
    return "\n\n".join([*parts, _table(("run", "optimizer", "mode", "peak MB", "planned MB"), memory)]) + "\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows))


def _against_cost(rows: Sequence[Row]) -> str:
    """Rows forgotten, K = all: one line for each mode and propagation, AdamW beside SGD."""
    common = ("relative error", "estimated", "forgotten", "retained", "KL")
    names = [
        f"AdamW: {common[0]}",
        *common[1:],
        "gradients, products",
        "cost",
        f"SGD: {common[0]}",
        *common[1:],
        "cost",
    ]
    chosen: dict[str, dict[str, Row]] = {}
    for row in rows:
        cell = row["cell"]
        if (cell["run"], cell["forget"], cell["K"]) == ("epochs", "0.08", "all"):
            chosen.setdefault(_name(cell), {})[cell["optimizer"]] = row
    lines = []
    for name, pair in chosen.items():
        adamw, sgd = (_outcome(pair[optimizer]) for optimizer in ("adamw", "sgd"))
        lines.append([name, *adamw, *(cell for place, cell in enumerate(sgd) if place != len(common))])
    return _table(("mode", *names), lines)


def _outcome(row: Row) -> list[str]:
    """Error, estimate, probabilities, divergences, gradients and products, cost."""
    if "diverged" in row:
        return ["diverged", *["–"] * 6]
    forgotten, retained = (row["answers"][rows] for rows in ("forgotten", "retained"))
    spent = f"{_summed(row, 'gradients')}, {_summed(row, 'hvp_calls')}" if "windows" in row else "–"
    estimated = row.get("estimated_error")
    return [
        f"{row['relative_error']:.3f}", "–" if estimated is None else f"{estimated:.3f}",
        f"{forgotten['answer_probability']:.3f}", f"{retained['answer_probability']:.3f}",
        f"{forgotten['kl_from_oracle']:.3f}, {retained['kl_from_oracle']:.3f}", spent, f"{_cost(row):.2f}",
    ]  # fmt: skip


def _against_K(rows: Sequence[Row]) -> str:  # noqa: N802 -- the paper's name
    """One early row or step forgotten: one line for each K, a column for each mode."""
    lines: dict[tuple[str, str, str], dict[str, Row]] = {}
    for row in rows:
        cell = row["cell"]
        if cell["forget"] == "early":
            what = "row" if cell["level"] == "sample" else "step"
            lines.setdefault((NAMES[cell["optimizer"]], what, cell["K"]), {})[cell["mode"]] = row

    def found(row: Row) -> str:
        steps = f" ({row['windows'][0]['K_used']})" if row["cell"]["K"] == "auto" else ""
        return f"{row['relative_error']:.3f}{steps}"

    head = ("optimizer", "forgotten", "K", "moved over the last tenth", *MODES)
    body = [
        (*key, f"{by_mode['secant']['windows'][0]['settled']:.3f}", *(found(by_mode[mode]) for mode in MODES))
        for key, by_mode in lines.items()
    ]
    return _table(head, body)


def _against_share(rows: Sequence[Row]) -> str:
    """Shares of the rows forgotten: one line for each, a column for each mode."""
    kinds = {"epochs": "rows, many epochs", "once": "steps, one epoch"}
    lines: dict[tuple[str, str, str], dict[str, str]] = {}
    for row in rows:
        cell = row["cell"]
        if cell["run"] in kinds and cell["forget"][:1] == "0" and cell["propagation"] == "optimizer":
            key = kinds[cell["run"]], NAMES[cell["optimizer"]], f"{100 * float(cell['forget']):.0f} %"
            lines.setdefault(key, {})[cell["mode"]] = f"{row['relative_error']:.3f}"
    modes = ["retrain", *MODES]
    body = [(*key, *(by_mode[mode] for mode in modes)) for key, by_mode in lines.items()]
    return _table(("forgotten", "optimizer", "share", "plain retrain", *MODES), body)


def _of_scattered(rows: Sequence[Row]) -> str:
    """What a sweep for a hundred scattered rows took, in sweeps for the first of them."""
    found = []
    for row in rows:
        if row["cell"]["forget"] == "scattered":
            one = next(other for other in rows if other["cell"] == row["cell"] | {"forget": "early"})
            found.append(f"{_cost(row) / _cost(one):.2f} ({NAMES[row['cell']['optimizer']]})")
    return f"scattered rows: {' and '.join(found)} times one"


def _of_estimates(rows: Sequence[Row]) -> list[str]:
    """How the sampled estimates compare with the errors, of sweeps to the run's end."""
    chosen = [row for row in rows if row.get("estimated_error") and row["cell"]["K"] == "all" and row["relative_error"]]
    ratios = statistics.quantiles([row["estimated_error"] / row["relative_error"] for row in chosen], n=20)
    sides = [(row["estimated_error"] >= POOR, row["relative_error"] >= POOR) for row in chosen]
    said = [
        f"{len(chosen)} estimates: half of them {ratios[4]:.2f} to {ratios[14]:.2f} times the error, nine in ten "
        f"{ratios[0]:.2f} to {ratios[18]:.2f} times",
        f"{sum(a == b for a, b in sides)} on their error's side of {POOR}; {sides.count((True, False))} call poor what "
        f"is below, {sides.count((False, True))} call good what is above",
    ]
    groups: dict[str, Callable[[str], bool]] = {
        "all modes": lambda mode: True,
        "all but empirical_fisher": lambda mode: mode != "empirical_fisher",
        "exact and GGN": lambda mode: mode in {"exact", "GGN"},
    }
    for name, belongs in groups.items():
        of_group = [row for row in chosen if belongs(row["cell"]["mode"])]
        pairs = [(row["estimated_error"], row["relative_error"]) for row in of_group]
        said.append(f"rank correlation, {name} ({len(pairs)}): {rank_correlation(*zip(*pairs, strict=True)):.2f}")
    return said


def _of_plans(rows: Sequence[Row]) -> str:
    """How the planned seconds compare with the measured ones, of windows whose length was known."""
    planned = [row for row in rows if "plan" in row]
    off = [abs(row["plan"]["seconds"] / row["seconds"] - 1) for row in planned if not row["plan"]["is_upper_bound"]]
    bounds = [row["seconds"] / row["plan"]["seconds"] for row in planned if row["plan"]["is_upper_bound"]]
    return (
        f"plans: {sum(o <= 0.3 for o in off)} of {len(off)} within 30 %, {sum(o <= 0.15 for o in off)} within 15 %, "
        f"half within {100 * statistics.median(off):.0f} %, the worst {100 * max(off):.0f} % off; {len(bounds)} with "
        f"an end unknown took {min(bounds):.2f} to {max(bounds):.2f} of what was planned at most"
    )


def _memory(folder: Path) -> list[tuple[str, str, str, float, float]]:
    """Run, optimizer, mode, peak and planned megabytes."""
    return [
        (found["run"], found["optimizer"], _name(one), one["peak"] / 1e6, one["planned"] / 1e6)
        for found in read_lines(folder / MEMORY)
        for one in found["peaks"]
    ]


def _name(cell: Row) -> str:
    mode = str(cell["mode"])
    named = {"retrain": "plain retrain"}.get(mode, mode)
    return named if cell["propagation"] == "optimizer" else f"paper, {named}"


def _cost(row: Row) -> float:
    """Of a step, in steps of plain training."""
    return float(row["seconds"] / row["steps"] / row["step_seconds"])


def _summed(row: Row, key: str) -> int:
    return sum(window[key] for window in row["windows"])
