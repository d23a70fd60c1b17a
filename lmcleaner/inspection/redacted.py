"""What was redacted from a log, and whether it has left the disk."""

from dataclasses import dataclass

import numpy as np

from lmcleaner.audit.history import redacted_samples
from lmcleaner.formats.layout import generation_name
from lmcleaner.formats.reader import TrainingLog


@dataclass(frozen=True, slots=True, kw_only=True)
class RedactedSample:
    """A sample whose content is gone.

    Attributes:
        digest: its name, 64 hexadecimal digits.
        num_tokens: its length; None where the log lost it with its steps.
        num_occurrences: uses of the tombstone that stands in its place.
        time: when it was redacted, UTC, ISO 8601.
        audit_sha256: SHA-256 of the audit document of the redaction, if the log says it.
    """

    digest: str
    num_tokens: int | None
    num_occurrences: int
    time: str
    audit_sha256: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Redacted:
    """What was redacted from a log.

    Attributes:
        samples: in the order of their digests.
        leftovers: objects of earlier generations that lie there still, such as a killed redaction leaves; they may hold
            the content.
        leftover_bytes: their size.
    """

    samples: tuple[RedactedSample, ...]
    leftovers: int
    leftover_bytes: int

    @property
    def is_gone(self) -> bool:
        """Whether no earlier generation is left."""
        return self.leftovers == 0


def find_redacted(log: TrainingLog) -> Redacted:
    """Lists the samples whose content is gone, and looks for what may still hold it; changes nothing.

    Args:
        log: the opened log.

    Returns:
        What was found.

    Raises:
        DamagedError: a table can't be trusted.
    """
    uses = np.bincount(log.table("occurrences/sample"), minlength=len(log.sample_rows))
    found = [
        RedactedSample(
            digest=digest.hex(),
            num_tokens=len(log.sample(row).tokens) if row is not None else None,
            num_occurrences=int(uses[row]) if row is not None else 0,
            time=change.time,
            audit_sha256=change.details.get("audit_sha256"),
        )
        for digest, change in sorted(redacted_samples(log).items())
        for row in [log.sample_rows.get(digest)]
    ]
    earlier = tuple(f"{generation_name(number)}/" for number in range(log.commit.generation))
    sizes = [size for key, size in log.store.list() if key.startswith(earlier)]
    return Redacted(samples=tuple(found), leftovers=len(sizes), leftover_bytes=sum(sizes))
