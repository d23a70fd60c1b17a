"""Retention: a log with fewer checkpoints, updates or gradients, or without curvature.

What goes is planned first and counted no more. The commit record shrinks before any object goes, so that a kill in
between leaves objects that nothing counts, never a log that counts what isn't there.
"""

from collections import Counter
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

from lmcleaner.formats.commit import Change, Commit
from lmcleaner.formats.errors import UsageError
from lmcleaner.formats.generations import clean, open_to_rewrite
from lmcleaner.formats.layout import UPDATES, is_uncounted
from lmcleaner.formats.ranges import Ranges, ranges_of, steps_in
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.store import Store
from lmcleaner.formats.writer import write_commit


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruning:
    """What shall go.

    Attributes:
        keep_checkpoints_every: checkpoints of other steps than its multiples go, but for the first and the last one;
            None keeps all.
        drop_updates: [first, stop) of each range of steps whose updates go.
        drop_gradients: whether all gradients go.
        drop_curvature: whether all recorded curvature goes.
    """

    keep_checkpoints_every: int | None = None
    drop_updates: Ranges = ()
    drop_gradients: bool = False
    drop_curvature: bool = False

    def __post_init__(self) -> None:
        """Checks ranges.

        Raises:
            UsageError: a value is out of its range.
        """
        if self.keep_checkpoints_every is not None and self.keep_checkpoints_every < 1:
            raise UsageError(f"--keep-checkpoints-every: expected at least 1, found {self.keep_checkpoints_every}")
        for first, stop in self.drop_updates:
            if not 0 <= first < stop:
                raise UsageError(f"--drop-updates: expected ascending steps, found {first}-{stop - 1}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PruningPlan:
    """What a pruning leaves.

    Attributes:
        checkpoints: steps whose checkpoints stay.
        updates: [first, stop) of each range of steps whose updates stay.
        gradients: likewise of the gradients.
        curvature: steps whose estimate of the curvature stays.
        dropped_updates: [first, stop) of each range of steps whose updates go; what was asked for, rounded inward.
        steps_per_object: steps whose updates share an object, which goes as a whole or stays.
        freed_bytes: by part of the log; "leftovers" are objects that nothing counts, such as a killed writer leaves.
    """

    checkpoints: tuple[int, ...]
    updates: Ranges
    gradients: Ranges
    curvature: tuple[int, ...]
    dropped_updates: Ranges
    steps_per_object: int
    freed_bytes: dict[str, int]


def plan_pruning(log: TrainingLog, pruning: Pruning) -> PruningPlan:
    """What a pruning would leave; changes nothing.

    Args:
        log: the log.
        pruning: what shall go.

    Returns:
        The plan.

    Raises:
        UsageError: the run was interrupted, and would go on from what goes.
        DamagedError: a table can't be read.
    """
    counted = frozenset(log.objects())  # first: what the record claims isn't believed before
    commit = _pruned(log, pruning)
    before, after = (set(log.tree.rows_of(UPDATES, record)) for record in (log.commit, commit))
    return PruningPlan(
        checkpoints=tuple(sorted(commit.checkpoints)),
        updates=commit.updates,
        gradients=commit.gradients,
        curvature=tuple(sorted(commit.curvature)),
        dropped_updates=ranges_of(sorted(before - after)),
        steps_per_object=_steps_per_object(log),
        freed_bytes=_freed_bytes(log, commit, counted),
    )


def prune(location: Store | Path | str, pruning: Pruning) -> PruningPlan:
    """Removes what a pruning names, and what a killed writer left.

    Args:
        location: folder, URL or store of the log.
        pruning: what shall go.

    Returns:
        What was left.

    Raises:
        UsageError: the place can't be written, or the run was interrupted and would go on from what goes.
        NotFoundError: no log lies there.
        ExistsError: somebody writes the log.
        DamagedError: a table can't be read.
    """
    with open_to_rewrite(location) as log:
        plan, commit = plan_pruning(log, pruning), _pruned(log, pruning)
        if commit != log.commit:
            write_commit(log.store, replace(commit, history=(*commit.history, _change(log, plan))), log.manifest_digest)
        clean(TrainingLog(log.store))
        return plan


def _change(log: TrainingLog, plan: PruningPlan) -> Change:
    """The entry of the log's history: what went."""
    return Change(
        kind="pruning",
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        root_before=log.root,
        details={
            "checkpoints": sorted(set(log.commit.checkpoints) - set(plan.checkpoints)),
            "updates": [list(dropped) for dropped in plan.dropped_updates],
            "gradients": [list(dropped) for dropped in log.commit.gradients] if not plan.gradients else [],
            "curvature": sorted(log.commit.curvature) if not plan.curvature else [],
        },
    )


def _pruned(log: TrainingLog, pruning: Pruning) -> Commit:
    """The commit record that counts what stays."""
    if not log.commit.finished:
        raise UsageError(
            f"the run was interrupted, and would go on from what goes: {log.location}",
            hint="`lmcleaner record LOG --resume` brings it to its end",
        )
    every, last = pruning.keep_checkpoints_every or 1, max(log.commit.checkpoints)
    updates = _without(log, pruning.drop_updates, last)
    stays = {step + 1 for step in steps_in(updates)}
    return replace(
        log.commit,
        checkpoints={s: c for s, c in log.commit.checkpoints.items() if s in {0, last} or s % every == 0},
        updates=updates,
        gradients=() if pruning.drop_gradients else log.commit.gradients,
        corrections=tuple(step for step in log.commit.corrections if step in stays),
        curvature={} if pruning.drop_curvature else log.commit.curvature,
    )


def _without(log: TrainingLog, dropped: Ranges, last_checkpoint: int) -> Ranges:
    """The updates that are left: an object goes where all steps that it still holds are dropped.

    Updates behind the last checkpoint stay, since the run's last parameters may be known from nothing else.
    """
    goes = {step for first, stop in dropped for step in range(first, min(stop, last_checkpoint))}
    objects = groupby(log.tree.rows_of(UPDATES, log.commit), lambda step: step // _steps_per_object(log))
    rows = [tuple(steps) for _, steps in objects]
    return ranges_of(step for steps in rows if not goes.issuperset(steps) for step in steps)


def _steps_per_object(log: TrainingLog) -> int:
    return log.tree.stack(UPDATES)[0].shard_rows if UPDATES in log.tree.stacks else 1


def _freed_bytes(log: TrainingLog, commit: Commit, counted: frozenset[str]) -> dict[str, int]:
    kept = frozenset(log.tree.objects(commit))
    freed: Counter[str] = Counter()
    for key, size in log.store.list():
        if key not in kept and not is_uncounted(key):
            freed[log.tree.part(key) if key in counted else "leftovers"] += size
    return dict(freed)
