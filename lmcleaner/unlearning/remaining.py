"""What a request names and a log still holds."""

from collections.abc import Callable, Set
from typing import Any

from lmcleaner.audit.history import redacted_samples, redactions, tombstones
from lmcleaner.choices import Level
from lmcleaner.formats.errors import NotFoundError, UsageError
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.wording import counted
from lmcleaner.progress import Progress
from lmcleaner.unlearning.request import ForgetSet, find_forget_set, occurrences_in


def find_remaining(
    log: TrainingLog, forget: str, level: Level | None, load_tokenizer: Callable[[], Any], progress: Progress
) -> ForgetSet:
    """Looks up what a request names, without the samples that are redacted already.

    Args:
        log: the training log.
        forget: the request; see `find_forget_set`.
        level: what happens to the steps; see `find_forget_set`.
        load_tokenizer: gives the run's tokenizer; called only for rows.
        progress: is told of the samples that are gone already.

    Returns:
        The forget set, with at least one occurrence of a sample that has content.

    Raises:
        NotFoundError: something that the run never saw, or only samples that are redacted already.
        UsageError: the request can't be read, names nothing, or leaves nothing of the run.
        MismatchError: the tokenizer is another one than the run's.
    """
    named = _named(log, forget, level, load_tokenizer)
    gone = tombstones(log)
    if named.level is Level.BATCH and forget.startswith("steps:"):
        return named  # the steps as they are, whatever they hold
    if named.digests & gone:
        left = named.digests - gone
        when = ", ".join(sorted({redacted_samples(log)[digest].time for digest in named.digests & gone}))
        number = counted(len(named.digests), "sample")
        if not left:
            raise NotFoundError(
                f"already redacted on {when}: {log.location}: {number}, all of the request",
                hint="the log is that of the run without them; `lmcleaner inspect --redacted` lists them",
            )
        progress.say(f"already redacted on {when}: {len(named.digests & gone)} of {number}")
        named = find_forget_set(log, ",".join(digest.hex() for digest in sorted(left)), named.level, load_tokenizer)
    _check_rest(log, named.digests | gone)
    return named


def _named(log: TrainingLog, forget: str, level: Level | None, load_tokenizer: Callable[[], Any]) -> ForgetSet:
    try:
        return find_forget_set(log, forget, level, load_tokenizer)
    except NotFoundError as error:
        if not any(change.details.get("level") == Level.BATCH.value for change in redactions(log.commit.history)):
            raise
        raise NotFoundError(
            error.message,
            hint="a redaction removed whole steps, and the later ones moved up; `lmcleaner inspect --redacted` lists "
            "the samples that are gone",
        ) from error


def _check_rest(log: TrainingLog, removed: Set[bytes]) -> None:
    """Refuses a request after which every row of the run would be forgotten, by it or by those before."""
    if occurrences_in(log, frozenset(removed), range(log.num_steps)) == len(log.table("occurrences/sample")):
        raise UsageError(
            f"the request names everything that redactions have left of the run: {log.location}",
            hint="to forget the whole run, use the base model",
        )
