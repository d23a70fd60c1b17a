"""Draws the measurements of `modes.py`: what a mode costs and how far off it is, by K and by what is forgotten."""

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

Row = dict[str, Any]

# Colours that stay apart for colour-blind readers (Okabe & Ito, 2008), and a marker for each mode besides.
_LOOKS = {
    "retrain": ("#666666", "*"),
    "secant": ("#000000", "o"),
    "exact": ("#0072B2", "s"),
    "GGN": ("#009E73", "^"),
    "empirical_fisher": ("#CC79A7", "v"),
    "diag": ("#E69F00", "D"),
    "diag_hessian": ("#A6761D", "d"),
    "low_rank": ("#D55E00", "P"),
    "fisher": ("#56B4E9", "X"),
}
_FLOOR = 1e-3  # where an error of zero is drawn on a logarithmic axis
_STYLE: Any = {"font.size": 9, "axes.grid": True, "grid.alpha": 0.3, "svg.hashsalt": "lmcleaner", "savefig.dpi": 150}


def draw(results: Path, folder: Path) -> list[Path]:
    """Draws all pictures, each as PNG and SVG.

    Args:
        results: JSON lines of `modes.py`.
        folder: where to write.

    Returns:
        The files.
    """
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    sound = [row for row in rows if "diverged" not in row]
    pictures: dict[str, Callable[[Sequence[Row]], Figure]] = {
        "error-against-cost": _against_cost,
        "error-against-K": _against_K,
        "error-against-share": _against_share,
        "estimate-against-error": _estimates,
    }
    made = []
    with rc_context(_STYLE):
        for name, make in pictures.items():
            figure = make(sound)
            for suffix in ("png", "svg"):
                made.append(folder / f"{name}.{suffix}")
                figure.savefig(made[-1], metadata={"Date": None} if suffix == "svg" else None, bbox_inches="tight")
    return made


def rank_correlation(left: Sequence[float], right: Sequence[float]) -> float:
    """Spearman's coefficient, for values without ties."""
    return float(np.corrcoef(_ranks(left), _ranks(right))[0, 1])


def _ranks(values: Sequence[float]) -> NDArray[np.int64]:
    return np.argsort(np.argsort(values))


def _error(row: Row) -> float:
    return max(_FLOOR, float(row["relative_error"]))


def _title(row: Row) -> str:
    cell = row["cell"]
    return f"{cell['run']}, {cell['optimizer']}, {cell['level']}"


def _groups(rows: Sequence[Row], key: Callable[[Row], Any]) -> dict[Any, list[Row]]:
    found = defaultdict(list)
    for row in rows:
        found[key(row)].append(row)
    return dict(found)


def _panels(groups: dict[str, list[Row]], paint: Callable[[Axes, list[Row]], None], x: str, y: str) -> Figure:
    """One panel for each group, three in a row, with one legend."""
    columns = min(3, len(groups))
    lines = -(-len(groups) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.4 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False, sharey=True).ravel()
    for panel, (title, rows) in zip(panels, groups.items(), strict=False):
        paint(panel, rows)
        panel.set(title=title, xlabel=x, ylabel=y)
    for panel in panels[len(groups) :]:
        panel.set_visible(False)
    entries = {label: handle for panel in panels for handle, label in zip(*panel.get_legend_handles_labels())}  # noqa: B905
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=min(5, len(entries)))
    return figure


def _nothing_done(panel: Axes) -> None:
    panel.axhline(1.0, color="grey", linewidth=1, linestyle="--", label="nothing done")
    panel.set_yscale("log")


def _against_cost(rows: Sequence[Row]) -> Figure:
    """Open marks are the paper's form."""
    chosen = [r for r in rows if r["cell"]["K"] == "all" and r["cell"]["forget"] == "0.08"]

    def paint(panel: Axes, group: list[Row]) -> None:
        _nothing_done(panel)
        for row in group:
            cell = row["cell"]
            colour, marker = _LOOKS[cell["mode"]]
            is_paper = cell["propagation"] == "paper"
            panel.plot(
                row["seconds"] / row["steps"] / row["step_seconds"], _error(row), marker=marker, linestyle="none",
                color=colour, markerfacecolor="none" if is_paper else colour,
                label="" if is_paper else cell["mode"],
            )  # fmt: skip

    return _panels(
        _groups(chosen, _title), paint, "cost of a step, in training steps (open: the paper's form)", "relative error"
    )


def _lines(rows: Sequence[Row], x: Callable[[Row], float | None], label: str) -> Figure:
    def paint(panel: Axes, group: list[Row]) -> None:
        _nothing_done(panel)
        for mode, points in _groups(group, lambda row: row["cell"]["mode"]).items():
            colour, marker = _LOOKS[mode]
            placed = sorted((place, _error(row)) for row in points if (place := x(row)) is not None)
            panel.plot(*zip(*placed, strict=True), color=colour, marker=marker, label=mode)

    return _panels(_groups(rows, _title), paint, label, "relative error")


def _against_K(rows: Sequence[Row]) -> Figure:  # noqa: N802 -- the paper's name
    chosen = [row for row in rows if row["cell"]["forget"] == "early"]
    figure = _lines([r for r in chosen if r["cell"]["K"] != "auto"], lambda row: row["windows"][0]["K_used"], "K used")
    for panel, group in zip(figure.axes, _groups(chosen, _title).values(), strict=False):
        for row in group:
            if row["cell"]["K"] == "auto":
                colour, marker = _LOOKS[row["cell"]["mode"]]
                place = row["windows"][0]["K_used"]
                panel.plot(place, _error(row), marker=marker, color=colour, markersize=12, fillstyle="none")
    return figure


def _against_share(rows: Sequence[Row]) -> Figure:
    chosen = [r for r in rows if r["cell"]["forget"][:1] == "0" and r["cell"]["propagation"] == "optimizer"]
    return _lines(chosen, lambda row: 100 * float(row["cell"]["forget"]), "forgotten rows, %")


def _estimates(rows: Sequence[Row]) -> Figure:
    """All cells whose windows reach the end, where no error is left out of what is estimated."""
    chosen = [r for r in rows if r.get("estimated_error") and r["cell"]["K"] == "all" and r["relative_error"]]
    correlation = rank_correlation(
        [row["estimated_error"] for row in chosen], [row["relative_error"] for row in chosen]
    )

    def paint(panel: Axes, group: list[Row]) -> None:
        panel.axline((0.1, 0.1), slope=1, color="grey", linestyle="--", linewidth=1, label="estimate = error")
        panel.set(xscale="log", yscale="log")
        for row in group:
            colour, marker = _LOOKS[row["cell"]["mode"]]
            panel.plot(
                row["estimated_error"], _error(row), marker=marker, color=colour, linestyle="none",
                label=row["cell"]["mode"],
            )  # fmt: skip

    title = f"{len(chosen)} sweeps to the end, rank correlation {correlation:.2f}"
    return _panels({title: chosen}, paint, "estimated relative error", "relative error")
