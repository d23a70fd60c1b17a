"""A sample of a log by its digest, or by the beginning of it."""

import re

from lmcleaner.formats.errors import NotFoundError, UsageError
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.wording import counted

_DIGITS = re.compile(r"[0-9a-f]{8,64}")  # fewer would soon be ambiguous, and look like any word


def is_digest(text: str) -> bool:
    """Whether a text could be the digest of a sample, or the beginning of one: 8 to 64 hexadecimal digits."""
    return bool(_DIGITS.fullmatch(text))


def find_digest(log: TrainingLog, digits: str) -> bytes:
    """The digest of the one sample whose digest begins so.

    Args:
        log: the training log.
        digits: 8 to 64 hexadecimal digits.

    Returns:
        The digest, 32 bytes.

    Raises:
        UsageError: not such digits, or several samples begin so.
        NotFoundError: the log holds no such sample.
    """
    if not is_digest(digits):
        raise UsageError(f"not a sample digest: expected 8 to 64 hexadecimal digits, found {digits[:80]!r}")
    found = sorted(digest for digest in log.sample_rows if digest.hex().startswith(digits))
    if not found:
        raise NotFoundError(
            f"the run never saw this: sample {digits}: it is not among the "
            f"{counted(len(log.sample_rows), 'sample')} of {log.location}",
            hint="`lmcleaner inspect --find TEXT` lists the samples that hold a text, with their digests",
        )
    if len(found) > 1:
        raise UsageError(
            f"an ambiguous sample digest: {digits}: expected the beginning of one, found that of {len(found)}: "
            f"{', '.join(digest.hex() for digest in found[:3])}{', ...' if len(found) > 3 else ''}",
            hint="give more of its digits",
        )
    return found[0]
