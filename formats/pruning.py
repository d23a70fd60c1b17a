"""Retention: a log with fewer checkpoints, updates or gradients. What goes is planned first and counted no more.

The commit record shrinks before any object goes, so that a kill in between leaves objects that nothing counts, never a
log that counts what isn't there.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise

from lmcleaner.formats.commit import Change, Commit, Ranges
from lmcleaner.formats.errors import InsufficientLogError, UsageError
from lmcleaner.formats.generations import clean, open_to_rewrite
from lmcleaner.formats.layout import UPDATES
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.store import Store
from lmcleaner.formats.writer import write_commit, write_metadata


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruning:
    """What shall go.

    Attributes:
        keep_checkpoints_every: checkpoints of other steps than its multiples go, but for the first and the last one;
            None keeps all.
        drop_updates: [first, stop) of each range of steps whose updates go.
        drop_gradients: whether all gradients go.
    """

    keep_checkpoints_every: int | None = None
    drop_updates: Ranges = ()
    drop_gradients: bool = False

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
        freed_bytes: by part of the log.
        longest_lead_in: steps that a request may have to go through before its first occurrence, at most.
    """

    checkpoints: tuple[int, ...]
    updates: Ranges
    gradients: Ranges
    freed_bytes: dict[str, int]
    longest_lead_in: int


def plan_pruning(log: TrainingLog, pruning: Pruning) -> PruningPlan:
    """What a pruning would leave; changes nothing.

    Args:
        log: the log.
        pruning: what shall go.

    Returns:
        The plan.

    Raises:
        InsufficientLogError: the run was interrupted, and would go on from what goes.
    """
    commit = _pruned(log, pruning)
    kept = set(log.tree.objects(commit))
    freed: Counter[str] = Counter()
    prefix = log.tree.path("") + "/"
    for key, size in log.store.list():
        if key in kept or not key.startswith(prefix):
            continue
        freed[key.removeprefix(prefix).split("/")[0].removesuffix("_scales")] += size
    edges = sorted(commit.checkpoints)
    return PruningPlan(
        checkpoints=tuple(edges),
        updates=commit.updates,
        gradients=commit.gradients,
        freed_bytes=dict(freed),
        longest_lead_in=max((b - a for a, b in pairwise(edges)), default=1) - 1,
    )


def prune(location: Store | str, pruning: Pruning) -> PruningPlan:
    """Removes what a pruning names, and what a killed writer left.

    Args:
        location: folder, URL or store of the log.
        pruning: what shall go.

    Returns:
        What was left.

    Raises:
        UsageError: the place can't be written.
        NotFoundError: no log lies there.
        ExistsError: somebody writes the log.
        InsufficientLogError: the run was interrupted, and would go on from what goes.
    """
    with open_to_rewrite(location) as log:
        plan, commit = plan_pruning(log, pruning), _pruned(log, pruning)
        change = Change(
            kind="pruning",
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            root_before=log.root,
            details={
                "checkpoints": sorted(set(log.commit.checkpoints) - set(commit.checkpoints)),
                "updates": [list(kept) for kept in commit.updates],
                "gradients": [list(kept) for kept in commit.gradients],
            },
        )
        if commit != log.commit:
            commit = replace(commit, history=(*commit.history, change))
            write_metadata(log.store, log.tree, commit, dict(log.tree.metadata(log.commit)))
            write_commit(log.store, commit, log.manifest_digest)
        clean(TrainingLog(log.store))
        return plan


def _pruned(log: TrainingLog, pruning: Pruning) -> Commit:
    """The commit record that counts what stays."""
    if not log.commit.finished:
        raise InsufficientLogError(
            f"the run was interrupted, and would go on from what goes: {log.location}",
            hint="`lmcleaner record LOG --resume` brings it to its end",
        )
    every = pruning.keep_checkpoints_every or 1
    ends = {0, max(log.commit.checkpoints)}
    updates = _without(log, log.commit.updates, pruning.drop_updates)
    stays = {step + 1 for first, stop in updates for step in range(first, stop)}
    return replace(
        log.commit,
        checkpoints={s: c for s, c in log.commit.checkpoints.items() if s in ends or s % every == 0},
        updates=updates,
        gradients=() if pruning.drop_gradients else log.commit.gradients,
        corrections=tuple(step for step in log.commit.corrections if step in stays),
    )


def _without(log: TrainingLog, kept: Ranges, dropped: Sequence[tuple[int, int]]) -> Ranges:
    """The ranges that are left; of objects that hold several steps, only whole ones go."""
    if UPDATES not in log.tree.stacks:
        return kept
    rows = log.tree.stack(UPDATES)[0].shard_rows
    left = {step for first, stop in kept for step in range(first, stop)}
    for first, stop in dropped:
        whole = log.num_steps if stop >= log.num_steps else stop // rows * rows
        left -= set(range(-(-first // rows) * rows, whole))
    return ranges_of(sorted(left))


def ranges_of(steps: Iterable[int]) -> Ranges:
    """[first, stop) of each run of neighbours.

    Args:
        steps: ascending.

    Returns:
        The ranges.
    """
    found: list[tuple[int, int]] = []
    for step in steps:
        if found and found[-1][1] == step:
            found[-1] = (found[-1][0], step + 1)
        else:
            found.append((step, step + 1))
    return tuple(found)
