"""Whether a document's verdict follows from the measures that it states."""

import math
from pathlib import Path
from typing import Any

from lmcleaner.audit.statements import unequal
from lmcleaner.choices import HessianMode, Propagation
from lmcleaner.formats.audit_document import Document
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.training.numerics import environment
from lmcleaner.unlearning.combine import Change
from lmcleaner.unlearning.options import Thresholds, UnlearnOptions
from lmcleaner.unlearning.sweep import WindowReport, combined_estimate
from lmcleaner.unlearning.verdict import foreseen_reasons, reasons_against
from lmcleaner.unlearning.windows import Window

_OF_WINDOWS = {
    "start", "last_occurrence", "v_peak_norm", "occurrences", "linearization_errors", "left_out", "estimated_error",
    "data_free", "replay_exact",
}  # fmt: skip
_OF_CONFIG = {"hessian_mode", "propagation", "oracle", "oracle_sample", "thresholds"}


def judged_problem(document: Document, log: TrainingLog) -> str | None:
    """Judges a result again by what its document says was measured.

    Args:
        document: the audit document.
        log: the training log, with the run that the document is about.

    Returns:
        What is wrong with the verdict and, where this release wrote the document, with its reasons and the estimate;
        None where nothing is, or an earlier release left out what it was judged by.
    """
    config, result = document["config"], document["result"]
    if not (config.keys() >= _OF_CONFIG and all(window.keys() >= _OF_WINDOWS for window in document["windows"])):
        return None
    try:
        options, reports = _options(config), [_report(window) for window in document["windows"]]
        surviving = result["surviving"]
        change = Change(norm=result["change_norm"], norm_ratio=surviving["norm_ratio"], cosine=surviving["cosine"])
        reasons = reasons_against(reports, change, document["oracle"], log.num_steps, options)
        reasons += foreseen_reasons(log, options)
        estimate = _estimate_problem(result.get("estimated_error"), combined_estimate(reports))
    except (ValueError, TypeError, AttributeError, ArithmeticError) as error:
        return f"nothing follows from what is stated as measured: {error}"
    if bool(reasons) != (result["verdict"] == "poor"):
        return f"by its own measures the result is {'poor: ' + reasons[0] if reasons else 'good'}"
    is_own = document["environment"].get("lmcleaner") == environment()["lmcleaner"]
    return (estimate or unequal("reasons", result["reasons"], reasons)) if is_own else None


def _estimate_problem(stated: float | None, found: float | None) -> str | None:
    """Roots and squares may differ in the last digit between machines."""
    is_close = stated is not None and found is not None and math.isclose(stated, found, rel_tol=1e-9)
    return None if is_close else unequal("estimated_error", stated, found)


def _options(config: dict[str, Any]) -> UnlearnOptions:
    """Those that decide what is good; the request isn't in the document."""
    return UnlearnOptions(
        forget="", output=Path(), K=None, hessian_mode=HessianMode(config["hessian_mode"]),
        propagation=Propagation(config["propagation"]), oracle=config["oracle"], oracle_sample=config["oracle_sample"],
        thresholds=Thresholds(**config["thresholds"]),
    )  # fmt: skip


def _report(window: dict[str, Any]) -> WindowReport:
    return WindowReport(
        window=Window(
            start=window["start"], first=window["tz"], last=window["last_occurrence"], end=window["tau"],
        ),
        v0_norm=window["v0_norm"], v_peak_norm=window["v_peak_norm"], v_norm=window["v_norm"], norms={},
        gradients=window["gradients"], products=window["hvp_calls"], handled=window["occurrences"],
        marks={int(step): error for step, error in window["linearization_errors"].items()},
        settled=window["settled"], left_out=window["left_out"], data_free=window["data_free"],
        curvature_captured=window.get("curvature_captured"), estimated_error=window["estimated_error"],
        replay_exact=window["replay_exact"], states=(), counterfactual=None,
    )  # fmt: skip
