"""How much disk a log will take, told before the run starts."""

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lmcleaner.choices import Codec
from lmcleaner.formats.errors import ResourceError

# Measured with AdamW on Llamas of 0.26 to 25 million parameters; see docs/benchmarks.md. Bytes of an element, given the
# bytes of an item of its dtype.
_CODED_BYTES: dict[Codec, Callable[[int], float]] = {
    Codec.LOSSLESS: lambda item: 2.5 / 4 * item,
    Codec.INT8: lambda item: 1.05,
    Codec.INT4: lambda item: 0.55,
    Codec.NONE: lambda item: 0.0,
}
_GRADIENT_BYTES_PER_ITEM_BYTE = 0.95  # lossless: a gradient has no neighbour to be close to
_CHECKPOINT_BYTES_PER_ITEM_BYTE = 0.92
_BOOKKEEPING_BYTES_PER_ROW = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageEstimate:
    """Expected bytes of a log.

    Attributes:
        steps: of θ after every step, and of the gradients.
        checkpoints: of the full states.
        bookkeeping: of rows, learning rates, losses.
        curvature: of the estimates.
    """

    steps: int
    checkpoints: int
    bookkeeping: int
    curvature: int = 0

    @property
    def total(self) -> int:
        """All parts together."""
        return self.steps + self.checkpoints + self.bookkeeping + self.curvature


def estimate_storage(
    *,
    num_elements: int,
    item_bytes: int,
    state_vectors: float,
    num_steps: int,
    rows_per_step: int,
    checkpoint_every: int,
    updates: Codec,
    gradients: Codec,
    curvature_vectors: int = 0,
) -> StorageEstimate:
    """Expects what a log will take.

    Args:
        num_elements: trainable scalars.
        item_bytes: bytes of one.
        state_vectors: vectors of parameter size in the optimizer's state.
        num_steps: steps of the run.
        rows_per_step: rows of a step.
        checkpoint_every: steps between checkpoints.
        updates: how θ after every step is stored.
        gradients: how the gradients are stored.
        curvature_vectors: vectors of parameter size in an estimate of the curvature.

    Returns:
        The estimate, in bytes; rather too high, since updates shrink with the learning rate.
    """
    num_checkpoints = 1 + math.ceil(num_steps / checkpoint_every)
    vector = num_elements * item_bytes
    per_element = _CODED_BYTES[updates](item_bytes) + _gradient_bytes(gradients, item_bytes)
    states = vector * (num_checkpoints + state_vectors * (num_checkpoints - 1))
    return StorageEstimate(
        steps=int(num_steps * num_elements * per_element),
        checkpoints=int(states * _CHECKPOINT_BYTES_PER_ITEM_BYTE),
        bookkeeping=num_steps * rows_per_step * _BOOKKEEPING_BYTES_PER_ROW,
        curvature=int((num_checkpoints - 1) * curvature_vectors * num_elements * max(4, item_bytes)),
    )


def _gradient_bytes(codec: Codec, item_bytes: int) -> float:
    """Bytes of a stored gradient's element."""
    is_lossless = codec is Codec.LOSSLESS
    return _GRADIENT_BYTES_PER_ITEM_BYTE * item_bytes if is_lossless else _CODED_BYTES[codec](item_bytes)


def check_room(place: Path | str, needed_bytes: int) -> None:
    """Makes sure that the disk has room before hours of training go into it.

    Args:
        place: folder that will be made, or a URL, whose room nobody knows.
        needed_bytes: expected size.

    Raises:
        ResourceError: less is free than needed.
    """
    if "://" in str(place):
        return
    existing = next(parent for parent in Path(place).absolute().parents if parent.is_dir())
    free = shutil.disk_usage(existing).free
    if needed_bytes > free:
        raise ResourceError(
            f"not enough room for the log: {existing}: expected {needed_bytes:,} bytes, found {free:,} free",
            hint="raise --checkpoint-every, or give --updates int8, int4 or none",
        )
