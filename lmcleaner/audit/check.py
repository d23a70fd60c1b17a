"""`audit`: checks an unlearned model and its audit document against the log, as somebody else would."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmcleaner.audit.coverage import request_checks
from lmcleaner.audit.entered import NOT_ENTERED, ledger_problem
from lmcleaner.audit.evaluation import write_evaluation
from lmcleaner.audit.files import FILES, files_problem
from lmcleaner.audit.history import redactions
from lmcleaner.audit.inputs import check_to_audit
from lmcleaner.audit.measuring import Measured, evaluation_checks, find_wanted, measure, oracle_problem
from lmcleaner.audit.options import AuditOptions
from lmcleaner.audit.redacted import changes_since, check_previous, check_redacted
from lmcleaner.audit.statements import (
    documents_problem,
    stated_forget_set,
    stated_model,
    unequal,
    verdict_problem,
)
from lmcleaner.formats.audit_document import Document, as_unlearned, audit_sha256, read_audit, schema_problems
from lmcleaner.formats.commit import Change
from lmcleaner.formats.errors import MismatchError
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.progress import Progress, Silent
from lmcleaner.training.numerics import replay_device, restored_numerics
from lmcleaner.training.replay import ReplayModel
from lmcleaner.training.vectors import distance

# Norms are summed in float64 in one order; they may differ in the last digits between machines.
_NORM_TOLERANCE = 1e-6
GONE = "the log no longer holds the rows, nor the run with them"


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """What was checked and found.

    Attributes:
        checks: name of each check, and what is wrong; None where it passed.
        unchecked: name of each check that the log no longer allows, and why.
        document: the audit document.
        oracle: the fresh comparison with the oracle, if it was asked for.
        evaluation: what was written into the document as `evaluation`, if it was asked for.
        sweep: what `audit verify` took again of the sweep: seed of the draw, stretches, steps, of how many, and the
            largest relative error.
        remeasured: what `audit verify` measured again: number of values, the largest difference of two and where it is,
            and the tolerance.
    """

    checks: dict[str, str | None]
    unchecked: dict[str, str]
    document: Document
    oracle: dict[str, Any] | None
    evaluation: dict[str, Any] | None = None
    sweep: dict[str, Any] | None = None
    remeasured: dict[str, Any] | None = None

    @property
    def passed(self) -> bool:
        """Whether every check that could be made passed."""
        return all(problem is None for problem in self.checks.values())

    @property
    def verdict(self) -> str:
        """What the document says of the result: good, poor, or "none" where it says nothing."""
        return str(self._result.get("verdict", "none"))

    @property
    def reasons(self) -> list[str]:
        """Why the document calls the result poor."""
        return [str(reason) for reason in self._result.get("reasons", ())]

    @property
    def is_good(self) -> bool:
        """Whether the checks passed and the verdict that they confirm is good."""
        return self.passed and self.verdict == "good"

    @property
    def _result(self) -> dict[str, Any]:
        """Empty in a document that isn't one."""
        result = self.document.get("result")
        return result if isinstance(result, dict) else {}


def audit_model(
    folder: Path, log_path: Path | str, options: AuditOptions | None = None, progress: Progress | None = None
) -> AuditReport:
    """Checks an output folder of `unlearn` against the log.

    Args:
        folder: the output folder.
        log_path: the training log.
        options: what to do besides.
        progress: whom to tell how far it is.

    Returns:
        Every check with its outcome. Where the log was redacted since, those that it no longer allows are named.

    Raises:
        NotFoundError: the folder, its audit document, its model, the log or what to evaluate on isn't there.
        DamagedError: the audit document or the log can't be read.
        ExistsError: there is something to evaluate, and the document is signed.
    """
    options, progress = options or AuditOptions(), progress or Silent()
    check_to_audit(folder, options)
    document = read_audit(folder)
    problems = schema_problems(document)
    checks: dict[str, str | None] = {"schema": "; ".join(problems) or None}
    if problems:
        return AuditReport(checks=checks, unchecked={}, document=document, oracle=None)
    log = TrainingLog(log_path)
    sha256, document = audit_sha256(folder, document), as_unlearned(document)
    checks["requests"] = documents_problem(folder, document, sha256)
    unchecked = {}
    if FILES in document:
        checks["files"] = files_problem(document, folder)
    if checks.get("files") is not None:  # nothing that somebody else put there is loaded
        unchecked["all else"] = "the files aren't those that the run wrote"
        return AuditReport(checks=checks, unchecked=unchecked, document=document, oracle=None)
    if document["config"].get("entered"):
        checks["ledger"] = ledger_problem(document, sha256, log)
    elif document["config"].get("ledger"):
        unchecked["ledger"] = NOT_ENTERED
    since = changes_since(log, document["hashes"]["log_root"])
    if since and redactions(since):
        found = check_redacted(document, sha256, log, folder, options.model)
        unchecked |= {"log": f"redacted on {redactions(since)[0].time}"} | found.unchecked
        unchecked |= dict.fromkeys(options.measures, GONE)
        return AuditReport(checks=checks | found.checks, unchecked=unchecked, document=document, oracle=None)
    if any(change.kind == "pruning" for change in since or ()):
        unchecked["windows"] = "checkpoints or updates were pruned since"
    checks |= _log_checks(document, log, since) | request_checks(document, stated_forget_set(document), log)
    checks = {name: problem for name, problem in checks.items() if name not in unchecked}
    measured = Measured()
    if checks["log"] is None and checks["samples"] is None:
        with restored_numerics(log.manifest.numerics):
            checks |= _model_checks(document, log, folder, options.model)
            if options.measures:
                wanted = find_wanted(document, log, options, progress)
                measured = measure(document, log, folder, options, wanted, progress)
    oracle, evaluation = measured.oracle, measured.evaluation
    if oracle is not None:
        checks["oracle"] = oracle_problem(document, oracle, options.relative_error)
    if evaluation is not None:
        write_evaluation(folder, evaluation, measured.scores)
        checks |= evaluation_checks(evaluation)
    return AuditReport(checks=checks, unchecked=unchecked, document=document, oracle=oracle, evaluation=evaluation)


def _log_checks(document: Document, log: TrainingLog, since: Sequence[Change] | None) -> dict[str, str | None]:
    """Whether the log is the document's, and was changed as the document says."""
    if since is None:
        return {"log": unequal("log_root", document["hashes"]["log_root"], log.root)}
    checks = {"log": None, "previous": check_previous(document, log, since)}
    if document["config"].get("redact"):
        checks["redaction"] = "the log was not redacted: `unlearn --redact` ended before it changed the log"
    return checks


def _model_checks(document: Document, log: TrainingLog, folder: Path, source: str | None) -> dict[str, str | None]:
    """Whether the model in the folder is the one described, and differs from the trained one as described."""
    model, after = stated_model(document, log, folder, source)
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
        "trained model": unequal("model_before", document["hashes"]["model_before"], replay.fingerprint(trained)),
        "change": None if is_close else f"change_norm: the document says {stated}, the model and the log give {change}",
        "verdict": verdict_problem(document),
    }
