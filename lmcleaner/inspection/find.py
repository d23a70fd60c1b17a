"""Finds samples by their text, and where the run used them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmcleaner.formats.errors import UsageError
from lmcleaner.formats.reader import TrainingLog


@dataclass(frozen=True, slots=True, kw_only=True)
class Occurrence:
    """One use of a sample.

    Attributes:
        step: optimizer step.
        microbatch: index within the step.
        row: index within the microbatch.
    """

    step: int
    microbatch: int
    row: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """A sample whose text holds what was looked for.

    Attributes:
        digest: its name, 64 hexadecimal digits.
        text: its decoded tokens, without special ones.
        occurrences: where the run used it, in order.
    """

    digest: str
    text: str
    occurrences: tuple[Occurrence, ...]


def find_text(log: TrainingLog, text: str, tokenizer: Any) -> list[Match]:
    """Samples whose decoded tokens hold a text, whatever its case.

    Args:
        log: the training log.
        text: what to look for.
        tokenizer: the run's tokenizer.

    Returns:
        Matches in the order of their first use.

    Raises:
        UsageError: there is nothing to look for.
    """
    if not text.strip():
        raise UsageError(f"--find: expected a text, found {text!r}")
    wanted = text.casefold()
    decoded = (
        (row, tokenizer.decode(log.sample(row).tokens.tolist(), skip_special_tokens=True).strip())
        for row in range(len(log.table("samples/stop")))
    )
    return [
        Match(digest=log.table("samples/digest")[row].tobytes().hex(), text=found, occurrences=tuple(_uses(log, row)))
        for row, found in decoded
        if wanted in found.casefold()
    ]


def _uses(log: TrainingLog, sample_row: int) -> Iterator[Occurrence]:
    rows_stop, steps_stop = log.table("microbatches/stop"), log.table("steps/stop")
    for occurrence in np.flatnonzero(log.table("occurrences/sample") == sample_row):
        microbatch = int(np.searchsorted(rows_stop, occurrence, side="right"))
        step = int(np.searchsorted(steps_stop, microbatch, side="right"))
        first_row = int(rows_stop[microbatch - 1]) if microbatch else 0
        first_microbatch = int(steps_stop[step - 1]) if step else 0
        yield Occurrence(step=step, microbatch=microbatch - first_microbatch, row=int(occurrence) - first_row)
