"""What a request will cost, told before the model is touched."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lmcleaner.choices import DEFAULT_RANK, WRITTEN, HessianMode, Propagation
from lmcleaner.curvature.linearized import OPERATORS
from lmcleaner.curvature.segments import ESTIMATED
from lmcleaner.formats.codecs import CODECS, SPAN
from lmcleaner.formats.layout import CURVATURE, GRADIENTS, UPDATES, num_spans
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.reconstruction import AHEAD, is_read_ahead
from lmcleaner.formats.wording import counted
from lmcleaner.training.numerics import restored_numerics
from lmcleaner.training.optimizers import state_vectors
from lmcleaner.training.ranks import vectors_held
from lmcleaner.training.replay import ReplayModel
from lmcleaner.training.vectors import MAX_SPACED
from lmcleaner.unlearning.costs import Costs, logged_costs, measure_costs
from lmcleaner.unlearning.counting import Counts, count_sweep
from lmcleaner.unlearning.recorded import Recorded, find_recorded, is_data_free
from lmcleaner.unlearning.request import ForgetSet
from lmcleaner.unlearning.settling import looks
from lmcleaner.unlearning.windows import Window, first_read, read_steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Cost of one mode.

    Attributes:
        mode: the mode.
        steps: steps to go through, lead-ins included.
        gradients: gradients to compute, the measurements' included.
        products: curvature products.
        replayed: steps that find θ again where the log no longer has it; a gradient each, unless the log holds them.
        data_free: whether no row will be read; no gradient can be measured then.
        without_autocast: whether curvature is computed without the autocast that the run trained under.
        updates: codec of the updates that θ is read from.
        bytes_to_read: bytes on disk of checkpoints, updates, and recorded gradients and curvature.
        is_upper_bound: whether a window may end earlier, so that steps, gradients, products and seconds are the most.
        seconds: expected, from costs measured on this machine, or from the logged step times.
        parameter_memory_bytes: peak of what has the size of the parameters, and the model's frozen ones where it was
            loaded; activations come on top.
        activation_bytes: peak of what comes and goes in a step; None where it was not measured.
        host_bytes: peak of the training states that are kept in host memory and not among the parameters' memory.
        oracle_seconds: of the oracle beside the sweep; 0 where nobody asked for it.
    """

    mode: HessianMode
    steps: int
    gradients: int
    products: int
    replayed: int
    data_free: bool
    without_autocast: bool
    updates: str
    bytes_to_read: int
    is_upper_bound: bool
    seconds: float
    parameter_memory_bytes: int
    activation_bytes: int | None
    host_bytes: int
    oracle_seconds: float

    @property
    def memory_bytes(self) -> int | None:
        """Peak of everything; None where activations were not measured."""
        return None if self.activation_bytes is None else self.parameter_memory_bytes + self.activation_bytes


def make_plan(
    log: TrainingLog,
    forget_set: ForgetSet,
    windows: Sequence[Window],
    mode: HessianMode,
    rank: int = DEFAULT_RANK,
    *,
    propagation: Propagation = Propagation.OPTIMIZER,
    oracle_sample: float = 0.0,
    is_end_fixed: bool = True,
    oracle_seconds: float = 0.0,
    replay: ReplayModel | None = None,
) -> Plan:
    """What a sweep through the windows will cost.

    Args:
        log: the training log.
        forget_set: what to leave out.
        windows: the request's windows; those that may end earlier, and then be followed by others, at their longest.
        mode: how gradients are found.
        rank: eigenpairs of LOW_RANK.
        propagation: through the optimizer, or the paper's form.
        oracle_sample: percent of the steps that are taken twice.
        is_end_fixed: whether each window is carried to its end whatever happens.
        oracle_seconds: what the oracle will take beside, if it is asked for; see `oracle_cost`.
        replay: the run's model, to measure on this machine what a step costs; None takes the run's own step times.

    Returns:
        The plan.
    """
    found = find_recorded(log, forget_set, mode, rank)
    counts = count_sweep(
        log, forget_set, windows, mode, rank, found,
        propagation=propagation, oracle_sample=oracle_sample, is_end_fixed=is_end_fixed,
    )  # fmt: skip
    costs = _costs(log, replay, windows, mode, rank, found, propagation, counts)
    is_replayed, is_offloaded = counts.replayed > 0, replay is not None and replay.offload
    kept = _kept_bytes(log, propagation, is_replayed=is_replayed, is_sampled=counts.sampled > 0)
    passing = _passing_bytes(log, mode, rank, found, costs.activation_bytes or 0)
    passing += _summed_bytes(log, windows[0], reads_rows=counts.reads_rows)
    if replay is None or replay.device.type == "cpu":
        passing += _ahead_bytes(log, reads_gradients=counts.stored > 0)
    passing += replay.frozen_bytes if replay is not None else 0
    reads = [_reads(log, window, mode, propagation, is_end_fixed=is_end_fixed) for window in windows]
    loaded = _segments_reached(log, windows, found)
    return Plan(
        mode=mode,
        steps=sum(window.end - window.start for window in windows),
        gradients=counts.plain + counts.gradients,
        products=counts.products + counts.estimates,
        replayed=counts.replayed,
        data_free=all(is_data_free(log, forget_set, window, mode, rank) for window in windows),
        without_autocast=log.manifest.numerics.autocast is not None and mode in {*OPERATORS, *ESTIMATED},
        updates=log.manifest.updates,
        bytes_to_read=_bytes_to_read(log, windows, reads, counts.stored, loaded),
        is_upper_bound=not is_end_fixed,
        seconds=_seconds(costs, mode, counts, propagation, sum(map(len, reads)), len(windows), loaded),
        parameter_memory_bytes=passing + (_moved_bytes(log, is_replayed=is_replayed) if is_offloaded else kept),
        activation_bytes=costs.activation_bytes,
        host_bytes=kept + log.manifest.vector_bytes if is_offloaded else 0,
        oracle_seconds=oracle_seconds,
    )


def _costs(
    log: TrainingLog,
    replay: ReplayModel | None,
    windows: Sequence[Window],
    mode: HessianMode,
    rank: int,
    found: Recorded,
    propagation: Propagation,
    counts: Counts,
) -> Costs:
    if replay is None:
        return logged_costs(log, mode)
    with restored_numerics(log.manifest.numerics):
        return measure_costs(
            log, replay, windows, mode, rank, found, propagation,
            reads_rows=counts.reads_rows, gradient_steps=counts.gradient_steps,
        )  # fmt: skip


def _reads(
    log: TrainingLog, window: Window, mode: HessianMode, propagation: Propagation, *, is_end_fixed: bool
) -> set[int]:
    """Steps whose updates a window reads; the paper's form has no lead-in that would lead to its first one."""
    looked = looks(window, log.checkpoint_steps, mode, is_end_fixed=is_end_fixed)
    start = first_read(log, window) if propagation is Propagation.OPTIMIZER else window.start
    return read_steps(log.checkpoint_steps, looked, start)


def _seconds(
    costs: Costs, mode: HessianMode, counts: Counts, propagation: Propagation, read: int, windows: int, loaded: int
) -> float:
    """Gradients beside the carried steps', the carried steps', products of estimates, and what every step takes."""
    total = counts.plain * costs.gradient_seconds + counts.steps * costs.carry_seconds
    total += read * costs.read_seconds + windows * costs.open_seconds
    if mode in OPERATORS and propagation is Propagation.OPTIMIZER:
        return total + counts.gradients * costs.predicted_seconds[mode]
    if mode in OPERATORS:
        return total + counts.products * costs.product_seconds[mode]
    total += counts.gradients * costs.gradient_seconds
    if mode in WRITTEN:
        total += counts.steps * costs.written_seconds
        total += counts.stored * costs.stored_seconds + loaded * costs.load_seconds
    return total + (counts.estimates * costs.product_seconds[ESTIMATED[mode]] if counts.estimates else 0.0)


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
    if forget_set.is_repetition:
        yield "a repetition: nothing is asked for that earlier requests haven't named"
    spans = ", ".join(f"{w.first} to {w.end}" for w in windows[:4]) + (", ..." if len(windows) > 4 else "")
    yield (
        f"{counted(len(forget_set.digests), 'sample')}, {counted(forget_set.num_occurrences, 'occurrence')} in "
        f"{counted(len(forget_set.steps), 'step')}; {counted(len(windows), 'window')} ({spans}); {plan.mode}: "
        f"{counted(plan.gradients, 'gradient')}, {counted(plan.products, 'product')}, "
        f"{plan.bytes_to_read / 1e6:.1f} MB to read, {'up to' if plan.is_upper_bound else 'about'} "
        f"{plan.seconds:.0f} s, {_memory(plan)}"
    )
    if plan.oracle_seconds:
        yield f"the oracle: about {plan.oracle_seconds:.0f} s more"
    if plan.data_free:
        yield "no row is read: gradients and curvature come from the log, and no gradient is measured"
    if plan.without_autocast:
        yield (
            f"the run trained under {log.manifest.numerics.autocast} autocast; curvature is computed without it, and "
            "its error is measured against gradients with it"
        )
    if redact:
        yield (
            f"the log is rewritten with {counted(log.num_steps, 'more gradient')} and room for a second log meanwhile; "
            f"the samples' content and the trajectory from step {forget_set.steps[0]} on are deleted for good"
        )
        if log.commit.curvature:
            yield "the recorded curvature goes too, since all rows went into it; `lmcleaner curvature` adds it anew"
    yield from (f"the verdict will be poor: {warning}" for warning in warnings)
    if not log.commit.finished:
        yield f"the run was interrupted: the trained model is the one after its last step, {log.num_steps - 1}"


def _memory(plan: Plan) -> str:
    if plan.memory_bytes is None:
        return f"{plan.parameter_memory_bytes / 1e6:.1f} MB of parameters and state"
    host = f", {plan.host_bytes / 1e6:.1f} MB in host memory" if plan.host_bytes else ""
    return f"{plan.memory_bytes / 1e6:.1f} MB of memory{host}"


def _bytes_to_read(
    log: TrainingLog, windows: Sequence[Window], reads: Sequence[set[int]], gradients: int, estimates: int
) -> int:
    """Checkpoints that windows start from and the last one, those at which θ is known again, and updates between.

    Besides them recorded gradients, and the estimates of the curvature that windows reach into.
    """
    sizes, kept, readable = log.bytes_on_disk(), frozenset(log.tree.rows_of(UPDATES, log.commit)), log.readable_steps
    per_step = sizes[UPDATES] / max(1, len(kept))
    per_checkpoint = sizes["checkpoints"] / len(log.checkpoint_steps)
    num_updates = sum(step in kept and step in readable for steps in reads for step in steps)
    left_out = {step for w in windows for step in range(w.start, w.end)} - {step for steps in reads for step in steps}
    unread = left_out | {step for steps in reads for step in steps if step not in kept}
    num_checkpoints = len(windows) + 1 + sum(step + 1 in log.commit.checkpoints for step in unread)
    per_gradient = sizes[GRADIENTS] / max(1, len(log.tree.rows_of(GRADIENTS, log.commit)))
    per_estimate = sizes[CURVATURE] / max(1, len(log.commit.curvature))
    of_curvature = per_gradient * gradients + per_estimate * estimates
    return int(per_step * num_updates + per_checkpoint * num_checkpoints + of_curvature)


def _segments_reached(log: TrainingLog, windows: Sequence[Window], found: Recorded) -> int:
    """Recorded estimates that the windows' deviations meet."""
    stops = [*found.curvature[1:], log.num_steps]
    return sum(
        any(w.first < stop and start < w.end for w in windows)
        for start, stop in zip(found.curvature, stops, strict=False)
    )


def _passing_bytes(log: TrainingLog, mode: HessianMode, rank: int, found: Recorded, activations: int) -> int:
    """What comes and goes with a step at the most, but for its activations.

    θ, θ′ or v, a gradient, and what is kept of δ to see it settle; δ, or θ - v, where a product needs it; an estimate,
    and what it is made from: 3·rank + 1 vectors for eigenpairs, which take another one for a product. A gradient from
    the log, with what it is decoded into, and its step's product come instead of activations; so do recorded eigenpairs
    while they are copied.
    """
    estimate, entering = int(mode in ESTIMATED), 0
    if mode is HessianMode.LOW_RANK:
        estimate = 1 + (rank if found.curvature else 3 * rank + 1)
        entering = 3 + rank + max(entry.pairs for entry in log.commit.curvature.values()) if found.curvature else 0
    with_rows = 3 + int(mode is not HessianMode.SECANT) + estimate
    without_rows = with_rows + 2 if found.gradients else 0
    vector = log.manifest.vector_bytes
    kept = vector * min(1, MAX_SPACED / log.manifest.num_elements)
    return int(max(with_rows * vector, max(without_rows, entering) * vector - activations) + kept)


def _ahead_bytes(log: TrainingLog, *, reads_gradients: bool) -> int:
    """What is read ahead of short vectors: the next gradient and updates, each with what it lies in compressed.

    A gradient is decoded from one span after the other. Of the updates there are those in line, one that waits for room
    in the line, and one that is applied.
    """
    elements = log.manifest.num_elements
    if not is_read_ahead(num_spans(elements)):
        return 0
    gradient = log.manifest.vector_bytes * (1 + 2 * min(SPAN / elements, 1)) if reads_gradients else 0
    columns = CODECS[log.manifest.updates].columns(log.manifest.model.dtype) if UPDATES in log.tree.stacks else ()
    span = min(SPAN, elements) * sum(column.dtype.itemsize / column.elements for column in columns)
    return int(gradient + (AHEAD + 3) * span)


def _summed_bytes(log: TrainingLog, window: Window, *, reads_rows: bool) -> int:
    """What stands beside the gradient while those of several processes are added up; see `vectors_held`."""
    return vectors_held(log.step(window.first)) * log.manifest.vector_bytes if reads_rows else 0


def _kept_bytes(log: TrainingLog, propagation: Propagation, *, is_replayed: bool, is_sampled: bool) -> int:
    """What stays from step to step: θ′'s optimizer state, which the paper's form hasn't.

    Where the run's θ is replayed, that θ and its optimizer's state as well, beside the θ that was read last. Steps that
    are taken twice need another training state, and their error.
    """
    states = state_vectors(log.manifest.optimizer)
    own = states if propagation is Propagation.OPTIMIZER else 0
    return int((own + (1 + states) * is_replayed + (2 + states) * is_sampled) * log.manifest.vector_bytes)


def _moved_bytes(log: TrainingLog, *, is_replayed: bool) -> int:
    """On the device of what is kept in host memory: a parameter with its state, and the θ that was replayed last."""
    share = max(entry.num_elements for entry in log.manifest.parameters) / log.manifest.num_elements
    return int(((1 + state_vectors(log.manifest.optimizer)) * share + is_replayed) * log.manifest.vector_bytes)
