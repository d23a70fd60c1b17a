"""What a training log holds, as a page."""

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.wording import counted
from lmcleaner.inspection.sizes import sizes_of
from lmcleaner.inspection.summary import Summary, summarize
from lmcleaner.reporting.charts import Point, line_chart, timeline
from lmcleaner.reporting.markup import NOTHING, Html, code, folded, pairs, paragraph, table
from lmcleaner.reporting.page import Section, make_page

_MAX_SCHEDULES = 4  # parameter groups with a learning rate of their own that are drawn
_MAX_COUNTS = 20  # different numbers of uses that are listed


def log_page(log: TrainingLog) -> str:
    """A page of a log; it holds no content of a row.

    Args:
        log: the opened log.

    Returns:
        One HTML document that needs nothing beside itself.

    Raises:
        DamagedError: a table can't be trusted.
    """
    summary = summarize(log)
    name = PurePosixPath(log.location.rstrip("/")).name or log.location
    sections = [_training(log), _rates(log), _gradients(log), _uses(log), _checkpoints(log), _sizes(log)]
    return make_page(f"Training log {name}", [_overview(summary)], sections)


def _overview(summary: Summary) -> Html:
    planned = f" of {summary.planned_steps:,} planned" if summary.planned_steps else ""
    return pairs("The run at a glance", {
        "log": summary.log,
        "state": "finished" if summary.is_finished else "interrupted",
        "recorded": summary.created,
        "model": f"{summary.model['class_name']} from {summary.model['source']}, {summary.model['dtype']}",
        "trainable parameters": summary.num_parameters,
        "data": summary.data.get("source"),
        "optimizer": summary.optimizer["name"],
        "steps": f"{summary.num_steps:,}{planned}, {counted(summary.num_microbatches, 'microbatch')}",
        "seconds": summary.seconds,
        "replayable": f"{summary.replayable} {summary.replay_problem}".strip() if summary.replayable else None,
        "since": ", ".join(f"{kind} on {time}" for kind, time in summary.history) or None,
        "root": code(summary.root),
    })  # fmt: skip


def _training(log: TrainingLog) -> Section:
    return Section("Loss", [line_chart("Loss of each step, nats", [_series(log.table("steps/loss"))])])


def _rates(log: TrainingLog) -> Section:
    """A picture for each schedule; groups with the same one share it."""
    schedules: dict[bytes, list[int]] = {}
    rates = log.table("steps/lr")
    for group in range(rates.shape[1]):
        schedules.setdefault(rates[:, group].tobytes(), []).append(group)
    shown = [*schedules.values()][:_MAX_SCHEDULES]
    charts = [line_chart(_schedule(groups, len(schedules)), [_series(rates[:, groups[0]])]) for groups in shown]
    more = len(schedules) - len(shown)
    return Section("Learning rate", [*charts, paragraph(f"{counted(more, 'more schedule')}.") if more else NOTHING])


def _schedule(groups: list[int], num_schedules: int) -> str:
    if num_schedules == 1:
        return "Learning rate of each step"
    return f"Learning rate of parameter group {', '.join(map(str, groups))}"


def _gradients(log: TrainingLog) -> Section:
    threshold = log.manifest.max_grad_norm
    norms = line_chart(
        "Gradient norm of each step, as the optimizer was given it", [_series(log.table("steps/gradient_norm"))],
        limit=("clipped at", threshold) if threshold else None,
    )  # fmt: skip
    return Section("Gradient norm", [norms])


def _uses(log: TrainingLog) -> Section:
    """How often rows were used."""
    num_samples = len(log.table("samples/stop"))
    per_sample = np.bincount(log.table("occurrences/sample"), minlength=num_samples)
    numbers, samples = np.unique(per_sample, return_counts=True)
    rows = [[int(uses), int(count)] for uses, count in zip(numbers, samples, strict=True)]
    rest = sum(count for _, count in rows[_MAX_COUNTS:])
    totals = {
        "rows": num_samples,
        "uses": int(per_sample.sum()),
        "redacted rows": int(log.table("samples/redacted").sum()),
    }
    per_step = np.bincount(log.occurrence_steps, minlength=log.num_steps)
    return Section("Sample occurrences", [
        pairs("Rows and their uses", totals),
        table("How many rows were used how often", ["Uses", "Rows"], rows[:_MAX_COUNTS]),
        paragraph(f"{counted(rest, 'row')} more, used more often.") if rest else NOTHING,
        line_chart("Rows in each step", [_series(per_step)]),
    ])  # fmt: skip


def _checkpoints(log: TrainingLog) -> Section:
    steps, stacks = log.checkpoint_steps, {"updates": log.commit.updates, "gradients": log.commit.gradients}
    lanes: dict[str, list[Point]] = {"checkpoints": [(step, step + 1) for step in steps]}
    lanes |= {name: [(first, stop) for first, stop in kept] for name, kept in stacks.items() if kept}
    told = f"{counted(len(steps), 'checkpoint')} over {log.num_steps:,} steps, the last one before step {steps[-1]:,}."
    listed = folded(
        counted(len(steps), "checkpoint"), paragraph("Before steps ", ", ".join(f"{step:,}" for step in steps))
    )
    codecs: Mapping[str, object] = {"updates": log.manifest.updates, "gradients": log.manifest.gradients}
    picture = timeline("What the log holds of which steps", told, lanes, log.num_steps)
    return Section("Checkpoints", [picture, pairs("How it is stored", codecs), listed])


def _sizes(log: TrainingLog) -> Section:
    found = sizes_of(log)
    rows = [
        [
            part.name,
            part.num_files,
            part.num_bytes,
            None if part.bytes_per_unit is None else f"{part.bytes_per_unit:,.3f} a {part.unit}",
        ]
        for part in found.parts
        if part.num_files
    ]
    total = ["all", sum(part.num_files for part in found.parts), sum(part.num_bytes for part in found.parts), None]
    return Section(
        "Sizes", [table("What the log takes on disk", ["Part", "Files", "Bytes", "Bytes each"], [*rows, total])]
    )


def _series(values: NDArray[Any]) -> list[Point]:
    return list(enumerate(values.tolist()))
