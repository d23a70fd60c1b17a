"""Samples of a log by their digests, or by the beginnings of them."""

import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence

from lmcleaner.formats.errors import NotFoundError, UsageError
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.wording import counted

_DIGITS = re.compile(r"[0-9a-f]{8,64}")  # fewer would soon be ambiguous, and look like any word
_BEHIND_ALL_DIGITS = "g"


def is_digest(text: str) -> bool:
    """Whether a text could be the digest of a sample, or the beginning of one: 8 to 64 hexadecimal digits."""
    return bool(_DIGITS.fullmatch(text))


def find_digests(log: TrainingLog, beginnings: Iterable[str]) -> frozenset[bytes]:
    """The digests of the samples that are named.

    Args:
        log: the training log.
        beginnings: 8 to 64 hexadecimal digits each, that one sample's digest begins with.

    Returns:
        The digests, 32 bytes each.

    Raises:
        UsageError: something else than such digits, or several samples begin so.
        NotFoundError: the log holds no such sample.
    """
    wanted = list(beginnings)
    for digits in wanted:
        if not is_digest(digits):
            raise UsageError(f"not a sample digest: expected 8 to 64 hexadecimal digits, found {digits[:80]!r}")
    names = sorted(digest.hex() for digest in log.sample_rows)
    return frozenset(bytes.fromhex(_the_one(names, digits, log.location)) for digits in wanted)


def _the_one(names: Sequence[str], digits: str, location: str) -> str:
    found = names[bisect_left(names, digits) : bisect_left(names, digits + _BEHIND_ALL_DIGITS)]
    if not found:
        raise NotFoundError(
            f"the run never saw this: sample {digits}: it is not among the "
            f"{counted(len(names), 'sample')} of {location}",
            hint="`lmcleaner inspect --find TEXT` lists the samples that hold a text, with their digests",
        )
    if len(found) > 1:
        raise UsageError(
            f"an ambiguous sample digest: {digits}: expected the beginning of one, found that of {len(found)}: "
            f"{', '.join(found[:3])}{', ...' if len(found) > 3 else ''}",
            hint="give more of its digits",
        )
    return found[0]
