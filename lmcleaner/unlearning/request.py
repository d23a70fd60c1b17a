"""What requests name, as samples or whole steps of a log, and their union, which one sweep leaves out."""

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmcleaner.choices import Level
from lmcleaner.formats.canonical import json_digest
from lmcleaner.formats.errors import UsageError
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.steps import StepRecord
from lmcleaner.formats.wording import counted
from lmcleaner.unlearning.naming import named_samples, named_steps

MIXED = "mixed"  # the level of requests of both levels


@dataclass(frozen=True)
class Request:
    """One request: the occurrences in a log that it is about.

    Attributes:
        level: what happens to their steps.
        digests: digests of the named samples; where it names steps, of all samples in them.
        steps: steps that hold a named sample, or those that it names as a whole, in order.
        num_occurrences: rows of these samples in these steps.
        names_steps: whether it names steps as a whole, whose samples keep their uses in others.
        entry: SHA-256 of the ledger's entry that holds it, if it was served before; None for a new one.
    """

    level: Level
    digests: frozenset[bytes]
    steps: tuple[int, ...]
    num_occurrences: int
    names_steps: bool = False
    entry: str | None = None

    @cached_property
    def step_set(self) -> frozenset[int]:
        """The steps, to look one up."""
        return frozenset(self.steps)

    @property
    def sha256(self) -> str:
        """Digest of the request's content: level, samples and steps."""
        return json_digest(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """The request as an audit document states it."""
        return {"level": self.level.value, "samples": _hexadecimal(self.digests), "steps": list(self.steps)}


@dataclass(frozen=True)
class ForgetSet:
    """The union of requests, which a sweep leaves out: some steps are skipped, some rows of the others masked.

    Attributes:
        requests: at least one; earlier ones that the log's ledger holds come last.
        num_occurrences: rows that at least one request is about.
    """

    requests: tuple[Request, ...]
    num_occurrences: int

    @cached_property
    def skipped(self) -> frozenset[int]:
        """Steps whose optimizer step is left out."""
        return frozenset(step for r in self.requests if r.level is Level.BATCH for step in r.steps)

    @cached_property
    def masked(self) -> frozenset[bytes]:
        """Samples that contribute no gradient in any step that is taken."""
        return frozenset(digest for r in self.requests if r.level is Level.SAMPLE for digest in r.digests)

    @cached_property
    def digests(self) -> frozenset[bytes]:
        """Samples that the requests are about."""
        return frozenset(digest for r in self.requests for digest in r.digests)

    @cached_property
    def steps(self) -> tuple[int, ...]:
        """Steps that hold a forgotten row, in order."""
        return tuple(sorted({step for r in self.requests for step in r.steps}))

    @property
    def new(self) -> tuple[Request, ...]:
        """The requests of this run."""
        return tuple(request for request in self.requests if request.entry is None)

    @property
    def earlier(self) -> tuple[Request, ...]:
        """Requests that were served before, and must be again."""
        return tuple(request for request in self.requests if request.entry is not None)

    @property
    def is_repetition(self) -> bool:
        """Whether the earlier requests leave out all that the new ones do."""
        earlier = ForgetSet(self.earlier, 0)
        return self.masked == earlier.masked and self.skipped == earlier.skipped

    @property
    def level(self) -> Level | None:
        """The level of all requests; None where they have both."""
        levels = {request.level for request in self.requests}
        return levels.pop() if len(levels) == 1 else None

    @property
    def sha256(self) -> str:
        """Digest of the union's content; that of one request which names the same at the same level."""
        return json_digest(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """The union as an audit document states it."""
        level = self.level
        stated = {
            "level": MIXED if level is None else level.value,
            "samples": _hexadecimal(self.digests),
            "steps": list(self.steps),
        }
        if level is None:  # which else follow from the others
            stated |= {"masked": _hexadecimal(self.masked), "skipped": sorted(self.skipped)}
        return stated

    def count_in(self, number: int, step: StepRecord) -> int:
        """How many rows of a step at least one request is about.

        Args:
            number: of the step.
            step: the step as it is logged.

        Returns:
            The number of rows that leave it.
        """
        concerned = [request.digests for request in self.requests if number in request.step_set]
        return sum(any(sample.digest in digests for digests in concerned) for sample in step.samples)


def find_request(log: TrainingLog, forget: str, level: Level | None, load_tokenizer: Callable[[], Any]) -> Request:
    """Looks up what one request names.

    Args:
        log: the training log.
        forget: name of a file beside the recorded data, a file of rows, a file or comma-separated list of sample
            digests or their beginnings, or `steps:10,20-25`. A file wins over a digest that begins with its name.
        level: what happens to the steps; None means batch level for `steps:` and sample level otherwise.
        load_tokenizer: gives the run's tokenizer; called only for rows.

    Returns:
        The request, with at least one occurrence.

    Raises:
        NotFoundError: a row, a digest or a step that the run never saw, by name.
        UsageError: the request can't be read, or names nothing.
        MismatchError: the tokenizer is another one than the run's.
    """
    if forget.startswith("steps:"):
        steps = named_steps(log, forget)
        if (level or Level.BATCH) is Level.BATCH:
            return request_of_steps(log, steps)
        digests = {sample.digest for step in steps for sample in log.step(step).samples}
    else:
        digests = named_samples(log, forget, load_tokenizer)
    return request_of_samples(log, frozenset(digests), level or Level.SAMPLE)


def request_of_samples(log: TrainingLog, digests: frozenset[bytes], level: Level) -> Request:
    """The request for samples of a log, wherever they are used."""
    is_named = _is_one_of(log, digests)
    steps = np.unique(log.occurrence_steps[is_named])
    return Request(level, digests, tuple(int(s) for s in steps), int(is_named.sum()))


def request_of_steps(log: TrainingLog, steps: tuple[int, ...]) -> Request:
    """The request for steps of a log as a whole, in order."""
    digests = frozenset(sample.digest for step in steps for sample in log.step(step).samples)
    return Request(Level.BATCH, digests, steps, occurrences_in(log, digests, steps), names_steps=True)


def union_of(log: TrainingLog, requests: Sequence[Request], gone: Set[bytes] = frozenset()) -> ForgetSet:
    """All that some requests name.

    Args:
        log: the training log.
        requests: at least one; of those that name the same only the first counts.
        gone: samples that a redaction has left no content of.

    Returns:
        The union.

    Raises:
        UsageError: nothing of the run would be left.
    """
    distinct = {(request.sha256, request.entry is None): request for request in reversed(requests)}
    union = ForgetSet(tuple(reversed(distinct.values())), num_covered(log, requests))
    is_left = ~(_is_one_of(log, union.masked | gone) | np.isin(log.occurrence_steps, list(union.skipped)))
    if not is_left.any():
        whole = "everything that redactions have left of the run" if gone else "everything that the run was trained on"
        together = f", together with {counted(len(union.earlier), 'earlier one')}" if union.earlier else ""
        raise UsageError(
            f"the request names {whole}{together}: {log.location}: {counted(len(union.digests), 'sample')} in "
            f"{len(union.steps)} of {counted(log.num_steps, 'step')}",
            hint="to forget the whole run, use the base model; at batch level a step counts if it holds any named row",
        )
    return union


def num_covered(log: TrainingLog, requests: Sequence[Request]) -> int:
    """How many rows of a log at least one of some requests is about."""
    is_covered = np.zeros(len(log.occurrence_steps), bool)
    for request in requests:
        is_covered |= _is_one_of(log, request.digests) & np.isin(log.occurrence_steps, request.steps)
    return int(is_covered.sum())


def occurrences_in(log: TrainingLog, digests: frozenset[bytes], steps: Sequence[int]) -> int:
    """How often samples with these digests were used in these steps."""
    return int((_is_one_of(log, digests) & np.isin(log.occurrence_steps, steps)).sum())


def _is_one_of(log: TrainingLog, digests: Set[bytes]) -> NDArray[np.bool_]:
    """Which rows of the occurrence table are samples with these digests, bool `[num_occurrences]`."""
    return np.isin(log.table("occurrences/sample"), [log.sample_rows[digest] for digest in digests])


def _hexadecimal(digests: Set[bytes]) -> list[str]:
    return sorted(digest.hex() for digest in digests)
