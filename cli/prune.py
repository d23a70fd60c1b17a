"""`lmcleaner prune`."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from lmcleaner.choices import WRITTEN
from lmcleaner.cli.console import human_bytes, print_json, print_text, spelled
from lmcleaner.cli.shared import DEFAULT_LOG, AsJson, Config, Log, Quiet
from lmcleaner.formats.errors import UsageError
from lmcleaner.formats.wording import counted

if TYPE_CHECKING:
    from lmcleaner.formats.pruning import PruningPlan
    from lmcleaner.formats.reader import TrainingLog
    from lmcleaner.inspection.retention import Outlook


def prune(
    log: Log = DEFAULT_LOG,
    keep_checkpoints_every: Annotated[
        int | None, typer.Option(metavar="N", help="Keep the checkpoints of every N-th step, the first and the last.")
    ] = None,
    drop_updates: Annotated[
        str | None, typer.Option(metavar="all|A-B[,…]", help="Steps whose updates shall go.")
    ] = None,
    drop_gradients: Annotated[bool, typer.Option("--drop-gradients", help="Remove all gradients.")] = False,
    drop_curvature: Annotated[bool, typer.Option("--drop-curvature", help="Remove all recorded curvature.")] = False,
    apply: Annotated[bool, typer.Option("--apply", help="Do it; without, only the plan is shown.")] = False,
    config: Config = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Make a log smaller: thin its checkpoints out, drop updates, gradients or curvature; shows the plan first.

    Example: `lmcleaner prune my-log --keep-checkpoints-every 500 --drop-updates 0-999`
    """
    from lmcleaner.formats.pruning import Pruning, plan_pruning
    from lmcleaner.formats.pruning import prune as run
    from lmcleaner.formats.reader import TrainingLog
    from lmcleaner.inspection.retention import outlook

    opened = TrainingLog(log)
    asked = _parse_ranges(drop_updates, opened.num_steps)
    pruning = Pruning(
        keep_checkpoints_every=keep_checkpoints_every,
        drop_updates=asked,
        drop_gradients=drop_gradients,
        drop_curvature=drop_curvature,
    )
    plan = run(log, pruning) if apply else plan_pruning(opened, pruning)
    means = outlook(opened, plan)
    if as_json:
        print_json(asdict(plan) | {"requests": asdict(means), "applied": apply})
        return
    for line in (*_plan_lines(opened, plan, asked, applied=apply), *_request_lines(means)):
        print_text(line)
    if not apply:
        print_text("nothing was changed; --apply does it" if plan.freed_bytes else "there is nothing to remove")


def _plan_lines(
    log: "TrainingLog", plan: "PruningPlan", asked: Sequence[tuple[int, int]], *, applied: bool
) -> Iterator[str]:
    freed = ", ".join(f"{part} {human_bytes(size)}" for part, size in plan.freed_bytes.items()) or "nothing"
    yield f"{'freed' if applied else 'would free'}: {freed}"
    if asked:
        yield f"updates that go: {spelled(plan.dropped_updates)}{_difference(log, plan, asked)}"
    yield f"checkpoints that stay: {', '.join(map(str, plan.checkpoints))}"
    yield f"updates that stay: {spelled(plan.updates)}"
    yield f"gradients that stay: {spelled(plan.gradients)}"
    if plan.curvature:
        yield f"curvature that stays: from steps {', '.join(map(str, plan.curvature))}"


def _difference(log: "TrainingLog", plan: "PruningPlan", asked: Sequence[tuple[int, int]]) -> str:
    """Why other updates go than were asked for; "" where just these go."""
    there = {step for first, stop in log.commit.updates for step in range(first, stop)}
    wanted = {step for step in there if any(first <= step < stop for first, stop in asked)}
    if not wanted:
        return f"; the log holds none of steps {spelled(asked)}"
    if wanted == {step for first, stop in plan.dropped_updates for step in range(first, stop)}:
        return ""
    size = counted(plan.steps_per_object, "step")
    return f"; asked for {spelled(asked)}, and only whole objects go, of up to {size}"


def _request_lines(means: "Outlook") -> Iterator[str]:
    yield "requests: " + ", ".join(f"{mode} {outcome}" for mode, outcome in means.modes.items())
    for lead_in in means.lead_ins:
        yield (
            f"  first occurrence in steps {lead_in.first}-{lead_in.last}: starts from checkpoint {lead_in.checkpoint}, "
            f"up to {counted(lead_in.more_steps, 'more lead-in step')}"
        )
    if means.replayed:
        yield f"  all but secant replay θ before steps {spelled(means.replayed)}: one more gradient a step"
    if means.later_end_steps:
        later = counted(means.later_end_steps, "step")
        yield f"  a window with a K below all ends up to {later} later, where θ can be read"
    if means.recomputed:
        modes = ", ".join(sorted(WRITTEN))
        yield f"  {modes} compute the gradients of steps {spelled(means.recomputed)} again: one gradient a step"


def _parse_ranges(text: str | None, num_steps: int) -> tuple[tuple[int, int], ...]:
    if text is None:
        return ()
    if text == "all":
        return ((0, num_steps),) if num_steps else ()
    try:
        edges = [tuple(int(edge) for edge in part.split("-")) for part in text.split(",")]
    except ValueError:
        edges = [()]
    if any(len(edge) not in {1, 2} for edge in edges):
        raise UsageError(f"--drop-updates: expected all, or steps like 0-99,200, found {text!r}")
    return tuple((edge[0], edge[-1] + 1) for edge in edges)
