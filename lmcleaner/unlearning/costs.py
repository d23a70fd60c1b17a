"""What the parts of a sweep's step take: measured on this machine before a sweep begins, or as the log lets expect."""

import time
from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from statistics import mean

import numpy as np
import torch
from torch import Tensor

from lmcleaner.choices import WRITTEN, HessianMode, Propagation
from lmcleaner.curvature.estimates import Diagonal, Estimate
from lmcleaner.curvature.linearized import OPERATORS, count_parts, curvature_product, predicted_gradient
from lmcleaner.curvature.segments import ESTIMATED
from lmcleaner.curvature.stored import load_estimate
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.steps import StepRecord
from lmcleaner.training.memory import peak_of
from lmcleaner.training.ranks import vectors_held
from lmcleaner.training.recorded import RecordedGradients
from lmcleaner.training.replay import ReplayModel
from lmcleaner.training.state import TrainingState
from lmcleaner.training.vectors import global_norm
from lmcleaner.unlearning.prediction import fisher_product
from lmcleaner.unlearning.recorded import Recorded
from lmcleaner.unlearning.shapes import Sizes, largest_steps, padded_tokens
from lmcleaner.unlearning.trajectory import ReadTrajectory
from lmcleaner.unlearning.windows import Window

_STEPS = 8  # that each part is timed on at most
_ENOUGH_SECONDS = 0.5  # of timing each part; two steps at least
_FEW_APART = 5  # of the steps that are timed, so that the first few lie apart as well
_LONG_SECONDS = 5.0  # a run that took longer needs no second one: what is new to the machine no longer counts
_READ_AHEAD_SECONDS = 0.1  # all that is read ahead is there after that long

# What a carried step takes as a multiple of a training step, and a product by itself; measured on a Llama of 260,000
# parameters, one thread. A written mode's step is one without a gradient.
_CARRIED = {HessianMode.EXACT: 4.0, HessianMode.GGN: 2.8, HessianMode.EMPIRICAL_FISHER: 2.8}
_PRODUCTS = {HessianMode.GGN: 2.7, HessianMode.EXACT: 3.5, HessianMode.EMPIRICAL_FISHER: 2.7}
_STORED = _PRODUCT_OF_WRITTEN = 0.06
_LOADED = {HessianMode.LOW_RANK: 2.0}

Compute = Callable[[StepRecord], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What the parts of a sweep's step take.

    Attributes:
        gradient_seconds: the gradient of a step.
        predicted_seconds: mode -> gradient and product of a step together, for modes that compute products.
        product_seconds: mode -> a product by itself.
        carry_seconds: an optimizer step.
        read_seconds: the run's next θ, and δ with its norm.
        stored_seconds: a gradient from the log.
        written_seconds: a written mode's own product.
        load_seconds: an estimate of the curvature from the log.
        open_seconds: opening a window at its checkpoint.
        activation_bytes: peak of the tensors that come and go, but for the gradient and what `vectors_held` tells; None
            where nothing was measured.
    """

    gradient_seconds: float
    predicted_seconds: dict[HessianMode, float]
    product_seconds: dict[HessianMode, float]
    carry_seconds: float
    read_seconds: float
    stored_seconds: float
    written_seconds: float
    load_seconds: float
    open_seconds: float
    activation_bytes: int | None


def logged_costs(log: TrainingLog, mode: HessianMode) -> Costs:
    """What the run's own step times let one expect of a machine like that of the run; off by up to a factor of two.

    Args:
        log: the training log.
        mode: how gradients are found.

    Returns:
        The costs.
    """
    step = float(np.median(log.table("steps/seconds"))) if log.num_steps else 0.0
    return Costs(
        gradient_seconds=step,
        predicted_seconds={mode: factor * step for mode, factor in _CARRIED.items()},
        product_seconds={mode: factor * step for mode, factor in _PRODUCTS.items()},
        carry_seconds=0.03 * step,
        read_seconds=0.02 * step,
        stored_seconds=_STORED * step,
        written_seconds=_PRODUCT_OF_WRITTEN * step,
        load_seconds=_LOADED.get(mode, 0.0) * step,
        open_seconds=0.0,
        activation_bytes=None,
    )


def measure_costs(
    log: TrainingLog,
    replay: ReplayModel,
    windows: Sequence[Window],
    mode: HessianMode,
    rank: int,
    found: Recorded,
    propagation: Propagation = Propagation.OPTIMIZER,
    *,
    reads_rows: bool,
    gradient_steps: Collection[int],
) -> Costs:
    """Runs each part that a mode needs once to get warm, and then on evenly spaced steps of the windows.

    Memory is measured on the largest steps.

    Args:
        log: the training log.
        replay: the run's model, with the run's numerics.
        windows: what will be swept.
        mode: how gradients are found.
        rank: eigenpairs of LOW_RANK.
        found: what the mode takes from the log.
        propagation: the paper's form takes products by themselves.
        reads_rows: whether any gradient or product is computed.
        gradient_steps: steps whose gradient is computed by itself.

    Returns:
        The costs.
    """
    started = time.perf_counter()
    state = replay.state(log.checkpoint(windows[0].start))
    trajectory = ReadTrajectory(log, replay, windows[0].start, windows[0].end, state.parameters)
    open_seconds = time.perf_counter() - started
    here = [parameter.detach().to(replay.device, copy=True) for parameter in state.parameters]
    direction = [1e-3 * parameter for parameter in here]
    is_predicted = mode in OPERATORS and propagation is Propagation.OPTIMIZER
    multiplied = mode if mode in OPERATORS and not is_predicted else ESTIMATED.get(mode)
    parts: dict[str, Compute] = {"gradient": lambda step: replay.gradient(step, here)}
    if is_predicted:
        parts["predicted"] = lambda step: predicted_gradient(replay, mode, step, here, direction, 0.0)
    if multiplied is not None:
        parts["product"] = lambda step: curvature_product(replay, multiplied, step, here, direction, 0.0)
    seconds, activation_bytes = dict[str, float](), 0
    if reads_rows:
        seconds = _parts_seconds(log, replay, windows, parts)
        activation_bytes = _activation_bytes(log, replay, windows, parts, multiplied or mode, gradient_steps)
    gradient_seconds = seconds.get("gradient", 0.0)
    load_seconds = 0.0
    work: Callable[[], object] = partial(_work, min(gradient_seconds, _READ_AHEAD_SECONDS), replay.device)
    if mode in WRITTEN:
        work, load_seconds = _written_product(log, replay, mode, rank, found, direction)
    with closing(trajectory):
        stored_seconds, work_seconds, carry_seconds, read_seconds = _step_seconds(
            log, replay, state, trajectory, windows[0], found.gradients, work
        )
    return Costs(
        gradient_seconds=gradient_seconds,
        predicted_seconds={mode: seconds.get("predicted", 0.0)},
        product_seconds={multiplied: seconds.get("product", 0.0)} if multiplied is not None else {},
        carry_seconds=carry_seconds,
        read_seconds=read_seconds,
        stored_seconds=stored_seconds,
        written_seconds=work_seconds if mode in WRITTEN else 0.0,
        load_seconds=load_seconds,
        open_seconds=open_seconds,
        activation_bytes=activation_bytes,
    )


def _parts_seconds(
    log: TrainingLog, replay: ReplayModel, windows: Sequence[Window], parts: dict[str, Compute]
) -> dict[str, float]:
    """Seconds of each part, for as many tokens as the windows' steps have in the mean."""
    numbers = _steps_of(windows)
    chosen = evenly_chosen(numbers)
    tokens, steps = padded_tokens(log), [log.step(number) for number in chosen]
    usual = float(tokens[numbers].mean())
    return {
        name: usual * seconds_per_token(compute, steps, tokens[chosen], replay.device)
        for name, compute in parts.items()
    }


def _activation_bytes(
    log: TrainingLog,
    replay: ReplayModel,
    windows: Sequence[Window],
    parts: dict[str, Compute],
    curvature: HessianMode,
    gradient_steps: Collection[int],
) -> int:
    """The largest peak of the parts, on the steps that take the most, but for the gradient and what is added up."""

    def num_parts(tokens: Sizes) -> Sizes:
        return count_parts(curvature, tokens, log.manifest.num_elements)

    vector, peaks = sum(parameter.numel() * parameter.element_size() for parameter in replay.parameters), [0]
    for name, compute in parts.items():
        is_plain = name == "gradient"
        taken = gradient_steps if is_plain else _steps_of(windows)
        for step in map(log.step, largest_steps(log, taken, np.ones_like if is_plain else num_parts)):
            peaks.append(peak_of(partial(compute, step), replay.device) - (1 + vectors_held(step)) * vector)
    return max(peaks)


def _steps_of(windows: Sequence[Window]) -> list[int]:
    return [number for window in windows for number in range(window.start, window.end)]


def evenly_chosen(numbers: Sequence[int]) -> list[int]:
    """A few of the steps to time, in an order in which the first of them lie apart as well."""
    spread = ((2 * (_FEW_APART * k % _STEPS) + 1) * len(numbers) // (2 * _STEPS) for k in range(_STEPS))
    return [numbers[place] for place in dict.fromkeys(spread)]


def seconds_per_token(compute: Compute, steps: Sequence[StepRecord], tokens: Sizes, device: torch.device) -> float:
    """Over as many steps as it takes to time enough, after one run to get warm unless that was long.

    Args:
        compute: what to time on each step.
        steps: one or more.
        tokens: of each step, `[steps]`.
        device: where it computes.

    Returns:
        The mean.
    """
    first = timed(partial(compute, steps[0]), device)
    if first > _LONG_SECONDS:
        return first / float(tokens[0])
    seconds = list[float]()
    for step in steps:
        seconds.append(timed(partial(compute, step), device))
        if len(seconds) > 1 and sum(seconds) > _ENOUGH_SECONDS:
            break
    return sum(seconds) / float(tokens[: len(seconds)].sum())


def _step_seconds(
    log: TrainingLog,
    replay: ReplayModel,
    state: TrainingState,
    trajectory: ReadTrajectory,
    window: Window,
    stored: Collection[int],
    work: Callable[[], object],
) -> tuple[float, float, float, float]:
    """Means over the first steps of a window, taken as a sweep takes them: what the log holds is read ahead meanwhile.

    Args:
        log: the training log.
        replay: the run's model.
        state: the state at the window's start; is advanced.
        trajectory: θ from there on.
        window: the window.
        stored: steps whose gradient is taken from the log.
        work: what else a step takes.

    Returns:
        Seconds of a gradient from the log, of the work, of an optimizer step, and of reading θ and measuring δ.
    """
    device, gradients = replay.device, RecordedGradients(log, replay, stored)

    def carry(number: int) -> None:
        step = log.step(number)
        state.apply([torch.zeros_like(parameter, device=device) for parameter in state.parameters], step.lr)

    def read(number: int) -> None:
        there = trajectory.move_to(number + 1)
        if there is not None:
            global_norm([p - q.detach().to(device) for p, q in zip(there, state.parameters, strict=True)])

    given: list[float] = []
    parts: list[tuple[float, float, float]] = []
    for number in range(window.start, min(window.start + 1 + _STEPS, window.end)):
        if number in stored:
            given.append(timed(partial(gradients.unclipped, number), device))
        worked = timed(work, device)
        carried = timed(partial(carry, number), device)
        parts.append((worked, carried, timed(partial(read, number), device)))
    worked, carried, read_seconds = (mean(part) for part in zip(*(parts[1:] or parts), strict=True))
    return mean(given[1:] or given or [0.0]), worked, carried, read_seconds


def _work(seconds: float, device: torch.device) -> None:
    """Keeps one core busy as a step on the CPU does; one on a GPU leaves it idle."""
    if device.type != "cpu":
        time.sleep(seconds)
        return
    end, some = time.perf_counter() + seconds, torch.ones(128, 128)
    while time.perf_counter() < end:
        torch.mm(some, some)


def _written_product(
    log: TrainingLog, replay: ReplayModel, mode: HessianMode, rank: int, found: Recorded, direction: list[Tensor]
) -> tuple[Callable[[], object], float]:
    """A product of a written mode, with what is done to it afterwards, and the seconds of reading its estimate.

    Where the estimate is yet to be made, a diagonal stands for it, as often as it would have eigenpairs.
    """
    estimate: Estimate = Diagonal(direction)
    seconds = 0.0  # of reading it
    if found.curvature:
        started = time.perf_counter()
        estimate = load_estimate(log, found.curvature[0], rank, replay.device)
        seconds = time.perf_counter() - started
    times = 2 * rank if mode is HessianMode.LOW_RANK and not found.curvature else 1
    product: Callable[[], list[Tensor]] = partial(estimate.__matmul__, direction)
    if mode is HessianMode.FISHER:
        product = partial(fisher_product, [*direction], direction)

    def multiply() -> None:
        for _ in range(times):
            made = product()
        for part, other in zip(made, direction, strict=True):
            part.sub_(other)  # the difference of the gradients

    return multiply, seconds


def timed(compute: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, with all that it leaves to the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    compute()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
