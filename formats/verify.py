"""Reads a whole log once and lists what is damaged; changes nothing."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from lmcleaner.formats.chunks import ChunkError
from lmcleaner.formats.documents import DOCUMENT_BYTES
from lmcleaner.formats.errors import DamagedError
from lmcleaner.formats.layout import GRADIENTS, UPDATES, checkpoint_name, curvature_name, is_uncounted, num_spans
from lmcleaner.formats.ledger import walk_ledger
from lmcleaner.formats.ranges import Ranges, ranges_of, readable_steps
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.reconstruction import Reconstruction
from lmcleaner.formats.stacks import StackReader
from lmcleaner.formats.vectors import VectorReader

Kind = Literal["damaged", "unreachable", "leftover"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One part of a log that isn't as it should be.

    Attributes:
        kind: "damaged"; "unreachable", where the part itself is sound and one that it builds on is not; "leftover", for
            an object that the commit record doesn't count, such as a killed writer leaves: no damage.
        array: path of the array or the object in the log.
        step: the step that it belongs to, or None for what spans steps.
        message: what was expected and found.
    """

    kind: Kind
    array: str
    step: int | None
    message: str


def find_problems(log: TrainingLog) -> Iterator[Problem | None]:
    """Checks tables, checkpoints, updates, gradients and metadata against the commit record, and the request ledger.

    Args:
        log: the opened log.

    Yields:
        A problem, or None for each sound part, so that a caller can show progress; about `num_parts` of them.
    """
    names = [name for name in log.tree.tables if name in log.commit.tables]
    damaged_tables = [problem for name in names if (problem := _of_table(log, name)) is not None]
    yield from _of_ledger(log)
    yield from damaged_tables
    yield from (None for _ in range(len(names) - len(damaged_tables)))
    yield from _of_checkpoints(log)
    yield from _of_curvature(log)
    if any(problem.array.startswith("steps/") for problem in damaged_tables):
        return  # without them nobody knows how many steps there really are, nor their digests
    if UPDATES in log.tree.stacks:
        yield from _of_updates(log)
    if GRADIENTS in log.tree.stacks:
        for step in log.tree.rows_of(GRADIENTS, log.commit):
            yield _tried(GRADIENTS, step, log.gradient, step)
    yield from _of_metadata(log)
    if not damaged_tables:  # nor, without any of the others, which objects belong to it
        yield from _leftovers(log)


def num_parts(log: TrainingLog) -> int:
    """About how many parts `find_problems` will check."""
    arrays = sum(len(checkpoint.blake3) for checkpoint in log.commit.checkpoints.values())
    arrays += sum(len(estimate.blake3) for estimate in log.commit.curvature.values())
    updates = sum(stop - first for first, stop in log.commit.updates)
    gradients = sum(stop - first for first, stop in log.commit.gradients)
    return len(log.commit.tables) + arrays + updates + gradients


def _of_table(log: TrainingLog, name: str) -> Problem | None:
    return _tried(name, None, log.table, name)


def _of_ledger(log: TrainingLog) -> Iterator[Problem]:
    for path, found in walk_ledger(log):
        if isinstance(found, DamagedError):
            yield Problem(kind="damaged", array=path, step=None, message=found.problem or found.message)


def _of_checkpoints(log: TrainingLog) -> Iterator[Problem | None]:
    for step in log.checkpoint_steps:
        for name in log.commit.checkpoints[step].blake3:
            yield _tried(f"{checkpoint_name(step)}/{name}", step, log.checkpoint_array, step, name)


def _of_curvature(log: TrainingLog) -> Iterator[Problem | None]:
    for step, entry in sorted(log.commit.curvature.items()):
        for name in entry.blake3:
            yield _tried(f"{curvature_name(step)}/{name}", step, log.curvature_array, step, name)


def _of_updates(log: TrainingLog) -> Iterator[Problem | None]:
    """Walks the updates from checkpoint to checkpoint; a step after a damaged one is checked by its checksums alone.

    Yields:
        A problem for each damaged or unreachable update, or None.
    """
    stacks = StackReader(log.store, log.tree, UPDATES)
    state: Reconstruction | None = None
    is_broken = False
    for step in log.tree.rows_of(UPDATES, log.commit):
        if step in log.commit.checkpoints:
            state = _started(log, step, state)
            is_broken = state is None
        elif state is None or state.step != step:
            is_broken &= log.missing_update(step - 1, step) is None  # what was pruned is no damage to what follows
        before = state if state is not None and state.step == step else None
        problem = _tried(UPDATES, step, before.advance_to, step + 1) if before else _unreachable(log, stacks, step)
        state = before if problem is None else None
        is_broken |= before is not None and problem is not None
        is_pruned = problem is not None and problem.kind == "unreachable" and not is_broken
        yield None if is_pruned else problem


def _started(log: TrainingLog, step: int, state: Reconstruction | None) -> Reconstruction | None:
    """The walk at a checkpoint: it goes on if it got here, and begins anew if it didn't."""
    if state is not None and state.step == step:
        return state
    try:
        return Reconstruction(log, step)
    except DamagedError:  # reported with the checkpoints
        return None


def _unreachable(log: TrainingLog, stacks: StackReader, step: int) -> Problem:
    """What can be said of an update that no known parameters lead to."""
    try:
        for _ in stacks.stored(step, range(num_spans(log.manifest.num_elements))):
            pass
        if step + 1 in log.commit.corrections:
            reader = VectorReader(log.store, log.tree.correction(step + 1))
            for _ in reader.read(0, range(num_spans(log.manifest.num_elements))):
                pass
    except (ChunkError, FileNotFoundError, DamagedError) as error:
        return Problem(kind="damaged", array=UPDATES, step=step, message=f"can't be read ({error})")
    message = "can't be reached: a part before it is damaged or not there"
    return Problem(kind="unreachable", array=UPDATES, step=step, message=message)


def _of_metadata(log: TrainingLog) -> Iterator[Problem | None]:
    """The `zarr.json` of groups and arrays, which only other readers of Zarr need.

    Yields:
        A problem for each that isn't what the manifest and the commit record say.
    """
    for key, expected in log.tree.metadata(log.commit):
        try:
            found = log.store.read(key, 0, DOCUMENT_BYTES)
        except FileNotFoundError:
            if log.commit.finished:
                yield Problem(kind="damaged", array=key, step=None, message="it is missing")
            continue
        except DamagedError as error:
            yield Problem(kind="damaged", array=key, step=None, message=error.message)
            continue
        if found != expected and (log.commit.finished or not _differs_in_length(found, expected)):
            yield Problem(kind="damaged", array=key, step=None, message="it doesn't describe the array that is there")


def _differs_in_length(found: bytes, expected: bytes) -> bool:
    """Whether an unfinished log's metadata is only of another time: it is written at checkpoints."""
    try:
        document, wanted = json.loads(found), json.loads(expected)
        document["shape"][0] = wanted["shape"][0]
    except (ValueError, TypeError, KeyError, IndexError, RecursionError):
        return False
    return bool(document == wanted)


def _leftovers(log: TrainingLog) -> Iterator[Problem]:
    counted = frozenset(log.objects())
    for key, size in log.store.list():
        if key not in counted and not is_uncounted(key):
            yield Problem(kind="leftover", array=key, step=None, message=f"{size} bytes that nothing counts")


def _tried(array: str, step: int | None, read: Callable[..., object], *arguments: object) -> Problem | None:
    try:
        read(*arguments)
    except DamagedError as error:
        return Problem(kind="damaged", array=array, step=step, message=error.problem or error.message)
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Usable:
    """What can still be done with a log.

    Attributes:
        checkpoints: steps whose full state is sound.
        parameters: [first, last] of each range of steps before which θ can be read.
        requests: whether samples and steps can be read, without which nothing can be unlearned.
        windows: [first, last] of each range of steps through which a sweep can read θ; `secant` needs only the
            checkpoint at its beginning.
    """

    checkpoints: tuple[int, ...]
    parameters: tuple[tuple[int, int], ...]
    requests: bool
    windows: tuple[tuple[int, int], ...]


def usable(log: TrainingLog, problems: Sequence[Problem]) -> Usable:
    """What can still be done with a log.

    Args:
        log: the log.
        problems: all that were found.

    Returns:
        What is left; everything, where nothing is damaged.
    """
    bad = [problem for problem in problems if problem.kind != "leftover"]
    tables = {problem.array for problem in bad} & set(log.tree.tables)
    broken = {problem.step for problem in bad if problem.array.startswith("checkpoints/")}
    checkpoints = tuple(step for step in log.checkpoint_steps if step not in broken)
    if any(name.startswith("steps/") for name in tables):
        return Usable(checkpoints=checkpoints, parameters=_inclusive(checkpoints), requests=False, windows=())
    lost = {problem.step for problem in bad if problem.array == UPDATES}
    rows = set(log.tree.rows_of(UPDATES, log.commit)) - lost
    ranges = _inclusive(readable_steps(checkpoints, sorted(rows)))
    return Usable(
        checkpoints=checkpoints,
        parameters=ranges,
        requests=not tables,
        windows=() if tables else tuple((first, last) for first, last in ranges if first < last),
    )


def _inclusive(steps: Iterable[int]) -> Ranges:
    """First and last of each run of neighbours."""
    return tuple((first, stop - 1) for first, stop in ranges_of(sorted(steps)))
