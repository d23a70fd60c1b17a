"""`audit verify`: checks an output folder as a third party, who trusts nobody and takes a part of the sweep again."""

import secrets
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from lmcleaner.audit.check import AuditReport, audit_model
from lmcleaner.audit.evaluation import evals_paths
from lmcleaner.audit.files import FILES, other_files
from lmcleaner.audit.inputs import check_to_verify
from lmcleaner.audit.judged import judged_problem
from lmcleaner.audit.options import AuditOptions, VerifyOptions
from lmcleaner.audit.redacted import Findings
from lmcleaner.audit.remeasuring import Remeasuring
from lmcleaner.audit.rerun import Rerun, draw, is_counterfactual_itself, stretches
from lmcleaner.audit.signature import SIGNATURE_FILE, signature_problem
from lmcleaner.audit.statements import stated_windows, unequal
from lmcleaner.choices import Propagation
from lmcleaner.formats.audit_document import EVALUATION, Document, audit_sha256, read_audit
from lmcleaner.formats.errors import DamagedError, LmcleanerError
from lmcleaner.formats.ledger import LedgerEntry, read_ledger
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.wording import counted
from lmcleaner.inspection.verify import verify
from lmcleaner.progress import Progress, Silent
from lmcleaner.training.numerics import restored_numerics
from lmcleaner.training.replay import ReplayModel, open_replay, open_unlearned
from lmcleaner.training.vectors import digest_of
from lmcleaner.unlearning.combine import Correction
from lmcleaner.unlearning.kept import STATES, read_state
from lmcleaner.unlearning.propagation import deviation

_SEEDS = 1 << 32
_NAMED = 3  # of the files that nothing vouches for


def verify_audit(
    folder: Path, log_path: Path | str, options: VerifyOptions | None = None, progress: Progress | None = None
) -> AuditReport:
    """All that `audit` checks, every byte of log and folder, stretches of the sweep at random, and the evaluation.

    Args:
        folder: the output folder of `unlearn`.
        log_path: the training log.
        options: how much of the sweep, whose signature, and what the evaluation needs.
        progress: whom to tell how far it is.

    Returns:
        Every check with its outcome, and what was taken again.

    Raises:
        NotFoundError: the folder, its audit document, its model, the log or something that an option names isn't there.
        DamagedError: the audit document or the log can't be read.
        UsageError: the key is none, there is no such device, or an option doesn't go with the document.
        ResourceError: the machine has too little memory.
    """
    options, progress = options or VerifyOptions(), progress or Silent()
    check_to_verify(folder, options)
    report = audit_model(folder, log_path, AuditOptions(model=options.model, device=options.device), progress)
    if report.checks["schema"] is not None or report.checks.get("files") is not None:
        return report
    log, document, written = TrainingLog(log_path), report.document, read_audit(folder)
    checks, unchecked = dict(report.checks), dict(report.unchecked)
    checks["whole log"] = _log_problem(log, progress)
    if FILES not in document:
        unchecked["files"] = "the document is from before it named them"
    elif others := other_files(document, folder, evals_paths() | {SIGNATURE_FILE}):
        more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
        unchecked["other files"] = f"{', '.join(others[:_NAMED])}{more}: they came later, and nothing vouches for them"
    if checks.get("verdict", "") is None and "log" not in unchecked:
        checks["verdict"] = judged_problem(document, log)
    vouched = _vouched(written, log, folder, options)
    report = replace(report, checks=checks | vouched.checks, unchecked=unchecked | vouched.unchecked)
    reason = _reason_not_to_repeat(report, log)
    if reason is None:
        report = _with_sweep(report, log, folder, options, progress)
    else:
        report = replace(report, unchecked={**report.unchecked, "sweep": reason})
    again = Remeasuring(report, log, folder, options, progress)
    again.run(written.get(EVALUATION))
    checks, unchecked = report.checks | again.checks, report.unchecked | again.unchecked
    return replace(report, checks=checks, unchecked=unchecked, remeasured=again.summary)


def _vouched(written: Document, log: TrainingLog, folder: Path, options: VerifyOptions) -> Findings:
    """What the ledger of the log and a signature say of a document."""
    checks, unchecked = dict[str, str | None](), dict[str, str]()
    if options.public_key is not None:
        checks["signature"] = signature_problem(folder, options.public_key)
    elif (folder / SIGNATURE_FILE).exists():
        unchecked["signature"] = f"{SIGNATURE_FILE} lies there: --public-key FILE says whose it shall be"
    entries = _entries(log)
    named = {change.details.get("audit_sha256") for change in log.commit.history} | {e.audit_sha256 for e in entries}
    if audit_sha256(folder, written) in named:
        checks["document"] = None
    elif written["config"].get("ledger") and any(e.model_after == written["hashes"]["model_after"] for e in entries):
        checks["document"] = "the log's ledger names another document with this model"
    elif checks.get("signature", "none") is not None:
        unchecked["document"] = "neither the log's ledger nor a signature vouches for what it says was measured"
    return Findings(checks, unchecked)


def _log_problem(log: TrainingLog, progress: Progress) -> str | None:
    damage = verify(log, progress=progress).damage
    return f"{damage[0].array}: {damage[0].message}; {counted(len(damage), 'problem')} in all" if damage else None


def _entries(log: TrainingLog) -> tuple[LedgerEntry, ...]:
    """Of the ledger; none where it is damaged, which is found with the whole log."""
    try:
        return read_ledger(log).entries
    except DamagedError:
        return ()


def _reason_not_to_repeat(report: AuditReport, log: TrainingLog) -> str | None:
    failed = [name for name, problem in report.checks.items() if problem is not None]
    if failed:
        return f"another check failed: {failed[0]}"
    if "log" in report.unchecked:
        return "the log no longer holds the run that the sweep went through"
    if "windows" in report.unchecked:
        return report.unchecked["windows"]
    if report.document["config"]["propagation"] == Propagation.PAPER:
        return "the paper's form has no counterfactual state"
    if "counterfactual" not in report.document["windows"][0]:
        return "the document is from before it said where its windows ended"
    return None


def _with_sweep(
    report: AuditReport, log: TrainingLog, folder: Path, options: VerifyOptions, progress: Progress
) -> AuditReport:
    """The report with what the sweep's states say, and what some of its steps lead to."""
    document, manifest = report.document, log.manifest
    replay = open_replay(manifest, options.model, options.device)
    unlearned = [parameter.detach() for parameter in open_unlearned(replay, folder, options.model).parameters]
    windows = stated_windows(document, log, document["request"]["steps"])
    found = stretches(document, windows, log)
    seed = secrets.randbelow(_SEEDS) if options.seed is None else options.seed
    drawn = draw(found, options.steps, seed)
    checks, unchecked = dict(report.checks), dict(report.unchecked)
    with restored_numerics(manifest.numerics):
        try:
            problem, reason = _result_problem(document, log, replay, folder, unlearned)
            rerun = Rerun(document, log, replay, folder, unlearned)
            progress.begin("taking steps again", sum(stretch.num_steps for stretch in drawn))
            problems = [rerun.problem(stretch, progress) for stretch in drawn]
        except LmcleanerError as error:
            return replace(report, checks={**checks, "sweep": error.message})
    if reason is None:
        checks["result"] = problem
    else:
        unchecked["result"] = reason
    checks["sweep"] = next((problem for problem in problems if problem is not None), None)
    sweep = {
        "seed": seed,
        "stretches": len(drawn),
        "steps": sum(stretch.num_steps for stretch in drawn),
        "of_steps": sum(stretch.num_steps for stretch in found),
        "relative_error": rerun.worst,
    }
    return replace(report, checks=checks, unchecked=unchecked, sweep=sweep)


def _result_problem(
    document: Document, log: TrainingLog, replay: ReplayModel, folder: Path, unlearned: Sequence[Tensor]
) -> tuple[str | None, str | None]:
    """What is wrong with the model as the sum of what the windows ended with, and why that can't be told."""
    stated = document["windows"]
    if is_counterfactual_itself(document, log):
        return unequal("counterfactual", stated[0]["counterfactual"], digest_of(unlearned).hex()), None
    if not all(window["tau"] in window["states"] for window in stated):
        return None, "no states were kept of where the windows ended: unlearn with --keep-states"
    correction = Correction()
    for window in stated:
        end, own = window["tau"], replay.load(read_state(folder / STATES, window["tau"]).parameters)
        problem = unequal("counterfactual", window["counterfactual"], digest_of(own).hex())
        if problem is not None:
            return problem, None
        if end == log.num_steps:
            correction.set_counterfactual(own)
        else:
            correction.add(deviation(replay.load(log.parameters(end)), own))
    made, _ = correction.apply(replay.load(log.parameters(log.num_steps)))
    is_same = digest_of(made) == digest_of(unlearned)
    return None if is_same else "the model isn't θ[τ] without the windows' deviations", None
