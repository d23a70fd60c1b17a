"""`lmcleaner prune`."""

from dataclasses import asdict
from typing import Annotated

import typer

from lmcleaner.cli.console import human_bytes, print_json, print_text
from lmcleaner.cli.shared import DEFAULT_LOG, AsJson, Config, Log, Quiet
from lmcleaner.formats.errors import UsageError


def prune(
    log: Log = DEFAULT_LOG,
    keep_checkpoints_every: Annotated[
        int | None, typer.Option(metavar="N", help="Keep the checkpoints of every N-th step, the first and the last.")
    ] = None,
    drop_updates: Annotated[
        str | None, typer.Option(metavar="all|A-B[,…]", help="Steps whose updates shall go.")
    ] = None,
    drop_gradients: Annotated[bool, typer.Option("--drop-gradients", help="Remove all gradients.")] = False,
    apply: Annotated[bool, typer.Option("--apply", help="Do it; without, only the plan is shown.")] = False,
    config: Config = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Make a log smaller: thin its checkpoints out, drop updates or gradients; shows the plan first.

    Example: `lmcleaner prune my-log --keep-checkpoints-every 500 --drop-updates 0-999`
    """
    from lmcleaner.formats.pruning import Pruning, plan_pruning
    from lmcleaner.formats.pruning import prune as run
    from lmcleaner.formats.reader import TrainingLog

    opened = TrainingLog(log)
    pruning = Pruning(
        keep_checkpoints_every=keep_checkpoints_every,
        drop_updates=_parse_ranges(drop_updates, opened.num_steps),
        drop_gradients=drop_gradients,
    )
    plan = run(log, pruning) if apply else plan_pruning(opened, pruning)
    if as_json:
        print_json(asdict(plan) | {"applied": apply})
        return
    freed = ", ".join(f"{part} {human_bytes(size)}" for part, size in plan.freed_bytes.items()) or "nothing"
    print_text(f"{'freed' if apply else 'would free'}: {freed}")
    print_text(f"checkpoints that stay: {', '.join(map(str, plan.checkpoints))}")
    print_text(f"updates that stay: {_spelled(plan.updates)}")
    print_text(f"gradients that stay: {_spelled(plan.gradients)}")
    print_text(f"every request stays possible, with up to {plan.longest_lead_in} steps before its first occurrence")
    if plan.updates != ((0, opened.num_steps),):
        print_text("GGN and exact replay θ where its updates are gone: one more gradient a step")
        print_text("a window ends at a checkpoint, which may be later than its K steps")
    if not apply:
        print_text("nothing was changed; --apply does it")


def _parse_ranges(text: str | None, num_steps: int) -> tuple[tuple[int, int], ...]:
    if text is None:
        return ()
    if text == "all":
        return ((0, num_steps),)
    try:
        edges = [tuple(int(edge) for edge in part.split("-")) for part in text.split(",")]
    except ValueError:
        edges = [()]
    if any(len(edge) not in {1, 2} for edge in edges):
        raise UsageError(f"--drop-updates: expected all, or steps like 0-99,200, found {text!r}")
    return tuple((edge[0], edge[-1] + 1) for edge in edges)


def _spelled(ranges: tuple[tuple[int, int], ...]) -> str:
    return ", ".join(f"{first}-{stop - 1}" for first, stop in ranges) or "none"
