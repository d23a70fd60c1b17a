"""What a request will cost, told before the model is touched."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lmcleaner.choices import HessianMode
from lmcleaner.curvature.linearized import OPERATORS
from lmcleaner.formats.bits import BIT_DTYPES
from lmcleaner.formats.layout import UPDATES
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.wording import counted
from lmcleaner.training.optimizers import state_vectors
from lmcleaner.unlearning.options import DEFAULT_RANK
from lmcleaner.unlearning.prediction import ESTIMATE_STEPS, PROBES
from lmcleaner.unlearning.request import ForgetSet
from lmcleaner.unlearning.settling import NUM_MARKS
from lmcleaner.unlearning.windows import Window, replayed_steps

# Time of one carried step as a multiple of a training step; measured on a Llama of 260,000 parameters, one thread.
_STEP_COST = {
    HessianMode.SECANT: 1.05, HessianMode.EXACT: 3.0, HessianMode.GGN: 2.2, HessianMode.EMPIRICAL_FISHER: 2.2,
    HessianMode.DIAG: 1.1, HessianMode.LOW_RANK: 1.1, HessianMode.FISHER: 1.1,
}  # fmt: skip
_PRODUCT_COST = 1.7  # of a product with the GGN that goes into an estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Cost of one mode.

    Attributes:
        mode: the mode.
        steps: steps to go through, lead-ins included.
        gradients: gradients to compute, the measurements' included.
        products: curvature products.
        replayed: gradients among them that find θ again where the log no longer has it.
        updates: codec of the updates that θ is read from.
        bytes_to_read: bytes on disk of checkpoints and updates.
        seconds: expected, from the logged step times.
        parameter_memory_bytes: peak of what has the size of the parameters; a training step's activations come on top.
    """

    mode: HessianMode
    steps: int
    gradients: int
    products: int
    replayed: int
    updates: str
    bytes_to_read: int
    seconds: float
    parameter_memory_bytes: int


def make_plan(log: TrainingLog, windows: Sequence[Window], mode: HessianMode, rank: int = DEFAULT_RANK) -> Plan:
    """What a sweep through the windows will cost.

    Args:
        log: the training log.
        windows: the request's windows.
        mode: how gradients are found.
        rank: eigenpairs of LOW_RANK.

    Returns:
        The plan.
    """
    lead_in = sum(window.num_lead_in for window in windows)
    carried = sum(window.num_carried for window in windows)
    is_linearized = mode is not HessianMode.SECANT
    readable = log.readable_steps
    replayed = sum(replayed_steps(window, log.checkpoint_steps, readable) for window in windows) if is_linearized else 0
    marks = sum(min(NUM_MARKS, window.num_carried) for window in windows) if is_linearized else 0
    seconds = float(np.median(log.table("steps/seconds"))) if log.num_steps else 0.0
    step_costs = _STEP_COST[HessianMode.SECANT] * (lead_in + replayed + marks) + _STEP_COST[mode] * carried
    estimates = sum(_estimate_products(log, window, mode, rank) for window in windows)
    step_costs += _PRODUCT_COST * estimates
    return Plan(
        mode=mode,
        steps=lead_in + carried,
        gradients=lead_in + carried + replayed + marks,
        products=carried if mode in OPERATORS else estimates,
        replayed=replayed,
        updates=log.manifest.updates,
        bytes_to_read=_bytes_to_read(log, windows, readable),
        seconds=seconds * step_costs,
        parameter_memory_bytes=_parameter_memory(log, mode, rank, is_replayed=replayed > 0),
    )


def plan_lines(
    log: TrainingLog,
    forget_set: ForgetSet,
    windows: Sequence[Window],
    plan: Plan,
    warnings: Sequence[str],
    *,
    redact: bool,
) -> Iterator[str]:
    """What a run is about to do, for people.

    Args:
        log: the training log.
        forget_set: what the requests name.
        windows: the steps to go through.
        plan: what it costs.
        warnings: why the result will be poor whatever is measured.
        redact: whether the log is to be rewritten.

    Yields:
        Lines.
    """
    if forget_set.earlier:
        samples = {digest for request in forget_set.earlier for digest in request.digests}
        yield (
            f"the log's ledger holds {counted(len(forget_set.earlier), 'earlier request')} about "
            f"{counted(len(samples), 'sample')}: what follows is for all together, since their data would come back "
            "otherwise"
        )
    spans = ", ".join(f"{w.first} to {w.end}" for w in windows[:4]) + (", ..." if len(windows) > 4 else "")
    yield (
        f"{counted(len(forget_set.digests), 'sample')}, {counted(forget_set.num_occurrences, 'occurrence')} in "
        f"{counted(len(forget_set.steps), 'step')}; {counted(len(windows), 'window')} ({spans}); {plan.mode}: "
        f"{counted(plan.gradients, 'gradient')}, {counted(plan.products, 'product')}, "
        f"{plan.bytes_to_read / 1e6:.1f} MB to read, about {plan.seconds:.0f} s, "
        f"{plan.parameter_memory_bytes / 1e6:.1f} MB of parameters and state"
    )
    if redact:
        yield (
            f"the log is rewritten with {counted(log.num_steps, 'more gradient')} and room for a second log meanwhile; "
            f"the samples' content and the trajectory from step {forget_set.steps[0]} on are deleted for good"
        )
    yield from (f"the verdict will be poor: {warning}" for warning in warnings)
    if not log.commit.finished:
        yield f"the run was interrupted: the trained model is the one after its last step, {log.num_steps - 1}"


def _estimate_products(log: TrainingLog, window: Window, mode: HessianMode, rank: int) -> int:
    """Of the estimates: one for each stretch between checkpoints, from the first step on that has a deviation."""
    each = {HessianMode.DIAG: PROBES, HessianMode.LOW_RANK: min(2 * rank + 1, log.manifest.num_elements)}.get(mode, 0)
    ends = sorted({*log.checkpoint_steps, log.num_steps})
    starts = [window.first + 1, *(step for step in ends if window.first + 1 < step < window.end)]
    rooms = [ends[bisect_right(ends, start)] - start for start in starts if start < window.end]
    return sum(each * min(ESTIMATE_STEPS, room) for room in rooms)


def _bytes_to_read(log: TrainingLog, windows: Sequence[Window], readable: frozenset[int]) -> int:
    """Checkpoints that windows start from and the last one, those at which θ is known again, and updates between."""
    sizes, kept = log.bytes_on_disk(), frozenset(log.tree.rows_of(UPDATES, log.commit))
    per_step = sizes[UPDATES] / max(1, len(kept))
    per_checkpoint = sizes["checkpoints"] / len(log.checkpoint_steps)
    steps = [step for window in windows for step in range(window.start, window.end)]
    num_updates = sum(step in kept and step in readable for step in steps)
    num_checkpoints = len(windows) + 1 + sum(step not in kept and step + 1 in log.commit.checkpoints for step in steps)
    return int(per_step * num_updates + per_checkpoint * num_checkpoints)


def _parameter_memory(log: TrainingLog, mode: HessianMode, rank: int, *, is_replayed: bool) -> int:
    """θ, θ′, the gradient and θ′'s optimizer state; δ where a product needs it; an estimate, and what it is made from.

    Where the run's θ is replayed, that θ and its optimizer's state as well, beside the θ that was read last.
    """
    states = state_vectors(log.manifest.optimizer)
    estimate = {HessianMode.DIAG: 1, HessianMode.LOW_RANK: 3 * rank + 1}.get(mode, 0)
    vectors = 3 + states + int(mode is not HessianMode.SECANT) + (1 + states) * is_replayed + estimate
    return int(vectors * log.manifest.num_elements) * BIT_DTYPES[log.manifest.model.dtype].itemsize
