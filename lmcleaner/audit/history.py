"""What a log says of the redactions that it went through."""

from collections.abc import Sequence

from lmcleaner.formats.commit import Change
from lmcleaner.formats.reader import TrainingLog


def redactions(changes: Sequence[Change]) -> tuple[Change, ...]:
    """The redactions among the changes of a log, oldest first."""
    return tuple(change for change in changes if change.kind == "redaction")


def previous_audit(changes: Sequence[Change]) -> str | None:
    """SHA-256 of the last redaction's audit document, or None where no change was a redaction with one."""
    digests = [change.details.get("audit_sha256") for change in redactions(changes)]
    return str(digests[-1]) if digests and digests[-1] else None


def tombstones(log: TrainingLog) -> frozenset[bytes]:
    """Digests of the samples whose content was overwritten."""
    is_redacted = log.table("samples/redacted")
    return frozenset(digest for digest, row in log.sample_rows.items() if is_redacted[row])


def redacted_samples(log: TrainingLog) -> dict[bytes, Change]:
    """Digest of each sample whose content is gone -> the redaction that removed it.

    A sample that a redaction names is still there if it was removed with some steps and is used in others.
    """
    there = log.sample_rows.keys() - tombstones(log)
    named = {bytes.fromhex(digest): change for change in redactions(log.commit.history) for digest in _samples(change)}
    return {digest: change for digest, change in named.items() if digest not in there}


def _samples(change: Change) -> Sequence[str]:
    samples: Sequence[str] = change.details.get("samples", ())
    return samples
