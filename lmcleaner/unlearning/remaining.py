"""What requests name and a log still holds, together with what was served before."""

from collections.abc import Callable, Sequence, Set
from typing import Any

from lmcleaner.audit.history import redacted_samples, redactions, tombstones
from lmcleaner.choices import Level
from lmcleaner.formats.errors import NotFoundError
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.wording import counted
from lmcleaner.progress import Progress
from lmcleaner.unlearning.request import ForgetSet, Request, find_request, request_of_samples, union_of


def find_remaining(
    log: TrainingLog,
    requests: Sequence[str],
    level: Level | None,
    earlier: Sequence[Request],
    load_tokenizer: Callable[[], Any],
    progress: Progress,
) -> ForgetSet:
    """Looks up what requests name, without the samples that are redacted already.

    Args:
        log: the training log.
        requests: the new ones; see `find_request`.
        level: what happens to the steps; see `find_request`.
        earlier: requests that were served before and must be again.
        load_tokenizer: gives the run's tokenizer; called only for rows.
        progress: is told of the samples that are gone already.

    Returns:
        The union; each new request has at least one occurrence of a sample that has content.

    Raises:
        NotFoundError: something that the run never saw, or a request for nothing but samples that are redacted already.
        UsageError: a request can't be read or names nothing, or they leave nothing of the run.
        MismatchError: the tokenizer is another one than the run's.
    """
    gone = tombstones(log)
    found = [_without(log, _named(log, forget, level, load_tokenizer), gone, progress) for forget in requests]
    return union_of(log, [*found, *earlier], gone)


def _without(log: TrainingLog, named: Request, gone: Set[bytes], progress: Progress) -> Request:
    """What is left of a request; steps that are named as a whole stay as they are, whatever they hold."""
    redacted = named.digests & gone
    if named.names_steps or not redacted:
        return named
    left = named.digests - gone
    when = ", ".join(sorted({redacted_samples(log)[digest].time for digest in redacted}))
    number = counted(len(named.digests), "sample")
    if not left:
        raise NotFoundError(
            f"already redacted on {when}: {log.location}: {number}, all of the request",
            hint="the log is that of the run without them; `lmcleaner inspect --redacted` lists them",
        )
    progress.say(f"already redacted on {when}: {len(redacted)} of {number}")
    return request_of_samples(log, left, named.level)


def _named(log: TrainingLog, forget: str, level: Level | None, load_tokenizer: Callable[[], Any]) -> Request:
    try:
        return find_request(log, forget, level, load_tokenizer)
    except NotFoundError as error:
        if all(change.details.get("level") == Level.SAMPLE.value for change in redactions(log.commit.history)):
            raise
        raise NotFoundError(
            error.message,
            hint="a redaction removed whole steps, and the later ones moved up; `lmcleaner inspect --redacted` lists "
            "the samples that are gone",
        ) from error
