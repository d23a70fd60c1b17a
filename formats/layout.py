"""Where everything lies in a log: the tree, and each table's dtype, row shape and unit.

LOG/                       group; its attributes are the manifest
  commit/                  group; its attributes are the commit record, written after all that it counts
  lock.json                names the writer, while there is one
  ledger/00000000/         group; its attributes are an entry of the request ledger, which no commit record counts
  ledger/prepared/         group; the entry that is about to be written, while it is
  generation-0/            group; the commit record says which generation is the log's
    samples/ occurrences/ microbatches/ steps/ rng/     tables: arrays that grow along axis 0
    updates, gradients     arrays `[step, parameter]`; lossy ones with `_scales` beside them
    corrections/00000100   with lossy updates: takes the reconstruction before step 100 to the run's own bits
    curvature/00000100/    group; an estimate of the curvature from step 100 on, if it was recorded
    checkpoints/00000000/  group; `parameters` and one array for each part of the optimizer's state
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lmcleaner.formats.arrays import ArrayLayout, Compression
from lmcleaner.formats.codecs import SPAN, Column
from lmcleaner.formats.errors import DamagedError

SCHEMA = "lmcleaner-log"
VERSION = 1
METADATA = "zarr.json"
COMMIT = "commit"
LOCK = "lock.json"
LEDGER = "ledger"
PREPARED = f"{LEDGER}/prepared"
UPDATES = "updates"
GRADIENTS = "gradients"
CORRECTIONS = "corrections"
CURVATURE = "curvature"
CHECKPOINTS = "checkpoints"
GROUPS = ("samples", "occurrences", "microbatches", "rng", "steps", CORRECTIONS, CHECKPOINTS)

# A shard holds up to 16 steps of a small model, so that its files stay few, and 32 MiB of a large one before
# compression, so that a writer never has more than that to keep together.
SHARD_STEPS = 16
SHARD_STACK_ELEMENTS = 1 << 22
SHARD_BYTES = 1 << 25

VECTOR_COMPRESSION = Compression(cname="zstd", clevel=3, shuffle="bitshuffle")
TABLE_COMPRESSION = Compression(cname="zstd", clevel=5, shuffle="shuffle")

Width = Literal["", "groups", "rng_bytes"]
_OF_LEDGER = re.compile(rf"{LEDGER}/((\d{{8}}|prepared)/)?{re.escape(METADATA)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One array that grows along axis 0 and is covered by the commit record.

    Attributes:
        name: path in the generation.
        dtype: numpy dtype of an element, little-endian on disk.
        columns: fixed row shape; () for one number a row.
        width: name of a manifest-dependent column count, or "".
        chunk_rows: rows in one chunk.
        meaning: what a row says, with its unit.
    """

    name: str
    dtype: np.dtype[np.generic]
    columns: tuple[int, ...] = ()
    width: Width = ""
    chunk_rows: int = 1 << 12
    meaning: str

    def layout(self, widths: Mapping[Width, tuple[int, ...]]) -> ArrayLayout:
        """How its array is stored.

        Args:
            widths: row shape for each manifest-dependent column count.

        Returns:
            A layout of unsharded chunks.
        """
        columns = self.columns or widths[self.width]
        return ArrayLayout(
            dtype=self.dtype,
            row=columns,
            chunk=(self.chunk_rows, *columns),
            compression=TABLE_COMPRESSION,
            attributes={"meaning": self.meaning},
        )


def _table(name: str, dtype: type[np.generic], meaning: str, **shape: Any) -> Table:
    return Table(name=name, dtype=np.dtype(dtype), meaning=meaning, **shape)


TABLES: tuple[Table, ...] = (
    _table("samples/stop", np.int64, "end of the sample in samples/tokens; it starts where the one before ends"),
    _table("samples/digest", np.uint8, "SHA-256 of the sample as the run saw it", columns=(32,)),
    _table("samples/redacted", np.uint8, "1 where the content was overwritten on request"),
    _table("samples/tokens", np.int32, "token id", chunk_rows=1 << 16),
    _table("samples/labels", np.int32, "label; -100 where the loss doesn't look", chunk_rows=1 << 16),
    _table("occurrences/sample", np.int32, "row of the sample table", chunk_rows=1 << 14),
    _table(
        "occurrences/start",
        np.int32,
        "number of padding tokens before the sample in its row of the microbatch",
        chunk_rows=1 << 14,
    ),
    _table("microbatches/stop", np.int64, "end of the microbatch's rows in occurrences/"),
    _table("microbatches/width", np.int32, "tokens in a padded row"),
    _table("microbatches/has_mask", np.uint8, "1 where the model was given an attention mask"),
    _table("microbatches/denominator", np.float64, "what the microbatch's summed loss was divided by, tokens"),
    _table("microbatches/loss", np.float64, "loss that the model returned, nats"),
    _table(
        "microbatches/rng_row", np.int32, "row of rng/states from which the forward pass drew; -1 where it drew none"
    ),
    _table(
        "rng/states",
        np.uint8,
        "state of the random number generators before a forward pass",
        width="rng_bytes",
        chunk_rows=64,
    ),
    _table("steps/stop", np.int64, "end of the step's microbatches in microbatches/"),
    _table("steps/lr", np.float64, "learning rate that the step used, for each parameter group", width="groups"),
    _table("steps/loss", np.float64, "sum of the step's microbatch losses, divided as the run did, nats"),
    _table("steps/gradient_norm", np.float64, "L2 norm of the gradient that the optimizer was given, after clipping"),
    _table("steps/seconds", np.float64, "wall time since the step before ended, or since recording began"),
    _table("steps/parameters_blake3", np.uint8, "BLAKE3 of the parameters after the step", columns=(32,)),
    _table(
        "steps/reconstruction_blake3",
        np.uint8,
        "BLAKE3 of what the updates make of the parameters after the step, before a correction; no rows if lossless",
        columns=(32,),
    ),
    _table(
        "steps/gradient_blake3",
        np.uint8,
        "BLAKE3 of what a reader reconstructs of the step's gradient; no rows without gradients",
        columns=(32,),
    ),
)

# A log has these only where they have rows: the commit record doesn't name them otherwise.
OPTIONAL_TABLES: tuple[Table, ...] = (
    _table(
        "steps/unclipped_norm", np.float64, "L2 norm of the gradient before clipping, in a run that clips it and a log "
        "that holds it",
    ),
    _table("steps/loss_scale", np.float64, "what a gradient scaler multiplied the losses by, in a run that has one"),
    _table("microbatches/rank", np.int32, "process that the microbatch ran in, in a run of several"),
    _table("microbatches/packed", np.uint8, "1 where a row is several samples, in a run with such rows"),
)  # fmt: skip


def num_spans(num_elements: int) -> int:
    """Into how many spans a parameter vector is cut; every array of it has one chunk for each."""
    return math.ceil(num_elements / SPAN)


def stack_layout(column: Column, num_elements: int, attributes: Mapping[str, Any]) -> ArrayLayout:
    """How an array `[step, parameter]` is stored.

    Args:
        column: the codec's array.
        num_elements: length of a parameter vector.
        attributes: what the array says of itself.

    Returns:
        A layout of shards, each of some steps or of a part of one.
    """
    steps = max(1, min(SHARD_STEPS, SHARD_STACK_ELEMENTS // num_elements))
    length = math.ceil(num_elements / column.elements)
    chunk = math.ceil(min(num_elements, SPAN) / column.elements)
    chunks = min(num_spans(num_elements), SHARD_BYTES // (chunk * column.dtype.itemsize))
    return ArrayLayout(
        dtype=column.dtype,
        row=(length,),
        chunk=(1, chunk),
        shard=(steps, chunks * chunk),
        compression=column.compression,
        attributes=attributes,
    )


def vector_layout(
    dtype: np.dtype[Any],
    length: int,
    *,
    compression: Compression = VECTOR_COMPRESSION,
    attributes: Mapping[str, Any] | None = None,
) -> ArrayLayout:
    """How one vector is stored.

    Args:
        dtype: of an element.
        length: number of elements.
        compression: settings of Blosc.
        attributes: what the array says of itself.

    Returns:
        A layout of shards.
    """
    chunk = max(1, min(length, SPAN))
    chunks = max(1, min(num_spans(length), SHARD_BYTES // (chunk * dtype.itemsize)))
    return ArrayLayout(
        dtype=dtype,
        row=(),
        chunk=(chunk,),
        shard=(chunks * chunk,),
        compression=compression,
        attributes=attributes or {},
    )


def generation_name(generation: int) -> str:
    """Path of a generation in the log."""
    return f"generation-{generation}"


def checkpoint_name(step: int) -> str:
    """Path in the generation of the checkpoint that holds the state before step `step`."""
    return f"{CHECKPOINTS}/{step:08d}"


def curvature_name(step: int) -> str:
    """Path in the generation of the estimate of the curvature from step `step` on."""
    return f"{CURVATURE}/{step:08d}"


def correction_name(step: int) -> str:
    """Path in the generation of the correction of the reconstruction before step `step`."""
    return f"{CORRECTIONS}/{step:08d}"


def entry_name(number: int) -> str:
    """Path in the log of an entry of the request ledger."""
    return f"{LEDGER}/{number:08d}"


def is_uncounted(key: str) -> bool:
    """Whether an object belongs to a log although no commit record counts it: the lock, and the request ledger."""
    return key == LOCK or _OF_LEDGER.fullmatch(key) is not None


def damaged(log: str, array: str, problem: str, *, step: int | None = None) -> DamagedError:
    """The error for a part of a log that can't be trusted.

    Args:
        log: where the log lies.
        array: path of the array in the log.
        problem: what was expected and found.
        step: the step that the part belongs to, if it belongs to one.

    Returns:
        An error that names the place; the caller raises it.
    """
    where = f"{array}, step {step}" if step is not None else array
    error = DamagedError(
        f"the log is damaged: {log}: {where}: {problem}",
        hint="`lmcleaner inspect --verify` lists everything that is damaged; restore the log from a copy",
    )
    error.problem = problem
    return error
