"""`--hessian-mode auto`: the cheapest mode whose estimated error stays within a tolerance."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from lmcleaner.choices import WRITTEN, HessianMode
from lmcleaner.formats.errors import DivergedError
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.progress import Progress
from lmcleaner.training.numerics import restored_numerics
from lmcleaner.training.replay import ReplayModel
from lmcleaner.unlearning.combine import Correction
from lmcleaner.unlearning.options import UnlearnOptions
from lmcleaner.unlearning.plan import Plan, make_plan
from lmcleaner.unlearning.request import ForgetSet
from lmcleaner.unlearning.setting import Setting
from lmcleaner.unlearning.sweep import combined_estimate, sweep
from lmcleaner.unlearning.windows import Window

# Of the steps, that a trial takes twice; a fifth told good modes from bad (docs/choosing-a-mode.md).
TRIAL_PERCENT = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One mode that was tried.

    Attributes:
        mode: the mode.
        estimated_error: its relative error as the sampled oracle estimates it; None where it diverged, or had no room
            for a sample.
        seconds: what the trial took.
    """

    mode: HessianMode
    estimated_error: float | None
    seconds: float


def trial_lines(
    log: TrainingLog, forget_set: ForgetSet, windows: Sequence[Window], options: UnlearnOptions
) -> Iterator[str]:
    """What `choose_mode` is about to try, for people.

    Args:
        log: the training log.
        forget_set: what to leave out.
        windows: what will be swept.
        options: what the user asked for.

    Yields:
        A line, if there is anything to try.
    """
    plans = _cheaper_plans(log, forget_set, windows, options)
    if plans:
        modes, seconds = ", ".join(plan.mode for plan in plans), sum(plan.seconds for plan in plans)
        yield (
            f"auto: {modes} will be tried before, each with {_percent(options):g} % of its steps taken twice: up to "
            f"{seconds:.0f} s more by the run's own step times"
        )


def choose_mode(
    log: TrainingLog,
    replay: ReplayModel,
    forget_set: ForgetSet,
    windows: Sequence[Window],
    options: UnlearnOptions,
    progress: Progress,
) -> tuple[UnlearnOptions, tuple[Trial, ...]]:
    """Sweeps in each cheaper mode, the cheapest first, until an estimated error is within the tolerance.

    Args:
        log: the training log.
        replay: the run's model.
        forget_set: what to leave out.
        windows: what will be swept.
        options: what the user asked for, with a tolerance; their own mode is taken if no cheaper one will do.
        progress: is told what was tried, and what it gave.

    Returns:
        The options with the mode to take, and what was tried.
    """
    assert options.tolerance is not None
    trials = list[Trial]()
    for mode in [plan.mode for plan in _cheaper_plans(log, forget_set, windows, options)]:
        chosen = replace(options, hessian_mode=mode, rank=None, oracle_sample=_percent(options))
        progress.begin(f"trying {mode}", sum(window.end - window.start for window in windows))
        trials.append(_tried(log, replay, forget_set, chosen, progress))
        error = trials[-1].estimated_error
        found = "no estimate" if error is None else f"an estimated relative error of {error:.3f}"
        progress.say(f"auto: {mode} has {found}, expected at most {options.tolerance:g}")
        if error is not None and error <= options.tolerance:
            return chosen, tuple(trials)
    reason = "no cheaper mode will do" if trials else "none costs less here"
    progress.say(f"auto: takes {options.hessian_mode}, since {reason}")
    return options, tuple(trials)


def _cheaper_plans(
    log: TrainingLog, forget_set: ForgetSet, windows: Sequence[Window], options: UnlearnOptions
) -> list[Plan]:
    """Of a trial in each mode that costs less than a sweep in the options' own, by the logged step times.

    The cheapest comes first; all write curvature down, as the others cost more than a gradient a step.
    """
    limit = make_plan(log, forget_set, windows, options.hessian_mode).seconds
    plans = [make_plan(log, forget_set, windows, mode, oracle_sample=_percent(options)) for mode in sorted(WRITTEN)]
    return [plan for plan in sorted(plans, key=lambda plan: plan.seconds) if plan.seconds < limit]


def _percent(options: UnlearnOptions) -> float:
    """Of the steps that a trial takes twice: those of the run itself where the user wants more."""
    return max(TRIAL_PERCENT, options.oracle_sample)


def _tried(
    log: TrainingLog, replay: ReplayModel, forget_set: ForgetSet, options: UnlearnOptions, progress: Progress
) -> Trial:
    started = time.perf_counter()
    setting = Setting(replay, forget_set, options.hessian_mode, options.denominator, options.damping)
    try:
        with restored_numerics(log.manifest.numerics):
            estimate = combined_estimate(sweep(log, setting, options, Correction(), progress))
    except DivergedError:
        estimate = None
    return Trial(mode=setting.mode, estimated_error=estimate, seconds=time.perf_counter() - started)
