"""What a mode takes from a log instead of from rows, so that a plan and a sweep agree on it."""

from dataclasses import dataclass

from lmcleaner.choices import WRITTEN, HessianMode
from lmcleaner.curvature.segments import ESTIMATED
from lmcleaner.curvature.stored import served_steps
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.training.recorded import exact_steps, unclipped_steps
from lmcleaner.unlearning.request import ForgetSet
from lmcleaner.unlearning.windows import Window


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What a mode takes from a log instead of from rows.

    Attributes:
        gradients: steps without a masked row whose gradient before clipping the log tells.
        given: steps without a masked row whose gradient the log holds to the bit, as the optimizer was given it.
        curvature: steps from which on a recorded estimate serves, each until the next; none where one must be made.
    """

    gradients: frozenset[int]
    given: frozenset[int]
    curvature: tuple[int, ...]


def find_recorded(log: TrainingLog, forget_set: ForgetSet, mode: HessianMode, rank: int) -> Recorded:
    """What a mode takes from a log.

    Args:
        log: the training log.
        forget_set: what to leave out.
        mode: how gradients are found; only `WRITTEN` ones take anything.
        rank: eigenpairs of LOW_RANK.

    Returns:
        Steps whose gradients, and those whose curvature, come from the log.
    """
    if mode not in WRITTEN:
        return Recorded(gradients=frozenset(), given=frozenset(), curvature=())
    changed = frozenset(forget_set.steps) - forget_set.skipped
    return Recorded(
        gradients=unclipped_steps(log) - changed,
        given=exact_steps(log) - changed,
        curvature=served_steps(log, mode, rank),
    )


def is_data_free(log: TrainingLog, forget_set: ForgetSet, window: Window, mode: HessianMode, rank: int) -> bool:
    """Whether a sweep through a window reads no row at all.

    Args:
        log: the training log.
        forget_set: what to leave out.
        window: the window.
        mode: how gradients are found.
        rank: eigenpairs of LOW_RANK.

    Returns:
        True where the log holds the gradients of all steps that are taken, to the bit, the curvature, and θ or what
        it is replayed from.
    """
    found = find_recorded(log, forget_set, mode, rank)
    lead_in = set(range(window.start, window.first))
    carried = set(range(window.first, window.end)) - forget_set.skipped
    is_known = log.readable_steps.issuperset(range(window.first, window.end + 1))
    needs_estimate = mode in ESTIMATED and not found.curvature
    return (
        mode in WRITTEN
        and lead_in | carried <= found.given
        and carried <= found.gradients
        and not needs_estimate
        and (is_known or exact_steps(log).issuperset(range(window.start, window.end)))
    )
