"""How `inspect --verify` shows what it finds."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from lmcleaner.cli.console import Reporter, print_json, print_text, spelled
from lmcleaner.formats.wording import counted

if TYPE_CHECKING:
    from lmcleaner.formats.reader import TrainingLog
    from lmcleaner.inspection.verify import Verification


def show_verification(
    log: "TrainingLog", replay_steps: int | None, model: str | None, device: str | None, *, quiet: bool, as_json: bool
) -> None:
    """Verifies a log; `replay_steps` is 0 for no replay and None for all steps."""
    from lmcleaner.inspection.verify import verify

    steps = log.num_steps if replay_steps is None else replay_steps
    with Reporter(quiet=quiet or as_json) as reporter:
        found = verify(log, replay_steps=steps or None, model=model, device=device, progress=reporter)
    if as_json:
        print_json(asdict(found) | {"is_sound": found.is_sound})
    else:
        _show_problems(found)
        if found.replay is not None:
            print_text(f"replay: {found.replay.num_exact} of {counted(found.replay.num_steps, 'step')} bit for bit")
            for difference in found.replay.unrestorable:
                print_text(f"  {difference}")
        print_text("the log is sound" if found.is_sound else "the log is NOT sound")
    if not found.is_sound:
        raise typer.Exit(1)


def _show_problems(found: "Verification") -> None:
    counts = Counter(problem.kind for problem in found.problems)
    kinds = "".join(f", {counts[kind]} {kind}" for kind in ("unreachable", "leftover") if counts[kind])
    print_text(f"{counted(found.num_parts, 'part')} read, {counts['damaged']} damaged{kinds}")
    for problem in found.problems:
        where = problem.array if problem.step is None else f"{problem.array}, step {problem.step}"
        if problem.kind != "unreachable":
            print_text(f"  {problem.kind}: {where}: {problem.message}")
    if counts["damaged"]:
        left = found.usable
        print_text(f"checkpoints that can be read: {', '.join(map(str, left.checkpoints)) or 'none'}")
        print_text(f"parameters that can be read: before steps {_spelled(left.parameters)}")
        windows = f"secant from any checkpoint, other modes within steps {_spelled(left.windows)}"
        print_text(f"requests that are possible: {windows if left.requests else 'none'}")


def _spelled(ranges: Sequence[tuple[int, int]]) -> str:
    """Ranges that hold their last step, for people."""
    return spelled([(first, last + 1) for first, last in ranges])
