"""Samples of a log by their digests, or by the beginnings of them."""

import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence

from lmcleaner.formats.errors import NotFoundError, UsageError
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.wording import counted

_DIGITS = re.compile(r"[0-9a-f]{8,64}")  # fewer would soon be ambiguous, and look like any word
_BEHIND_ALL_DIGITS = "g"
_SHORT = re.compile(r"[0-9a-f]{1,7}")
_TOLD = 3  # of those that a log doesn't hold


def is_digest(text: str) -> bool:
    """Whether a text could be the digest of a sample, or the beginning of one: 8 to 64 hexadecimal digits."""
    return bool(_DIGITS.fullmatch(text))


def is_too_short(text: str) -> bool:
    """Whether a text could be the beginning of a digest, were it longer; words like "ada" could be, too."""
    return bool(_SHORT.fullmatch(text))


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
    found = {digits: _beginning_with(names, digits) for digits in wanted}
    unseen = [f"sample {digits}" for digits, those in found.items() if not those]
    if unseen:
        raise never_saw(log, unseen, "`lmcleaner inspect --find TEXT` lists the samples that hold a text, with digests")
    return frozenset(bytes.fromhex(_the_one(those, digits)) for digits, those in found.items())


def never_saw(log: TrainingLog, unseen: Sequence[str], hint: str, where: str = "") -> NotFoundError:
    """The error of a request that names what a log doesn't hold.

    Args:
        log: the training log.
        unseen: names of what isn't there, at least one; the first three are told.
        hint: what to do about it.
        where: what goes before the names, such as their file.

    Returns:
        The error.
    """
    more = f"; and {len(unseen) - _TOLD} more" if len(unseen) > _TOLD else ""
    are = "they are" if len(unseen) > 1 else "it is"
    return NotFoundError(
        f"the run never saw this: {where}{'; '.join(unseen[:_TOLD])}{more}: {are} not among the "
        f"{counted(len(log.sample_rows), 'sample')} of {log.location}",
        hint=hint,
    )


def _beginning_with(names: Sequence[str], digits: str) -> Sequence[str]:
    return names[bisect_left(names, digits) : bisect_left(names, digits + _BEHIND_ALL_DIGITS)]


def _the_one(found: Sequence[str], digits: str) -> str:
    if len(found) > 1:
        raise UsageError(
            f"an ambiguous sample digest: {digits}: expected the beginning of one, found that of {len(found)}: "
            f"{', '.join(found[:3])}{', ...' if len(found) > 3 else ''}",
            hint="give more of its digits",
        )
    return found[0]
