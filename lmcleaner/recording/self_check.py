"""Takes some steps of a finished log again and lets the log say whether they can be replayed.

A run may do what no hook sees: add to its loss, change a frozen weight between two steps, put noise into embeddings.
It must show when the run ends, while it can be repeated, and not when somebody asks it to forget.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from lmcleaner.formats.commit import SelfCheck
from lmcleaner.formats.errors import LmcleanerError
from lmcleaner.formats.generations import open_to_rewrite
from lmcleaner.formats.manifest import NumericsEntry
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

# What a run may have done that a replay doesn't, as far as the first step that it doesn't repeat tells.
_FORWARD = "the model returned another loss: its inputs were changed on their way, or noise was put into it"
_ANY_ORDER = "; a GPU adds in any order, but under torch.use_deterministic_algorithms(True)"
_BETWEEN = "the steps before it are exact: something changed the model between two steps, as a frozen weight"
_BACKWARD = "the model returned the same loss: the loop added to it, or changed gradients or the optimizer's step"


@dataclass(frozen=True, slots=True)
class _Checked:
    """A step that was taken again: distance from the run's parameters after it, relative to the step, if known."""

    error: float | None
    has_same_losses: bool


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
    steps = dict[int, _Checked]()
    with torch.random.fork_rng(), restored_numerics(log.manifest.numerics):
        try:
            replay = open_replay(log.manifest, model)
        except LmcleanerError as error:  # no such model, or another one
            return SelfCheck(state="no", steps=0, error=None, why=error.message)
        for stretch in stretches:
            steps |= _checked(log, replay, stretch, progress)
    return _judged(steps, log.manifest.numerics)


def _stretches(log: TrainingLog) -> list[range]:
    """The steps to take, each stretch from a checkpoint on."""
    starts = [step for step in log.checkpoint_steps if step < log.num_steps]
    chosen = sorted({starts[0], starts[len(starts) // 2], starts[-1]}) if starts else []
    ends = [*chosen[1:], log.num_steps]
    return [range(start, min(start + _STEPS_EACH, end)) for start, end in zip(chosen, ends, strict=True)]


def _checked(log: TrainingLog, replay: ReplayModel, steps: Sequence[int], progress: Progress) -> dict[int, _Checked]:
    state = replay.state(log.checkpoint(steps[0]))
    found = dict[int, _Checked]()
    for number in steps:
        repeated = repeat_step(log, replay, state, number)
        error = 0.0 if repeated.is_exact else _distance(log, replay, state, number)
        found[number] = _Checked(error, repeated.has_same_losses)
        progress.advance()
    return found


def _distance(log: TrainingLog, replay: ReplayModel, state: TrainingState, number: int) -> float | None:
    if not {number, number + 1} <= log.readable_steps:
        return None
    before, after = (replay.load(log.parameters(step)) for step in (number, number + 1))
    taken = distance(after, before)
    off = distance([parameter.detach() for parameter in state.parameters], after)
    return off / taken if taken and math.isfinite(off) else None


def _judged(steps: dict[int, _Checked], numerics: NumericsEntry) -> SelfCheck:
    wrong = [number for number, step in steps.items() if step.error != 0.0]
    if not wrong:
        return SelfCheck(state="exact", steps=len(steps), error=0.0, why="")
    known = [step.error for step in steps.values() if step.error is not None]
    largest = max(known) if len(known) == len(steps) else None
    off = "an unknown distance" if largest is None else f"{largest:.2g} of a step"
    why = f"a replay of step {wrong[0]} gives other parameters than the run had: off by {off}"
    if numerics.device == "cuda" and not numerics.deterministic:
        why += _ANY_ORDER
    is_close = largest is not None and largest <= _CLOSE
    if is_close:
        return SelfCheck(state="close", steps=len(steps), error=largest, why=why)
    return SelfCheck(state="no", steps=len(steps), error=largest, why=f"{why}; {_cause(steps, wrong[0])}")


def _cause(steps: dict[int, _Checked], first_wrong: int) -> str:
    if steps[first_wrong].has_same_losses:
        return _BACKWARD
    return _FORWARD if first_wrong == min(steps) else _BETWEEN
