"""Good or poor: what the measures say of a result."""

from collections.abc import Sequence
from typing import Any

from lmcleaner.choices import HessianMode
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.training.recorded import CLIPPED
from lmcleaner.unlearning.combine import Change
from lmcleaner.unlearning.options import Thresholds
from lmcleaner.unlearning.sweep import WindowReport


def reasons_against(
    reports: Sequence[WindowReport],
    change: Change,
    oracle: dict[str, Any] | None,
    num_steps: int,
    thresholds: Thresholds,
) -> list[str]:
    """Why a result is poor; empty where it is good.

    Args:
        reports: what was measured in each window.
        change: what rounding left of the wanted change.
        oracle: the comparison with the oracle, if it was made.
        num_steps: τ.
        thresholds: where a result stops being good.

    Returns:
        A sentence with the figure and a hint for each reason.
    """
    reasons = [reason for report in reports for reason in _window_reasons(report, num_steps, thresholds)]
    survived = min(change.norm_ratio, change.cosine)
    if survived < thresholds.surviving:
        reasons.append(
            f"rounding to the storage dtype leaves a norm ratio of {change.norm_ratio:.3f} and a cosine of "
            f"{change.cosine:.3f} of the wanted change (at least {thresholds.surviving:g}): keep the weights in float32"
        )
    if oracle is not None and oracle["relative_error"] >= thresholds.relative_error:
        reasons.append(
            f"the relative error against the oracle is {oracle['relative_error']:.3f} (below "
            f"{thresholds.relative_error:g}): use --hessian-mode secant, or a longer K"
        )
    return reasons


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
    return [f"--hessian-mode {mode} can end further from the retrained model than it began: measure it with --oracle"]


def _window_reasons(report: WindowReport, num_steps: int, thresholds: Thresholds) -> list[str]:
    window = report.window
    where = f"window {window.first} to {window.end}"
    reasons = []
    error = report.median_linearization_error
    if error is not None and error > thresholds.linearization_error:
        reasons.append(
            f"{where}: the predicted gradients are off by {error:.3f} in the median (at most "
            f"{thresholds.linearization_error:g}): use --hessian-mode secant"
        )
    if window.end == num_steps:
        return reasons  # nothing was cut off, so nothing had to settle
    if report.settled is None:
        reasons.append(f"{where}: too short to say whether the deviation settled: use a longer K")
    elif report.settled > thresholds.settled:
        reasons.append(
            f"{where}: the deviation still moved by {report.settled:.3f} over the last tenth (at most "
            f"{thresholds.settled:g}): use a longer K, or --K all"
        )
    return reasons
