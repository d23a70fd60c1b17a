"""How large a run's microbatches are, from the log's tables alone.

Axes: microbatch = microbatches of the whole run, one step's after the other.
"""

from collections.abc import Callable, Collection

import numpy as np
from numpy.typing import NDArray

from lmcleaner.formats.reader import TrainingLog

Sizes = NDArray[np.int64]


def padded_tokens(log: TrainingLog) -> Sizes:
    """Tokens of each step with their padding, `[num_steps]`."""
    rows, widths = _rows_and_widths(log)
    running = np.concatenate([[0], np.cumsum(rows * widths)])
    tokens: Sizes = np.diff(running[log.table("steps/stop")], prepend=0)
    return tokens


def largest_steps(log: TrainingLog, numbers: Collection[int], num_parts: Callable[[Sizes], Sizes]) -> list[int]:
    """The steps whose passes take the most memory: those with the most tokens, or pairs of tokens, at once.

    Args:
        log: the training log.
        numbers: steps to choose from.
        num_parts: tokens of microbatches -> into how many parts of their rows they go; one that draws random numbers
            isn't cut.

    Returns:
        One step, or two where attention's pairs of tokens may outweigh the tokens; none of none.
    """
    if not numbers:
        return []
    rows, widths = _rows_and_widths(log)
    parts = np.where(log.table("microbatches/rng_row") >= 0, 1, num_parts(rows * widths))
    tokens = -(-rows // parts) * widths
    starts = np.concatenate([[0], log.table("steps/stop")[:-1]])
    chosen = np.asarray(sorted(numbers))
    most = (np.maximum.reduceat(sizes, starts)[chosen] for sizes in (tokens, tokens * widths))
    return [int(chosen[place]) for place in dict.fromkeys(int(sizes.argmax()) for sizes in most)]


def _rows_and_widths(log: TrainingLog) -> tuple[Sizes, Sizes]:
    """Rows of each microbatch and their padded tokens, both `[microbatch]`."""
    stops, packed = log.table("microbatches/stop"), log.table("microbatches/packed").astype(bool)
    rows = np.diff(stops, prepend=0).astype(np.int64)
    if len(packed):  # a sample that nothing stands before begins a row
        begun = np.concatenate([[0], np.cumsum(log.table("occurrences/start") == 0)])[stops]
        rows = np.where(packed, np.diff(begun, prepend=0), rows)
    return rows, log.table("microbatches/width").astype(np.int64)
