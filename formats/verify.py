"""Reads a whole log once and lists what is damaged; changes nothing."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from lmcleaner.formats.errors import DamagedError
from lmcleaner.formats.layout import TABLES, UPDATES, checkpoint_name
from lmcleaner.formats.reader import TrainingLog


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One damaged part of a log.

    Attributes:
        array: path of the array in the log.
        step: the step that the damage belongs to, or None for a table that spans steps.
        message: what was expected and found.
    """

    array: str
    step: int | None
    message: str


def find_problems(log: TrainingLog) -> Iterator[Problem | None]:
    """Checks every table, every checkpoint and every update against the digests of the commit record.

    Args:
        log: the opened log.

    Yields:
        A problem for each damaged part, or None for each sound one, so that a caller can show progress;
        `num_parts` of them.
    """
    for table in TABLES:
        yield _problem(table.name, None, log.table, table.name)
    for step in log.checkpoint_steps:
        yield _problem(checkpoint_name(step), step, log.checkpoint, step)
    if log.has_updates:
        yield from _update_problems(log)


def num_parts(log: TrainingLog) -> int:
    """How many parts `find_problems` will check."""
    return len(TABLES) + len(log.checkpoint_steps) + (log.num_steps if log.has_updates else 0)


def _update_problems(log: TrainingLog) -> Iterator[Problem | None]:
    """Walks the updates; after a damaged one, goes on from the next checkpoint that can be read.

    Yields:
        A problem for each damaged or unreachable update, or None.
    """
    bits = None
    for step in range(log.num_steps):
        if step in log.checkpoint_steps:
            with suppress(DamagedError):  # reported with the checkpoints; the updates before it may lead past it
                bits = log.checkpoint_parameters(step)
        if bits is None:
            yield Problem(array=UPDATES, step=step, message="can't be reached: a part before it is damaged")
            continue
        problem = _problem(UPDATES, step, log.advance, [bits], step)
        if problem is not None:
            bits = None
        yield problem


def _problem(array: str, step: int | None, read: Callable[..., object], *arguments: object) -> Problem | None:
    try:
        read(*arguments)
    except DamagedError as error:
        return Problem(array=array, step=step, message=error.message)
    return None
