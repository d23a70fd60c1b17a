"""Goes through one window with a carrier, and measures on the way."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from statistics import median

from torch import Tensor

from lmcleaner.choices import DEFAULT_RANK, HessianMode
from lmcleaner.formats.errors import DivergedError
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.steps import StepRecord
from lmcleaner.progress import Progress
from lmcleaner.training.state import TrainingState
from lmcleaner.training.vectors import digest_of, global_norm
from lmcleaner.unlearning.combine import Correction
from lmcleaner.unlearning.options import UnlearnOptions
from lmcleaner.unlearning.prediction import make_prediction
from lmcleaner.unlearning.propagation import Carrier, OptimizerCarrier, make_carrier
from lmcleaner.unlearning.recorded import is_data_free
from lmcleaner.unlearning.sampling import SampledOracle
from lmcleaner.unlearning.setting import Setting
from lmcleaner.unlearning.settling import Settling, looks, marks
from lmcleaner.unlearning.trajectory import Trajectory, open_trajectory
from lmcleaner.unlearning.windows import Window, first_read, windows_in

# δ ten times as long as θ itself is no correction any more, whatever it grows to later.
_GROWTH_LIMIT = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowReport:
    """What was measured in one window; `None` where it wasn't or couldn't be.

    Attributes:
        window: the window.
        v0_norm: ‖δ‖ after the first occurrence's step.
        v_peak_norm: largest ‖δ‖ that was seen on the way; in secant mode that is not at every step, see `looks`.
        v_norm: ‖δ‖ at the end.
        norms: step -> ‖δ‖ before it, wherever it was looked at.
        gradients: gradients computed.
        products: curvature products computed.
        handled: forgotten rows left out.
        marks: step -> relative error of the predicted gradient there.
        settled: ‖δ[end] - δ[a tenth earlier]‖ / ‖δ[end]‖, or at the last look of a window that K="auto" carries to τ.
        left_out: by how much δ is expected to move on until the run's end, relative to ‖δ‖; see `Settling`.
        data_free: whether no row was read, so that no gradient could be measured.
        curvature_captured: the least share of its matrix's trace that an estimate held.
        estimated_error: relative error up to the window's end as the sampled oracle estimates it; None where it was not
            asked for.
        replay_exact: whether every lead-in step gave the run's bits; None without a lead-in.
        states: steps before which the sweep's state was kept.
        counterfactual: digest of θ′ at the end, hexadecimal; None in the paper's form, which has none.
    """

    window: Window
    v0_norm: float | None
    v_peak_norm: float
    v_norm: float
    norms: dict[int, float]
    gradients: int
    products: int
    handled: int
    marks: dict[int, float]
    settled: float | None
    left_out: float | None
    data_free: bool
    curvature_captured: float | None
    estimated_error: float | None
    replay_exact: bool | None
    states: tuple[int, ...]
    counterfactual: str | None

    @property
    def linearization_error(self) -> float | None:
        """Relative error of the predicted gradient at the last mark."""
        return self.marks[max(self.marks)] if self.marks else None

    @property
    def median_linearization_error(self) -> float | None:
        """Median over the marks; one step's rows move a single mark by a factor of two and more."""
        return median(self.marks.values()) if self.marks else None


def combined_estimate(reports: Sequence[WindowReport]) -> float | None:
    """The estimated relative error of all windows' corrections together, with what they leave to come.

    Args:
        reports: of the windows.

    Returns:
        The root of the mean square of the windows' estimates and of what they leave out, weighted by ‖δ‖², as if all
        were independent; None where no window has an estimate.
    """
    known = [report for report in reports if report.estimated_error is not None]
    whole = math.hypot(*(report.v_norm for report in known))
    if not whole:
        return None
    errors = (math.hypot(report.estimated_error or 0.0, report.left_out or 0.0) * report.v_norm for report in known)
    return math.hypot(*errors) / whole


def sweep(
    log: TrainingLog, setting: Setting, options: UnlearnOptions, correction: Correction, progress: Progress
) -> list[WindowReport]:
    """Goes through all windows of a request, each of which begins where the one before it has ended, or later.

    Args:
        log: the training log.
        setting: what every step needs, the forget set among it.
        options: what the user asked for.
        correction: is given each window's result.
        progress: is told of every step.

    Returns:
        What was measured in each window.

    Raises:
        DivergedError: δ is not finite, or grows without bound.
        DamagedError: a part of the log that is needed can't be trusted.
    """
    reports = list[WindowReport]()
    steps = setting.forget_set.steps
    while steps:
        window = windows_in(log, steps, options.K)[0]
        reports.append(sweep_window(log, window, setting, options, correction, progress))
        steps = tuple(step for step in steps if step >= reports[-1].window.end)
    return reports


def sweep_window(
    log: TrainingLog,
    window: Window,
    setting: Setting,
    options: UnlearnOptions,
    correction: Correction,
    progress: Progress,
) -> WindowReport:
    """Carries the deviation of all the window's occurrences from its checkpoint to its end.

    Args:
        log: the training log.
        window: where to start and end; with K="auto" where to end at the latest.
        setting: what every step needs; its counts go on from where they are.
        options: what the user asked for.
        correction: is given the window's result.
        progress: is told of every step.

    Returns:
        What was measured.

    Raises:
        DivergedError: δ is not finite, or grows without bound.
        DamagedError: a part of the log that is needed can't be trusted.
    """
    rank = options.rank or DEFAULT_RANK
    prediction = make_prediction(log, setting, rank)
    carrier = make_carrier(options.propagation, setting, prediction, log.checkpoint(window.start))
    setting.keeper.begin(window)
    before = replace(setting.spent)
    replay_exact = _lead_in(log, window, carrier, progress)
    data_free = is_data_free(log, setting.forget_set, window, setting.mode, rank)
    tolerance = options.settle_tolerance if options.K == "auto" else None
    marked = frozenset() if data_free else marks(window, is_end_fixed=tolerance is None)
    looked = looks(window, log.checkpoint_steps, setting.mode, is_end_fixed=tolerance is None)
    settling = Settling(window, tolerance, log.table("steps/lr").max(axis=1))
    sampled = _sampled_oracle(setting, carrier, window, options)
    with closing(_trajectory(log, setting, window, carrier, replay_exact)) as trajectory:
        walk = _Walk(log, window.first, carrier, trajectory, marked, looked, settling, sampled)
        if replay_exact is False:
            walk.drop_drift()
        for number in range(window.first, window.end):
            progress.advance()
            if walk.step(number, setting.forget_set.steps):
                window = window.ending_at(number + 1, setting.forget_set.steps)
                break
    deviation = carrier.deviation(walk.known(window.end))
    estimated = sampled.relative_error(deviation, window.num_carried) if sampled is not None else None
    state = carrier.state if isinstance(carrier, OptimizerCarrier) else None
    _hand_over(state if window.end == log.num_steps else None, deviation, correction)
    return WindowReport(
        window=window,
        v0_norm=walk.norms.get(window.first + 1),
        v_peak_norm=max(walk.norms.values()),
        v_norm=walk.norms[window.end],
        norms=walk.norms,
        gradients=setting.spent.gradients - before.gradients,
        products=setting.spent.products - before.products,
        handled=setting.spent.handled - before.handled,
        marks=walk.errors,
        settled=walk.settling.moved,
        left_out=0.0 if window.end == log.num_steps else walk.settling.left_out,
        data_free=data_free,
        curvature_captured=prediction.captured,
        estimated_error=0.0 if options.oracle_sample and setting.mode is HessianMode.SECANT else estimated,
        replay_exact=replay_exact,
        states=setting.keeper.finish(window.end, state) if state is not None else (),
        counterfactual=digest_of(state.parameters).hex() if state is not None else None,
    )


def _hand_over(final: TrainingState | None, deviation: list[Tensor], correction: Correction) -> None:
    """Gives a window's result to the correction: θ′[τ] itself where the window ends with it."""
    if final is None:
        correction.add(deviation)
    else:
        correction.set_counterfactual([parameter.detach() for parameter in final.parameters])


def _sampled_oracle(
    setting: Setting, carrier: Carrier, window: Window, options: UnlearnOptions
) -> SampledOracle | None:
    """None where there is no error to estimate, or nobody asked for it."""
    is_wanted = options.oracle_sample and setting.mode is not HessianMode.SECANT
    if not is_wanted or not isinstance(carrier, OptimizerCarrier):
        return None
    return SampledOracle(setting, carrier.state, window, options.oracle_sample)


def _lead_in(log: TrainingLog, window: Window, carrier: Carrier, progress: Progress) -> bool | None:
    """Replays the steps before the first occurrence, for the optimizer's state, and holds them against the run."""
    is_exact = True
    for number in range(window.start, window.first):
        if isinstance(carrier, OptimizerCarrier):
            carrier.replay(number, log.step(number))
            is_exact = is_exact and digest_of(carrier.state.parameters) == log.parameters_digest(number + 1)
        progress.advance()
    return is_exact if window.num_lead_in and isinstance(carrier, OptimizerCarrier) else None


def _trajectory(
    log: TrainingLog, setting: Setting, window: Window, carrier: Carrier, replay_exact: bool | None
) -> Trajectory:
    """θ from where it is read: behind the lead-in, which gave it, if it gave what the log's updates lead to."""
    start, known = window.start, None
    if isinstance(carrier, OptimizerCarrier) and replay_exact is not False:
        start = first_read(log, window)
        known = carrier.state.parameters if start == window.first else None
    return open_trajectory(log, setting.replay, start, window.end, setting.mode, known)


class _Walk:
    """The carried part of a window: advances, and notes norms and errors by step."""

    def __init__(
        self, log: TrainingLog, first: int, carrier: Carrier, trajectory: Trajectory, marked: frozenset[int],
        looked: frozenset[int], settling: Settling, sampled: SampledOracle | None,
    ) -> None:  # fmt: skip
        self._log, self._carrier, self._trajectory = log, carrier, trajectory
        self._marked, self._looked, self.settling, self._sampled = marked, looked, settling, sampled
        self._here = trajectory.move_to(first)
        self._limit = 0.0
        self.norms: dict[int, float] = {}
        self.errors: dict[int, float] = {}

    def step(self, number: int, occurrence_steps: Sequence[int]) -> bool:
        """Takes a step; whether the window may end after it."""
        self._advance(number, self._log.step(number))
        self._here = self._trajectory.move_to(number + 1) if number + 1 in self._looked else None
        if self._here is None:
            return False
        deviation = self._measure(number + 1, self._here)
        return self.settling.look(number + 1, deviation, occurrence_steps[bisect_right(occurrence_steps, number) - 1])

    def _advance(self, number: int, step: StepRecord) -> None:
        if self._sampled is not None:
            self._sampled.before(number)
        error = self._carrier.advance(number, step, self._here, measure=number in self._marked)
        if self._sampled is not None:
            self._sampled.after(number, step)
        if error is not None:
            self.errors[number] = _finite(error, number)

    def drop_drift(self) -> None:
        if self._here is not None and isinstance(self._carrier, OptimizerCarrier):
            self._carrier.go_on_from(self._here)

    def known(self, step: int) -> list[Tensor]:
        assert self._here is not None, step  # a window ends where θ is known
        return self._here

    def _measure(self, step: int, parameters: list[Tensor]) -> list[Tensor]:
        deviation = self._carrier.deviation(parameters)
        norm = global_norm(deviation)
        if norm > self._limit:  # which was right when it was last passed; ‖θ‖ changes slowly
            self._limit = _GROWTH_LIMIT * global_norm(parameters)
        if not math.isfinite(norm) or norm > self._limit:
            raise DivergedError(
                f"the deviation grows without bound: step {step}: expected a norm below {self._limit:.4g}, "
                f"found {norm:.4g}",
                hint="the propagation doesn't fit the run; use --propagation optimizer, or --hessian-mode secant",
            )
        self.norms[step] = norm
        return deviation


def _finite(error: float, step: int) -> float:
    if not math.isfinite(error):
        raise DivergedError(
            f"the predicted gradient can't be held against the true one: step {step}: expected finite numbers, found "
            f"an error of {error}",
            hint="the run itself is about to diverge here; --hessian-mode secant needs no prediction",
        )
    return error
