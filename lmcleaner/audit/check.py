"""`audit`: checks an unlearned model and its audit document against the log, as somebody else would."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lmcleaner.audit.oracle import compare_with_oracle, replay_counterfactual
from lmcleaner.choices import Denominator, Level
from lmcleaner.formats.audit_document import Document, read_audit, schema_problems
from lmcleaner.formats.errors import MismatchError
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.progress import Progress, Silent
from lmcleaner.training.fingerprint import model_fingerprint
from lmcleaner.training.models import load_base_model, load_model
from lmcleaner.training.numerics import replay_device, restored_numerics
from lmcleaner.training.replay import ReplayModel
from lmcleaner.training.vectors import torch_dtype
from lmcleaner.unlearning.combine import distance
from lmcleaner.unlearning.request import ForgetSet, occurrences_in
from lmcleaner.unlearning.windows import find_windows

# Norms are summed in float64 in one order; they may differ in the last digits between machines.
_NORM_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditOptions:
    """What `audit` shall do besides checking hashes and coverage.

    Attributes:
        oracle: replays the counterfactual and measures the error against it.
        model: where the base model lies now, if it moved; needed for the oracle only.
        relative_error: largest relative error that passes; never above 0.9.
    """

    oracle: bool = False
    model: str | None = None
    relative_error: float = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """What was checked and found.

    Attributes:
        checks: name of each check, and what is wrong; None where it passed.
        document: the audit document.
        oracle: the fresh comparison with the oracle, if it was asked for.
    """

    checks: dict[str, str | None]
    document: Document
    oracle: dict[str, Any] | None

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(problem is None for problem in self.checks.values())


def audit_model(
    folder: Path, log_path: Path, options: AuditOptions | None = None, progress: Progress | None = None
) -> AuditReport:
    """Checks an output folder of `unlearn` against the log.

    Args:
        folder: the output folder.
        log_path: the training log.
        options: what to do besides.
        progress: whom to tell how far it is.

    Returns:
        Every check with its outcome.

    Raises:
        NotFoundError: the folder, its audit document, its model or the log isn't there.
        DamagedError: the audit document or the log can't be read.
    """
    options, progress = options or AuditOptions(), progress or Silent()
    document = read_audit(folder)
    problems = schema_problems(document)
    checks: dict[str, str | None] = {"schema": "; ".join(problems) or None}
    if problems:
        return AuditReport(checks=checks, document=document, oracle=None)
    log = TrainingLog(log_path)
    checks["log"] = _unequal("log_root", document["hashes"]["log_root"], log.root)
    checks |= _request_checks(document, log)
    oracle = None
    if checks["log"] is None and checks["samples"] is None:
        with restored_numerics(log.manifest.numerics):
            checks |= _model_checks(document, log, folder)
            if options.oracle:
                oracle = _oracle(document, log, folder, options, progress)
                checks["oracle"] = _oracle_check(document, oracle, options)
    return AuditReport(checks=checks, document=document, oracle=oracle)


def _request_checks(document: Document, log: TrainingLog) -> dict[str, str | None]:
    """Whether the digests were really used, and all of their uses were covered."""
    unknown = [digest for digest in document["request"]["samples"] if bytes.fromhex(digest) not in log.sample_rows]
    if unknown:
        return {"samples": f"the run never saw {len(unknown)} of the samples, such as {unknown[0]}"}
    forget_set = _forget_set(document, log)
    used = _steps_of(log, forget_set)
    coverage = document["coverage"]
    found = (len(forget_set.digests), forget_set.num_occurrences, len(used))
    stated = (coverage["samples"], coverage["occurrences"], coverage["steps"])
    handled = sum(window.get("occurrences", 0) for window in document["windows"])
    return {
        "samples": _unequal("forget_set", document["hashes"]["forget_set"], forget_set.sha256),
        "coverage": _unequal("samples, occurrences and steps", stated, found)
        or _unequal("steps", list(forget_set.steps), used)
        or _unequal("occurrences handled by the windows", handled, forget_set.num_occurrences),
        "windows": _windows_problem(document, log, used),
    }


def _forget_set(document: Document, log: TrainingLog) -> ForgetSet:
    request = document["request"]
    level, steps = Level(request["level"]), tuple(request["steps"])
    digests = frozenset(bytes.fromhex(digest) for digest in request["samples"])
    return ForgetSet(level, digests, steps, occurrences_in(log, digests, steps))


def _steps_of(log: TrainingLog, forget_set: ForgetSet) -> list[int]:
    """Steps that the request must cover: all that hold one of its samples, or the steps that it names as a whole."""
    named = frozenset(forget_set.steps)
    rows_of_named = int(np.isin(log.occurrence_steps, list(named)).sum())
    if forget_set.level is Level.BATCH and forget_set.num_occurrences == rows_of_named:
        return sorted(named)
    rows = [log.sample_rows[digest] for digest in forget_set.digests]
    return [int(step) for step in np.unique(log.occurrence_steps[np.isin(log.table("occurrences/sample"), rows)])]


def _windows_problem(document: Document, log: TrainingLog, steps: Sequence[int]) -> str | None:
    K = document["config"].get("K")  # noqa: N806 -- the paper's name
    windows = find_windows(
        steps,
        K=None if K == "all" else K,
        num_steps=log.num_steps,
        checkpoint_steps=log.checkpoint_steps,
        ends_anywhere=log.has_updates,
    )
    stated = [(window["tz"], window["tau"], window["K_used"]) for window in document["windows"]]
    return _unequal("windows (tz, tau, K_used)", stated, [(w.first, w.end, w.K_used) for w in windows])


def _model_checks(document: Document, log: TrainingLog, folder: Path) -> dict[str, str | None]:
    """Whether the model in the folder is the one described, and differs from the trained one as described."""
    dtype = torch_dtype(log.manifest.model.dtype)
    model = load_model(str(folder), dtype, log.manifest.numerics.attention)
    after = _unequal("model_after", document["hashes"]["model_after"], model_fingerprint(model))
    try:
        replay = ReplayModel(model, log.manifest, replay_device(log.manifest))
    except MismatchError as error:
        return {"model": error.message}
    unlearned = [parameter.detach().clone() for parameter in replay.parameters]
    trained = replay.load(log.parameters(log.num_steps))
    change, stated = distance(unlearned, trained), document["result"]["change_norm"]
    is_close = math.isclose(change, stated, rel_tol=_NORM_TOLERANCE, abs_tol=1e-12)
    return {
        "model": after,
        "trained model": _unequal("model_before", document["hashes"]["model_before"], replay.fingerprint(trained)),
        "change": None if is_close else f"change_norm: the document says {stated}, the model and the log give {change}",
        "verdict": next(_verdict_problems(document), None),
    }


def _verdict_problems(document: Document) -> Iterator[str]:
    result = document["result"]
    if (result["verdict"] == "poor") != bool(result["reasons"]):
        yield f"the verdict is {result['verdict']} with {len(result['reasons'])} reasons"
    oracle = document["oracle"]
    if oracle is not None and oracle["relative_error"] >= 0.9 and result["verdict"] == "good":
        yield f"a relative error of {oracle['relative_error']} can't be good"


def _oracle(
    document: Document, log: TrainingLog, folder: Path, options: AuditOptions, progress: Progress
) -> dict[str, Any]:
    manifest = log.manifest
    replay = ReplayModel(load_base_model(manifest, options.model), manifest, replay_device(manifest))
    made = load_model(str(folder), torch_dtype(manifest.model.dtype), manifest.numerics.attention)
    unlearned = [p.detach() for p in ReplayModel(made, manifest, replay.device).parameters]
    forget_set = _forget_set(document, log)
    denominator = Denominator(document["config"].get("denominator", Denominator.LOGGED))
    counterfactual = replay_counterfactual(log, replay, forget_set, denominator, progress)
    trained = replay.load(log.parameters(log.num_steps))
    return compare_with_oracle(log, replay, forget_set, trained, unlearned, counterfactual)


def _oracle_check(document: Document, oracle: dict[str, Any], options: AuditOptions) -> str | None:
    limit = min(0.9, options.relative_error)
    if oracle["relative_error"] >= limit:
        return f"the relative error is {oracle['relative_error']:.4f}, expected below {limit:g}"
    stated = document["oracle"]
    if stated is not None and not math.isclose(stated["relative_error"], oracle["relative_error"], abs_tol=1e-3):
        return _unequal("relative_error", stated["relative_error"], oracle["relative_error"])
    return None


def _unequal(what: str, stated: object, found: object) -> str | None:
    return None if stated == found else f"{what}: the document says {stated}, found {found}"
