"""Whether a document's requests are in the ledger of its log, and whether it serves those that were there before."""

from lmcleaner.audit.history import redactions
from lmcleaner.audit.requests import stated_parts
from lmcleaner.audit.statements import unequal
from lmcleaner.formats.audit_document import Document
from lmcleaner.formats.errors import DamagedError
from lmcleaner.formats.ledger import LedgerEntry, ServedRequest, read_ledger
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.unlearning.earlier import served
from lmcleaner.unlearning.request import Request

NOT_ENTERED = "the log could not be written when the run entered its requests"


def ledger_problem(document: Document, audit_sha256: str, log: TrainingLog) -> str | None:
    """What is wrong with the entry of a document that says it was entered.

    Args:
        document: the audit document.
        audit_sha256: of its file.
        log: the log as it is now.

    Returns:
        The problem, or None.
    """
    try:
        entries = read_ledger(log).entries
    except DamagedError as error:
        return error.message
    own = next((entry for entry in entries if entry.audit_sha256 == audit_sha256), None)
    if own is None:
        return f"no entry of the log's ledger names this document: expected SHA-256 {audit_sha256}"
    parts = stated_parts(document)
    new = sorted(part.sha256 for part in parts if part.entry is None)
    hashes = document["hashes"]
    return (
        unequal("requests", new, sorted(request.forget_set for request in own.requests))
        or unequal("forget_set", hashes["forget_set"], own.forget_set)
        or unequal("model_after", hashes["model_after"], own.model_after)
        or _problem_of_earlier(document, parts, entries[: own.number], log)
    )


def _problem_of_earlier(
    document: Document, parts: tuple[Request, ...], before: tuple[LedgerEntry, ...], log: TrainingLog
) -> str | None:
    """Whether the earlier requests are those of the ledger, and none is left out of a result that counts as good."""
    known = {entry.sha256: {_content(request) for request in entry.requests} for entry in before}
    stated = {_content(served(part)) for part in parts}
    for part in parts:
        if part.entry is not None and _content(served(part)) not in known.get(part.entry, set()):
            return f"no earlier entry of the log's ledger holds the request {part.sha256}: expected entry {part.entry}"
    settled = [int(change.details.get("ledger_entries", 0)) for change in redactions(log.commit.history)]
    first = max((count for count in settled if count <= len(before)), default=0)
    for entry in before[first:]:
        if document["result"]["verdict"] == "good" and not known[entry.sha256] <= stated:
            return f"a good result leaves out a request that was entered before it: entry {entry.number}, {entry.time}"
    return None


def _content(request: ServedRequest) -> tuple[str, tuple[str, ...]]:
    """What stays the same of a request when the run goes on and uses its samples in further steps."""
    return request.level, request.samples
