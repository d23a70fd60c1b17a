"""Where a run enters the requests that it served: looked at before the sweep, used when the model is there."""

import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmcleaner.formats.audit_document import Document, encode_audit
from lmcleaner.formats.canonical import sha256_hex
from lmcleaner.formats.errors import ExistsError, LmcleanerError, MismatchError, ResourceError, UsageError
from lmcleaner.formats.ledger import Ledger
from lmcleaner.formats.ledger_writer import LedgerWriter, check_room, entering, writing_ledger
from lmcleaner.formats.lock import WriterLock
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.store import Store, open_store
from lmcleaner.unlearning.earlier import served
from lmcleaner.unlearning.request import ForgetSet

_PATIENCE_SECONDS = 5.0  # for another run that enters its own requests just now
_PAUSE_SECONDS = 0.1
OVERTAKEN = (
    "another request was entered in the log's ledger while this one ran, and this model still holds what that one "
    "forgets: give the request again"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """Where a run enters its requests.

    Attributes:
        location: of the log.
        log: as it was when the run began.
        ledger: as it was then; None without one.
        has_lock: whether the caller holds the log's lock.
        closed: why nothing can be entered, or None.
    """

    location: Store | Path | str
    log: TrainingLog
    ledger: Ledger | None
    has_lock: bool
    closed: str | None

    def prepare(
        self, document: Document, forget_set: ForgetSet, held: ExitStack
    ) -> tuple[Document, LmcleanerError | None]:
        """Prepares the entry of a document, which is entered when `held` is left.

        Args:
            document: the audit document.
            forget_set: what was served.
            held: is given the log's lock to hold.

        Returns:
            The document as it then is, and what has kept its requests from being entered.

        Raises:
            LmcleanerError: the caller holds the lock, and nothing could be entered all the same.
        """
        if self.ledger is None:
            return document, None
        if self.closed is not None:
            return _entered(document, False), None
        try:
            return self._prepared(_entered(document, True), forget_set, self._writer(held)), None
        except LmcleanerError as error:
            if self.has_lock:
                raise
            return _entered(document, False), error

    def _prepared(self, document: Document, forget_set: ForgetSet, writer: LedgerWriter) -> Document:
        assert self.ledger is not None
        if writer.log.root != self.log.root:
            raise MismatchError(
                f"the log was changed while the request ran: {self.log.location}: expected root {self.log.root}, found "
                f"{writer.log.root}"
            )
        if writer.ledger.head != self.ledger.head:
            result = document["result"]
            document |= {"result": result | {"verdict": "poor", "reasons": [*result["reasons"], OVERTAKEN]}}
        writer.prepare(
            requests=[served(request) for request in forget_set.new],
            forget_set=forget_set.sha256,
            audit_sha256=sha256_hex(encode_audit(document)),
            model_after=document["hashes"]["model_after"],
        )
        return document

    def _writer(self, held: ExitStack) -> LedgerWriter:
        if self.has_lock:
            return held.enter_context(entering(self.log))
        patience = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                return held.enter_context(writing_ledger(self.location))
            except ExistsError:
                if time.monotonic() > patience:
                    raise
            time.sleep(_PAUSE_SECONDS)


def open_desk(
    location: Store | Path | str, log: TrainingLog, ledger: Ledger | None, forget_set: ForgetSet, *, has_lock: bool
) -> Desk:
    """Looks, before anything is computed, whether the requests can be entered in the end.

    Args:
        location: of the log.
        log: the log.
        ledger: its ledger; None without one.
        forget_set: what is to be served.
        has_lock: whether the caller holds the log's lock.

    Returns:
        The desk; a closed one where the log can't be written.

    Raises:
        ExistsError: somebody writes the log.
        UsageError: the requests are too large for the ledger.
    """
    closed = None
    if ledger is not None and not has_lock:
        closed = _reason_against(location)
    if ledger is not None and closed is None:
        check_room(log, ledger, [served(request) for request in forget_set.new])
    return Desk(location=location, log=log, ledger=ledger, has_lock=has_lock, closed=closed)


def not_entered(failure: LmcleanerError, output: Path, location: str) -> LmcleanerError:
    """The error of a run whose model is in its place and whose requests are not in the ledger.

    Args:
        failure: what kept them from it.
        output: the model's folder.
        location: of the log.

    Returns:
        An error of the same class; the caller raises it.
    """
    return type(failure)(
        f"the model is written, but its request is NOT in the log's ledger, so that the next one would bring the data "
        f"back: {output}: {location}: {failure.message}",
        hint="give the same request again, with another --output, once the log can be written",
    )


def _entered(document: Document, value: bool) -> dict[str, Any]:
    return document | {"config": document["config"] | {"entered": value}}


def _reason_against(location: Store | Path | str) -> str | None:
    """Why a log can't be written, or None."""
    try:
        WriterLock.acquire(open_store(location, writable=True)).release()
    except (UsageError, ResourceError) as error:
        return error.message
    return None
