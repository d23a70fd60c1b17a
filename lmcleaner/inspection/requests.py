"""Which requests a log has served, as its ledger holds them."""

from dataclasses import dataclass
from typing import Any

from lmcleaner.formats.ledger import Ledger, LedgerEntry, read_ledger
from lmcleaner.formats.reader import TrainingLog

PENDING = "pending"
PREPARED = "prepared"
SETTLED = "settled"


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedEntry:
    """An entry of the ledger, and what becomes of its requests.

    Attributes:
        entry: the entry.
        state: "settled", where a redaction has served it for good; "pending", where every later run serves it again;
            "prepared", where besides nobody knows whether its output was made, since its run was killed.
    """

    entry: LedgerEntry
    state: str

    def to_json(self) -> dict[str, Any]:
        """The entry as it is stored, its state, and the hash of each request."""
        stored = self.entry.to_json()
        hashes = [request.forget_set for request in self.entry.requests]
        requests = [part | {"forget_set": own} for part, own in zip(stored["requests"], hashes, strict=True)]
        return stored | {"requests": requests, "state": self.state}


def list_requests(log: TrainingLog) -> tuple[ListedEntry, ...]:
    """Lists the entries of a log's ledger; changes nothing.

    Args:
        log: the opened log.

    Returns:
        All entries, in order.

    Raises:
        DamagedError: the ledger is damaged.
    """
    ledger = read_ledger(log)
    return tuple(ListedEntry(entry=entry, state=_state(entry, ledger)) for entry in ledger.entries)


def _state(entry: LedgerEntry, ledger: Ledger) -> str:
    if entry.number < ledger.num_settled:
        return SETTLED
    return PREPARED if ledger.has_prepared and entry is ledger.entries[-1] else PENDING
