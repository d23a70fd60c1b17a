"""How much disk a log will take, told before the run starts."""

import math
import shutil
from dataclasses import dataclass
from pathlib import Path

from lmcleaner.formats.errors import ResourceError

# Measured with AdamW on Llamas of 0.26 to 4 million parameters: 2.25 to 2.45 bytes; see docs/benchmarks.md.
_LOSSLESS_BYTES_PER_ITEM_BYTE = 2.45 / 4
_CHECKPOINT_BYTES_PER_ITEM_BYTE = 0.92
_BOOKKEEPING_BYTES_PER_ROW = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageEstimate:
    """Expected bytes of a log.

    Attributes:
        updates: of θ after every step.
        checkpoints: of the full states.
        bookkeeping: of rows, learning rates, losses.
    """

    updates: int
    checkpoints: int
    bookkeeping: int

    @property
    def total(self) -> int:
        """All parts together."""
        return self.updates + self.checkpoints + self.bookkeeping


def estimate_storage(
    *,
    num_elements: int,
    item_bytes: int,
    state_vectors: int,
    num_steps: int,
    rows_per_step: int,
    checkpoint_every: int,
    has_updates: bool,
) -> StorageEstimate:
    """Expects what a log will take.

    Args:
        num_elements: trainable scalars.
        item_bytes: bytes of one.
        state_vectors: vectors of parameter size in the optimizer's state.
        num_steps: steps of the run.
        rows_per_step: rows of a step.
        checkpoint_every: steps between checkpoints.
        has_updates: whether θ after every step is stored.

    Returns:
        The estimate, in bytes; rather too high, since updates shrink with the learning rate.
    """
    num_checkpoints = 1 + math.ceil(num_steps / checkpoint_every)
    vector = num_elements * item_bytes
    states = vector * (num_checkpoints + state_vectors * (num_checkpoints - 1))
    return StorageEstimate(
        updates=int(num_steps * vector * _LOSSLESS_BYTES_PER_ITEM_BYTE) if has_updates else 0,
        checkpoints=int(states * _CHECKPOINT_BYTES_PER_ITEM_BYTE),
        bookkeeping=num_steps * rows_per_step * _BOOKKEEPING_BYTES_PER_ROW,
    )


def check_room(place: Path, needed_bytes: int) -> None:
    """Makes sure that the disk has room before hours of training go into it.

    Args:
        place: folder that will be made.
        needed_bytes: expected size.

    Raises:
        ResourceError: less is free than needed.
    """
    existing = next(parent for parent in place.absolute().parents if parent.is_dir())
    free = shutil.disk_usage(existing).free
    if needed_bytes > free:
        raise ResourceError(
            f"not enough room for the log: {existing}: expected {needed_bytes:,} bytes, found {free:,} free",
            hint="raise --checkpoint-every, or give --updates none",
        )
