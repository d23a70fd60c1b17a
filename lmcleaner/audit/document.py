"""Puts together the audit document of an unlearning run."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lmcleaner.audit.history import previous_audit
from lmcleaner.audit.requests import REQUESTS, stated_part
from lmcleaner.formats.audit_document import AUDIT_SCHEMA, AUDIT_VERSION, Document
from lmcleaner.formats.errors import InsufficientLogError
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.wording import counted
from lmcleaner.thinning import thinned
from lmcleaner.training.numerics import computed_on, replay_device, unrestorable
from lmcleaner.unlearning.choosing import Trial
from lmcleaner.unlearning.combine import Change
from lmcleaner.unlearning.options import UnlearnOptions
from lmcleaner.unlearning.plan import Plan
from lmcleaner.unlearning.request import ForgetSet
from lmcleaner.unlearning.sweep import WindowReport, combined_estimate

_NORMS = 200  # of a window at most


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What an unlearning run measured.

    Attributes:
        reports: of each window.
        trials: modes that were tried before, where the mode was left open.
        change: of the parameters.
        reasons: why the result is poor; none where it is good.
        oracle: the comparison with the oracle, if it was made.
        model_before: fingerprint of the model at θ[τ].
        model_after: fingerprint of the model at θ̂.
        timing: seconds by part, and the peak of the memory.
    """

    reports: tuple[WindowReport, ...]
    trials: tuple[Trial, ...]
    change: Change
    reasons: tuple[str, ...]
    oracle: dict[str, Any] | None
    model_before: str
    model_after: str
    timing: dict[str, Any]


def make_document(
    log: TrainingLog, forget_set: ForgetSet, plan: Plan, options: UnlearnOptions, outcome: Outcome
) -> Document:
    """The audit document; digests only, no content of a sample.

    Args:
        log: the training log.
        forget_set: what was forgotten.
        plan: what it was expected to cost.
        options: how it was forgotten.
        outcome: what was measured.

    Returns:
        A document that is valid by `audit.schema.json`.

    Raises:
        InsufficientLogError: an occurrence was missed.
    """
    change = outcome.change
    return {
        "schema": AUDIT_SCHEMA,
        "version": AUDIT_VERSION,
        "request": _request(forget_set),
        REQUESTS: [stated_part(request) for request in forget_set.new],
        "coverage": _coverage(forget_set, outcome.reports),
        "plan": asdict(plan) | {"mode": plan.mode.value},
        "windows": [_window(report) for report in outcome.reports],
        "result": {
            "change_norm": change.norm,
            "surviving": {"norm_ratio": change.norm_ratio, "cosine": change.cosine},
            "tried": [asdict(trial) | {"mode": trial.mode.value} for trial in outcome.trials],
            "estimated_error": combined_estimate(outcome.reports),
            "verdict": "poor" if outcome.reasons else "good",
            "reasons": list(outcome.reasons),
        },
        "oracle": outcome.oracle,
        "hashes": {
            "log_root": log.root,
            "model_before": outcome.model_before,
            "model_after": outcome.model_after,
            "forget_set": forget_set.sha256,
        },
        "config": _config(log, options),
        "environment": _environment(log, options),
        "timing": outcome.timing,
        "previous": previous_audit(log.commit.history),
    }


def _environment(log: TrainingLog, options: UnlearnOptions) -> dict[str, Any]:
    device = replay_device(log.manifest, options.device)
    return computed_on(device) | {"unrestorable": unrestorable(log.manifest, device)}


def _request(forget_set: ForgetSet) -> dict[str, Any]:
    """The union, and which parts of it were served before."""
    earlier = [stated_part(request) for request in forget_set.earlier]
    return forget_set.to_json() | ({"earlier": earlier} if earlier else {})


def _coverage(forget_set: ForgetSet, reports: Sequence[WindowReport]) -> dict[str, int]:
    """Counts what the request names against what the sweep left out."""
    missed = forget_set.num_occurrences - sum(report.handled for report in reports)
    if missed:
        raise InsufficientLogError(f"the sweep missed {missed} of {counted(forget_set.num_occurrences, 'occurrence')}")
    return {
        "samples": len(forget_set.digests),
        "occurrences": forget_set.num_occurrences,
        "steps": len(forget_set.steps),
        "missed": missed,
    }


def _window(report: WindowReport) -> dict[str, Any]:
    return {
        **report.window.to_json(),
        "v0_norm": report.v0_norm,
        "v_peak_norm": report.v_peak_norm,
        "v_norm": report.v_norm,
        "norms": _norms(report),
        "gradients": report.gradients,
        "hvp_calls": report.products,
        "occurrences": report.handled,
        "linearization_error": report.linearization_error,
        "linearization_errors": {str(step): error for step, error in report.marks.items()},
        "settled": report.settled,
        "left_out": report.left_out,
        "estimated_error": report.estimated_error,
        "data_free": report.data_free,
        "curvature_captured": report.curvature_captured,
        "replay_exact": report.replay_exact,
        "states": list(report.states),
        "counterfactual": report.counterfactual,
    }


def _norms(report: WindowReport) -> dict[str, float]:
    steps, norms = zip(*sorted(report.norms.items()), strict=True)
    return {str(steps[place]): norms[place] for place in thinned(norms, _NORMS)}


def _config(log: TrainingLog, options: UnlearnOptions) -> dict[str, Any]:
    """The options without the request's text, which may name a file of rows or quote one."""
    return {
        "log": log.location if "://" in log.location else str(Path(log.location).resolve()),
        "K": "all" if options.K is None else options.K,
        "settle_tolerance": options.settle_tolerance,
        "hessian_mode": options.hessian_mode.value,
        "tolerance": options.tolerance,
        "propagation": options.propagation.value,
        "denominator": options.denominator.value,
        "damping": options.damping,
        "rank": options.rank,
        "offload": options.offload,
        "oracle": options.oracle,
        "oracle_sample": options.oracle_sample,
        "redact": options.redact,
        "keep_states": options.keep_states,
        "ledger": options.ledger,
        "thresholds": asdict(options.thresholds),
    }
