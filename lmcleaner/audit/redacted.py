"""Checks an audit document of a log that was redacted since, as far as that can still be done."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from lmcleaner.audit.history import previous_audit, redactions, tombstones
from lmcleaner.audit.statements import (
    forget_set_problem,
    handled_problem,
    stated_forget_set,
    stated_model,
    stated_steps,
    unequal,
    verdict_problem,
    windows_problem,
)
from lmcleaner.choices import Level
from lmcleaner.formats.audit_document import Document
from lmcleaner.formats.commit import Change
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.wording import counted
from lmcleaner.training.numerics import replay_device
from lmcleaner.training.replay import ReplayModel
from lmcleaner.unlearning.request import occurrences_in
from lmcleaner.unlearning.windows import find_windows

_GONE = "the trained model of that time is no longer in the log"
_OTHERS = "the log no longer holds that run, since another request was redacted from it"


@dataclass(frozen=True, slots=True)
class Findings:
    """What was found.

    Attributes:
        checks: name of each check, and what is wrong; None where it passed.
        unchecked: name of each check that can't be made any more, and why.
    """

    checks: dict[str, str | None] = field(default_factory=dict)
    unchecked: dict[str, str] = field(default_factory=dict)


def changes_since(log: TrainingLog, root: str) -> tuple[Change, ...] | None:
    """What was done to a log since it had a root: nothing, or its history from there on; None if it never had it."""
    if root == log.root:
        return ()
    history = log.commit.history
    return next((history[n:] for n, change in enumerate(history) if change.root_before == root), None)


def check_redacted(
    document: Document, audit_sha256: str, log: TrainingLog, folder: Path, source: str | None = None
) -> Findings:
    """Checks a document whose log was redacted after it was at the document's root.

    Args:
        document: the audit document.
        audit_sha256: SHA-256 of its file.
        log: the log as it is now.
        folder: the output folder, with the model.
        source: where the base model of an adapter lies now, if it moved.

    Returns:
        The checks and those that can't be made.
    """
    since = changes_since(log, document["hashes"]["log_root"])
    assert since
    found = Findings()
    found.checks["log"] = None
    found.checks["previous"] = check_previous(document, log, since)
    found.checks["samples"] = forget_set_problem(document, stated_forget_set(document))
    model, found.checks["model"] = stated_model(document, log, folder, source)
    found.checks["verdict"] = verdict_problem(document)
    found.unchecked["trained model"] = found.unchecked["change"] = _GONE
    own = next((c for c in redactions(since) if c.details.get("audit_sha256") == audit_sha256), None)
    if own is not None and own.root_before == document["hashes"]["log_root"]:
        _check_own(document, own, log, since[1:], found)
        if redactions(since[1:]):
            found.unchecked["redacted log"] = "the log was redacted again since"
        elif found.checks["model"] is None:
            found.checks["redacted log"] = _log_problem(document, log, model)
    elif document["config"].get("redact"):
        found.checks["redaction"] = f"the log was redacted with another audit document than this one, {audit_sha256}"
    else:
        found.unchecked["coverage"] = found.unchecked["windows"] = _OTHERS
    return found


def check_previous(document: Document, log: TrainingLog, since: Sequence[Change]) -> str | None:
    """Whether the document names the audit document of the redaction before it."""
    history = log.commit.history
    before = history[: len(history) - len(since)]
    return unequal("previous", document["previous"], previous_audit(before))


def _check_own(document: Document, own: Change, log: TrainingLog, later: Sequence[Change], found: Findings) -> None:
    """What can be checked where the document is that of the redaction itself."""
    details, coverage = own.details, document["coverage"]
    stated = {name: value for name, value in document["request"].items() if name != "earlier"}
    logged = {name: details.get(name) for name in stated}
    counts = (coverage["samples"], coverage["occurrences"], coverage["steps"])
    counted = (len(details["samples"]), details["occurrences"], len(details["steps"]))
    found.checks["coverage"] = (
        unequal("request", stated, logged)
        or unequal("samples, occurrences and steps", counts, counted)
        or handled_problem(document, details["occurrences"])
    )
    num_steps, K = details["num_steps"], stated_steps(document)  # noqa: N806 -- the paper's name
    windows = find_windows(
        details["steps"], K=K, num_steps=num_steps, checkpoint_steps=(0,), known_steps=range(num_steps)
    )
    found.checks["windows"] = windows_problem(document, windows)
    found.checks["redaction"] = _content_problem(document, own, log, later)


def _content_problem(document: Document, own: Change, log: TrainingLog, later: Sequence[Change]) -> str | None:
    """Whether the log really lost what the document says that it lost."""
    named, others = stated_forget_set(document), redactions(later)
    if any(change.details.get("level") != Level.SAMPLE.value for change in others):
        return None  # steps went that may have held the samples, and later ones moved up
    expected = own.details["num_steps"] - len(named.skipped)
    kept = (named.masked & log.sample_rows.keys()) - tombstones(log)
    if kept:
        return f"not redacted: {counted(len(kept), 'sample')}, such as {min(kept).hex()}"
    if named.skipped:
        return unequal("steps that are left", expected, log.num_steps)
    found = occurrences_in(log, named.digests, named.steps)
    return unequal("occurrences of redacted samples", named.num_occurrences, found)


def _log_problem(document: Document, log: TrainingLog, model: nn.Module) -> str | None:
    """Whether the log's trained model is now the one that the document describes."""
    replay = ReplayModel(model, log.manifest, replay_device(log.manifest))
    found = replay.fingerprint(replay.load(log.parameters(log.num_steps)))
    return unequal("model_after", document["hashes"]["model_after"], found)
