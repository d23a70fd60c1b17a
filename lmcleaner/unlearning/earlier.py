"""Between requests and the entries of a log's ledger: which were served before, and must be again."""

from dataclasses import replace

from lmcleaner.choices import Level
from lmcleaner.formats.layout import damaged, entry_name
from lmcleaner.formats.ledger import Ledger, LedgerEntry, ServedRequest
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.unlearning.request import Request, request_of_samples, request_of_steps


def earlier_requests(log: TrainingLog, ledger: Ledger) -> tuple[Request, ...]:
    """The requests that were served before and that no redaction has served for good.

    Args:
        log: the training log.
        ledger: its ledger.

    Returns:
        In order, as the log has them now: a run that went on since may use their samples in further steps.

    Raises:
        DamagedError: an entry names what the log doesn't hold.
    """
    return tuple(_request(log, entry, served) for entry in ledger.pending for served in entry.requests)


def served(request: Request) -> ServedRequest:
    """A request as an entry of the ledger names it."""
    stated = request.to_json()
    return ServedRequest(
        level=stated["level"],
        named="steps" if request.names_steps else "samples",
        samples=tuple(stated["samples"]),
        steps=tuple(stated["steps"]),
    )


def _request(log: TrainingLog, entry: LedgerEntry, served: ServedRequest) -> Request:
    digests = frozenset(bytes.fromhex(digest) for digest in served.samples)
    if not digests <= log.sample_rows.keys() or max(served.steps) >= log.num_steps:
        raise damaged(log.location, entry_name(entry.number), "it names samples or steps that the log doesn't hold")
    if served.named == "steps":
        found = request_of_steps(log, tuple(sorted(set(served.steps))))
    else:
        found = request_of_samples(log, digests, Level(served.level))
    return replace(found, entry=entry.sha256)
