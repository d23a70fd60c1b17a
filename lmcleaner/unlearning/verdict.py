"""Good or poor: what the measures say of a result."""

from collections.abc import Sequence
from typing import Any

from lmcleaner.choices import HessianMode, Propagation
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.training.recorded import CLIPPED
from lmcleaner.unlearning.combine import Change
from lmcleaner.unlearning.options import UnlearnOptions
from lmcleaner.unlearning.sweep import WindowReport, combined_estimate


def reasons_against(
    reports: Sequence[WindowReport],
    change: Change,
    oracle: dict[str, Any] | None,
    num_steps: int,
    options: UnlearnOptions,
) -> list[str]:
    """Why a result is poor; empty where it is good.

    Args:
        reports: what was measured in each window.
        change: what rounding left of the wanted change.
        oracle: the comparison with the oracle, if it was made.
        num_steps: τ.
        options: how the result was made, and where it stops being good.

    Returns:
        A sentence with the figure, what was expected and a hint for each reason.
    """
    thresholds = options.thresholds
    reasons = [reason for report in reports for reason in _window_reasons(report, num_steps, options)]
    survived = min(change.norm_ratio, change.cosine)
    if survived < thresholds.surviving:
        reasons.append(
            f"rounding to the storage dtype leaves a norm ratio of {change.norm_ratio:.3f} and a cosine of "
            f"{change.cosine:.3f} of the wanted change, expected at least {thresholds.surviving:g}: keep the weights "
            "in float32"
        )
    if oracle is not None and oracle["relative_error"] >= thresholds.relative_error:
        reasons.append(
            f"the relative error against the oracle is {oracle['relative_error']:.3f}, expected below "
            f"{thresholds.relative_error:g}: {_advice(options, is_cut=any(r.window.end < num_steps for r in reports))}"
        )
    estimate = combined_estimate(reports)
    if oracle is None and estimate is not None and estimate >= thresholds.relative_error:
        reasons.append(
            f"the relative error is estimated at {estimate:.3f}, expected below {thresholds.relative_error:g}: "
            f"{_advice(options, is_cut=False)}"
        )
    return reasons


def foreseen_reasons(log: TrainingLog, options: UnlearnOptions) -> list[str]:
    """Why a result will be poor whatever is measured; known before anything is computed.

    Args:
        log: the training log.
        options: what shall be done.

    Returns:
        A sentence with a hint for each reason.
    """
    reasons = unmet_assumptions(log) if options.propagation is Propagation.PAPER else []
    return reasons if options.oracle or options.oracle_sample else reasons + unmeasured(options.hessian_mode)


def unmet_assumptions(log: TrainingLog) -> list[str]:
    """What the paper's form v - η(H + λI)v assumes of a run and this run doesn't keep; empty for plain SGD."""
    manifest = log.manifest
    group = manifest.optimizer.groups[0]
    limit = manifest.max_grad_norm
    reasons = []
    if manifest.optimizer.name != "SGD":
        reasons.append(f"the run used {manifest.optimizer.name}")
    elif group.get("momentum"):
        reasons.append(f"the run used a momentum of {group['momentum']}")
    if any(group.get("weight_decay") for group in manifest.optimizer.groups):
        reasons.append("the run used weight decay")
    if limit is not None and log.table("steps/gradient_norm").max() > CLIPPED * limit:
        reasons.append(f"the run clipped gradients at {limit:g}")
    return [f"--propagation paper assumes plain SGD, but {reason}: use --propagation optimizer" for reason in reasons]


def unmeasured(mode: HessianMode) -> list[str]:
    """What a mode leaves unknown without an oracle; empty where the measured errors have been seen to tell it."""
    if mode in {HessianMode.SECANT, HessianMode.EXACT, HessianMode.GGN}:
        return []
    return [
        f"--hessian-mode {mode} can end further from the retrained model than it began: measure it with --oracle, or "
        "estimate it with --oracle-sample"
    ]


def _advice(options: UnlearnOptions, *, is_cut: bool) -> str:
    """What would come nearer to the retrained model, of what wasn't done already."""
    if options.propagation is Propagation.PAPER:
        return "use --propagation optimizer"
    better = [] if options.hessian_mode is HessianMode.SECANT else ["--hessian-mode secant"]
    better += ["a longer K"] if is_cut else []
    if better:
        return f"use {', or '.join(better)}"
    return "`lmcleaner inspect --verify --replay all` tells whether this machine replays the run exactly"


def _window_reasons(report: WindowReport, num_steps: int, options: UnlearnOptions) -> list[str]:
    window, thresholds = report.window, options.thresholds
    where = f"window {window.first} to {window.end}"
    reasons = []
    error = report.median_linearization_error
    if error is not None and error > thresholds.linearization_error:
        reasons.append(
            f"{where}: the predicted gradients are off by {error:.3f} in the median, expected at most "
            f"{thresholds.linearization_error:g}: {_advice(options, is_cut=False)}"
        )
    if window.end == num_steps:
        return reasons  # nothing was cut off, so nothing had to settle
    if report.left_out is None:
        reasons.append(f"{where}: too short to say whether the deviation settled: use a longer K")
    elif report.left_out > thresholds.settled:
        reasons.append(
            f"{where}: the deviation would move on by about {report.left_out:.3f} until the run's end, expected at "
            f"most {thresholds.settled:g}: use a longer K, or --K all"
        )
    return reasons
