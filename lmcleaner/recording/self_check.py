"""Takes some steps of a finished log again and lets the log say whether they can be replayed.

A run may do what no hook sees: add to its loss, change its parameters between two steps, put noise into its embeddings.
It must show when the run ends, while it can be repeated, and not when somebody asks it to forget.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from lmcleaner.formats.commit import SelfCheck
from lmcleaner.formats.errors import LmcleanerError
from lmcleaner.formats.generations import open_to_rewrite
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.store import Store
from lmcleaner.formats.writer import write_commit
from lmcleaner.progress import Progress, Silent
from lmcleaner.training.numerics import restored_numerics
from lmcleaner.training.replay import ReplayModel, open_replay, repeat_step
from lmcleaner.training.state import TrainingState
from lmcleaner.training.vectors import distance

_STEPS_EACH = 2  # behind the first checkpoint, one in the middle, and the last but one
# Of a step: what a replay may be off by, so that a sweep through it is still worth something.
_CLOSE = 0.01


def record_self_check(
    location: Store | Path | str, model: str | None = None, progress: Progress | None = None
) -> SelfCheck:
    """Checks a finished log and enters what was found.

    Args:
        location: folder, URL or store of the log.
        model: where the base model lies, if not where the log says.
        progress: is told of every step.

    Returns:
        What was found; the log says the same.

    Raises:
        NotFoundError: no log lies there.
        ExistsError: somebody writes the log.
        DamagedError: the log can't be read.
    """
    with open_to_rewrite(location) as log:
        found = self_check(log, model, progress)
        write_commit(log.store, replace(log.commit, self_check=found), log.manifest_digest)
    return found


def self_check(log: TrainingLog, model: str | None = None, progress: Progress | None = None) -> SelfCheck:
    """Takes the first steps behind up to three checkpoints again; changes nothing, random number generators included.

    Args:
        log: the log.
        model: where the base model lies, if not where the log says.
        progress: is told of every step.

    Returns:
        What was found.
    """
    progress = progress or Silent()
    stretches = _stretches(log)
    progress.begin("checking the log", sum(map(len, stretches)))
    errors = dict[int, float | None]()
    with torch.random.fork_rng(), restored_numerics(log.manifest.numerics):
        try:
            replay = open_replay(log.manifest, model)
        except LmcleanerError as error:  # no such model, or another one
            return SelfCheck(state="no", steps=0, error=None, why=error.message)
        for stretch in stretches:
            errors |= _errors(log, replay, stretch, progress)
    return _judged(errors)


def _stretches(log: TrainingLog) -> list[range]:
    """The steps to take, each stretch from a checkpoint on."""
    starts = [step for step in log.checkpoint_steps if step < log.num_steps]
    chosen = sorted({starts[0], starts[len(starts) // 2], starts[-1]}) if starts else []
    ends = [*chosen[1:], log.num_steps]
    return [range(start, min(start + _STEPS_EACH, end)) for start, end in zip(chosen, ends, strict=True)]


def _errors(log: TrainingLog, replay: ReplayModel, steps: Sequence[int], progress: Progress) -> dict[int, float | None]:
    """Step -> distance from the run's parameters after it, relative to the step; None where the log can't tell."""
    state = replay.state(log.checkpoint(steps[0]))
    found = dict[int, float | None]()
    for number in steps:
        is_exact = repeat_step(log, replay, state, number)
        found[number] = 0.0 if is_exact else _distance(log, replay, state, number)
        progress.advance()
    return found


def _distance(log: TrainingLog, replay: ReplayModel, state: TrainingState, number: int) -> float | None:
    if not {number, number + 1} <= log.readable_steps:
        return None
    before, after = (replay.load(log.parameters(step)) for step in (number, number + 1))
    taken = distance(after, before)
    off = distance([parameter.detach() for parameter in state.parameters], after)
    return off / taken if taken and math.isfinite(off) else None


def _judged(errors: dict[int, float | None]) -> SelfCheck:
    wrong = [step for step, error in errors.items() if error != 0.0]
    if not wrong:
        return SelfCheck(state="exact", steps=len(errors), error=0.0, why="")
    known = [error for error in errors.values() if error is not None]
    largest = max(known) if len(known) == len(errors) else None
    off = "an unknown distance" if largest is None else f"{largest:.2g} of a step"
    why = f"a replay of step {wrong[0]} gives other parameters than the run had: off by {off}"
    is_close = largest is not None and largest <= _CLOSE
    return SelfCheck(state="close" if is_close else "no", steps=len(errors), error=largest, why=why)
