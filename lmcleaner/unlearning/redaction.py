"""`--redact`: writes a log anew, as that of the run that never used what a request names.

The whole run is replayed from step 0. Up to the first occurrence that must give the logged bits, or nothing is changed;
from there on it gives the counterfactual's. A forgotten sample becomes a tombstone: padding without labels, of the same
length, so that the log replays without knowing what was forgotten. A skipped step leaves the log, and later steps move
up.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from torch import Tensor

from lmcleaner.audit.history import redactions
from lmcleaner.choices import Level
from lmcleaner.formats.canonical import array_digest
from lmcleaner.formats.commit import Change
from lmcleaner.formats.errors import InsufficientLogError, MismatchError, UsageError
from lmcleaner.formats.generations import NextGeneration, clean, next_generation, open_to_rewrite
from lmcleaner.formats.ledger import Ledger
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.store import Store, open_store
from lmcleaner.progress import Progress
from lmcleaner.training.numerics import replay_device, unrestorable
from lmcleaner.training.vectors import digest_of
from lmcleaner.unlearning.counterfactual import Counterfactual
from lmcleaner.unlearning.options import UnlearnOptions
from lmcleaner.unlearning.rewriting import NOTHING_CHANGED, Rewriting


@contextmanager
def open_to_redact(location: Store | Path | str, options: UnlearnOptions, progress: Progress) -> Iterator[TrainingLog]:
    """Opens a log with its lock, and removes what an interrupted redaction may have left.

    Args:
        location: where the log lies.
        options: what is to be redacted; a dry run only looks whether it can be.
        progress: is told of what was removed.

    Yields:
        The log.

    Raises:
        NotFoundError: no log lies there.
        UsageError: the place can't be written, or the log was redacted with another denominator.
        ExistsError: somebody writes the log.
        InsufficientLogError: the run was interrupted.
        MismatchError: this machine, or any, can't replay the run bit for bit.
    """
    log = TrainingLog(open_store(location, writable=True))
    _check_redactable(log, options)
    if options.dry_run:
        yield log
        return
    with open_to_rewrite(location) as log:
        if clean(log):
            progress.say("removed what an interrupted change of the log had left")
        yield log


def _check_redactable(log: TrainingLog, options: UnlearnOptions) -> None:
    if not log.commit.finished:
        raise InsufficientLogError(
            f"the run was interrupted, and a log that is redacted can't go on: {log.location}: "
            f"found {log.num_steps} of {log.manifest.planned_steps or 'an unknown number of'} steps",
            hint="finish the run with `lmcleaner record --resume`, or unlearn without --redact",
        )
    differences = unrestorable(log.manifest, replay_device(log.manifest, options.device))
    if differences:
        raise MismatchError(
            f"the log can't be redacted here, since a replay may differ in the last bits: {log.location}: "
            f"{'; '.join(differences)}",
            hint="redact it on the kind of machine and with the libraries that the run had",
        )
    found = log.commit.self_check
    if found is not None and found.state == "close":
        raise MismatchError(
            f"the log can't be redacted, since replays of this run come close only: {log.location}: {found.why}",
            hint="unlearn without --redact; the log's ledger lets later requests know of this one",
        )
    denominator = options.denominator.value
    for change in redactions(log.commit.history):
        before = change.details.get("denominator", denominator)
        if change.details.get("level") != Level.BATCH.value and before != denominator:
            raise UsageError(
                f"{log.location} was redacted with --denominator {before} before, found {denominator}",
                hint=f"give --denominator {before}: a run that divides by both is no run at all",
            )


class Redaction:
    """A log that is written anew beside itself, and not yet changed."""

    def __init__(self, wanted: Counterfactual, generation: NextGeneration) -> None:
        """Not for callers: see `redaction`."""
        self._wanted, self._generation = wanted, generation

    def commit(self, audit_sha256: str, ledger: Ledger) -> None:
        """Makes the log what was written. The trajectory and the rows until then are deleted afterwards.

        Args:
            audit_sha256: SHA-256 of the audit document's file, hexadecimal.
            ledger: the log's, whose requests are served for good by it.
        """
        self._generation.switch(_change(self._wanted, audit_sha256, ledger))


@contextmanager
def redaction(wanted: Counterfactual, final: Sequence[Tensor], progress: Progress) -> Iterator[Redaction]:
    """Writes the log of the counterfactual run beside the log, which becomes it with `Redaction.commit`.

    Args:
        wanted: the counterfactual run; its log's lock is the caller's.
        final: the parameters that the run must end with.
        progress: is told of every step.

    Yields:
        The redaction; leaving the block without a commit leaves the log as it was.

    Raises:
        MismatchError: the replay doesn't give the logged bits, or not the given parameters in the end.
    """
    with next_generation(wanted.log) as generation:
        progress.begin("rewriting the log", wanted.log.num_steps)
        found = Rewriting(wanted, generation).run(progress)
        if array_digest(found) != digest_of(final):
            raise MismatchError(
                f"the log can't be redacted: {wanted.log.location}: replaying from step 0 gives other parameters than "
                f"from the checkpoint before step {wanted.forget_set.steps[0]}",
                hint=NOTHING_CHANGED,
            )
        yield Redaction(wanted, generation)


def _change(wanted: Counterfactual, audit_sha256: str, ledger: Ledger) -> Change:
    """The entry of the log's history."""
    named = wanted.forget_set
    details = {
        **named.to_json(),
        "denominator": wanted.denominator.value,
        "occurrences": named.num_occurrences,
        "first_step": named.steps[0],
        "num_steps": wanted.log.num_steps,
        "audit_sha256": audit_sha256,
        "ledger_entries": len(ledger.entries),
    }
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Change(kind="redaction", time=now, root_before=wanted.log.root, details=details)
