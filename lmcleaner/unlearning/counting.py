"""How many gradients and products a sweep takes, counted before it begins."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from lmcleaner.choices import HessianMode, Propagation
from lmcleaner.curvature.linearized import OPERATORS
from lmcleaner.curvature.segments import ESTIMATED, num_products
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.training.recorded import exact_steps
from lmcleaner.unlearning.recorded import Recorded, is_data_free
from lmcleaner.unlearning.request import ForgetSet
from lmcleaner.unlearning.sampling import block_steps
from lmcleaner.unlearning.settling import marks
from lmcleaner.unlearning.windows import Window, replayed_steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What a sweep takes, by number.

    Attributes:
        steps: steps that are taken, with the optimizer or by the paper's recursion.
        replayed: steps that find θ again where the log no longer has it.
        plain: gradients by themselves: of lead-ins, measurements and replays, and of what the paper's form begins with.
        gradients: gradients of carried steps that a curvature is taken from, and which aren't in the log.
        stored: gradients from the log.
        products: products with a step's own curvature.
        estimates: products that estimates are made of.
        sampled: steps that are taken twice.
        gradient_steps: those whose gradient is computed by itself, rather than together with a product.
    """

    steps: int
    replayed: int
    plain: int
    gradients: int
    stored: int
    products: int
    estimates: int
    sampled: int
    gradient_steps: frozenset[int]

    @property
    def reads_rows(self) -> bool:
        """Whether any gradient is computed; a product never is without one."""
        return self.plain + self.gradients > 0


def count_sweep(
    log: TrainingLog,
    forget_set: ForgetSet,
    windows: Sequence[Window],
    mode: HessianMode,
    rank: int,
    found: Recorded,
    *,
    propagation: Propagation,
    oracle_sample: float,
    is_end_fixed: bool,
) -> Counts:
    """Counts.

    Args:
        log: the training log.
        forget_set: what to leave out.
        windows: the request's windows; those that may end earlier, and then be followed by others, at their longest.
        mode: how gradients are found.
        rank: eigenpairs of LOW_RANK.
        found: what the mode takes from the log.
        propagation: through the optimizer, or the paper's form.
        oracle_sample: percent of the steps that are taken twice.
        is_end_fixed: whether each window is carried to its end whatever happens.

    Returns:
        The counts, the most where windows may end earlier.
    """
    is_paper, is_linearized = propagation is Propagation.PAPER, mode is not HessianMode.SECANT
    lead_in = frozenset(step for w in windows if not is_paper for step in range(w.start, w.first))
    carried = {step for w in windows for step in range(w.first, w.end)} - forget_set.skipped
    deviated = carried - {window.first for window in windows}
    marked = deviated & _marked(log, forget_set, windows, mode, rank, is_end_fixed=is_end_fixed)
    sampled = set[int]()
    if is_linearized and not is_paper:
        sampled = {step for w in windows for block in block_steps(w, oracle_sample) for step in block}
    sampled -= forget_set.skipped
    replayed = _replayed(log, windows) if is_linearized else 0
    recomputed = 0 if exact_steps(log) else replayed
    # The paper's form predicts no gradient: it asks for one where its curvature is made of it.
    needed = carried if not is_paper else deviated if mode is HessianMode.FISHER else frozenset[int]()
    computed, predicted = needed - found.gradients, deviated if mode in OPERATORS else frozenset[int]()
    initial = carried.intersection(forget_set.steps) if is_paper else frozenset[int]()
    by_itself = (lead_in - found.given) | marked | sampled | initial | (computed - predicted)
    if recomputed:
        by_itself |= {step for w in windows for step in range(w.start, w.end)}
    return Counts(
        steps=len(lead_in) + len(carried),
        replayed=replayed,
        plain=len(lead_in - found.given) + (2 if is_paper else 1) * len(marked) + len(initial) + len(sampled)
        + recomputed,
        gradients=len(computed),
        stored=len((found.given & lead_in) | (found.gradients & needed)),
        products=len(predicted),
        estimates=0 if found.curvature else sum(_estimate_products(log, window, mode, rank) for window in windows),
        sampled=len(sampled),
        gradient_steps=frozenset(by_itself),
    )  # fmt: skip


def _marked(
    log: TrainingLog,
    forget_set: ForgetSet,
    windows: Sequence[Window],
    mode: HessianMode,
    rank: int,
    *,
    is_end_fixed: bool,
) -> set[int]:
    """Steps at which a prediction is held against the true gradient, unless no row is to be read."""
    return {
        step
        for window in windows
        if mode is not HessianMode.SECANT and not is_data_free(log, forget_set, window, mode, rank)
        for step in marks(window, is_end_fixed=is_end_fixed)
    }


def _replayed(log: TrainingLog, windows: Sequence[Window]) -> int:
    return sum(replayed_steps(window, log.checkpoint_steps, log.readable_steps) for window in windows)


def _estimate_products(log: TrainingLog, window: Window, mode: HessianMode, rank: int) -> int:
    """Of the estimates: one for each stretch between checkpoints, from the first step on that has a deviation."""
    if mode not in ESTIMATED:
        return 0
    ends = sorted({*log.checkpoint_steps, log.num_steps})
    starts = [window.first + 1, *(step for step in ends if window.first + 1 < step < window.end)]
    rooms = [ends[bisect_right(ends, start)] - start for start in starts if start < window.end]
    return sum(num_products(mode, rank, log.manifest.num_elements, room) for room in rooms)
