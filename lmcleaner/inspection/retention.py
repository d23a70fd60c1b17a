"""Which requests a pruned log still serves, and what they cost more than before."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from lmcleaner.choices import WRITTEN, HessianMode
from lmcleaner.formats.pruning import PruningPlan
from lmcleaner.formats.ranges import Ranges, ranges_of, readable_steps, steps_in
from lmcleaner.formats.reader import TrainingLog

Outcome = Literal["possible", "slower", "impossible"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LeadIn:
    """Requests that must start from an earlier checkpoint.

    Attributes:
        first: first step of their first occurrences.
        last: last step of them.
        checkpoint: where they start from.
        more_steps: steps that they go through more than before, at most.
    """

    first: int
    last: int
    checkpoint: int
    more_steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What a pruning means for later requests.

    Attributes:
        lead_ins: requests that must start from an earlier checkpoint.
        replayed: [first, stop) of each range of steps before which θ can't be read any more; all but secant replay it.
        later_end_steps: steps by which a window with a K below all ends later than before, at most; its end moves on to
            where θ can be read.
        recomputed: [first, stop) of each range of steps whose gradients go; modes that write curvature down compute
            them again.
        modes: what becomes of requests in each mode.
    """

    lead_ins: tuple[LeadIn, ...]
    replayed: tuple[tuple[int, int], ...]
    later_end_steps: int
    recomputed: Ranges
    modes: dict[HessianMode, Outcome]


def outlook(log: TrainingLog, plan: PruningPlan) -> Outlook:
    """What a pruning means for later requests.

    Args:
        log: the log before it.
        plan: what stays.

    Returns:
        Which requests change, and how.
    """
    before = log.readable_steps
    after = readable_steps(plan.checkpoints, steps_in(plan.updates))
    lead_ins = tuple(_lead_ins(log, plan))
    replayed = ranges_of(sorted(before - after))
    later = _later_end_steps(before, after, log.num_steps)
    recomputed = log.commit.gradients if not plan.gradients else ()

    def outcome(mode: HessianMode) -> Outcome:
        if log.num_steps not in after:
            return "impossible"
        is_replayed = bool(replayed) and mode is not HessianMode.SECANT
        loses_gradients = log.commit.gradients != plan.gradients
        kinds = {entry.kind for step, entry in log.commit.curvature.items() if step not in plan.curvature}
        loses = (mode in WRITTEN and loses_gradients) or mode.value in kinds
        return "slower" if lead_ins or later or is_replayed or loses else "possible"

    modes = {mode: outcome(mode) for mode in HessianMode}
    return Outlook(lead_ins=lead_ins, replayed=replayed, later_end_steps=later, recomputed=recomputed, modes=modes)


def _lead_ins(log: TrainingLog, plan: PruningPlan) -> Iterable[LeadIn]:
    for start, stop in pairwise((*plan.checkpoints, log.num_steps)):
        dropped = [step for step in log.checkpoint_steps if start < step < stop]
        if dropped:
            yield LeadIn(first=dropped[0], last=stop - 1, checkpoint=start, more_steps=dropped[-1] - start)


def _later_end_steps(before: frozenset[int], after: frozenset[int], num_steps: int) -> int:
    most, then, now = 0, num_steps, num_steps
    for step in range(num_steps, 0, -1):
        then, now = step if step in before else then, step if step in after else now
        most = max(most, now - then)
    return most
