"""Where everything lies in a log: the tree, and each table's dtype, row shape and unit.

LOG/                     group; its attributes are the manifest
  commit/                group; its attributes are the commit record, written after all that it counts
  samples/ occurrences/ microbatches/ steps/ rng/     tables: arrays that grow along axis 0
  updates                bits `[step, parameter]`, one chunk row a step; absent with `--updates none`
  checkpoints/00000000/  group; `parameters` and one array for each part of the optimizer's state
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from lmcleaner.formats.errors import DamagedError

SCHEMA = "lmcleaner-log"
VERSION = 1
COMMIT = "commit"
UPDATES = "updates"
CHECKPOINTS = "checkpoints"
ATTRIBUTES = "zarr.json"  # in a checkpoint's digests: its attributes; no array can have that name

VECTOR_CHUNK = 1 << 22  # elements of a parameter vector in one chunk; 16 MiB of float32 before compression
TABLE_CHUNK = 1 << 12  # rows of a table in one chunk

Width = Literal["", "groups", "rng_bytes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One array that grows along axis 0 and is covered by the commit record.

    Attributes:
        name: path in the group.
        dtype: numpy dtype of an element, little-endian on disk.
        columns: fixed row shape; () for one number a row.
        width: name of a manifest-dependent column count, or "".
        meaning: what a row says, with its unit.
    """

    name: str
    dtype: np.dtype[np.generic]
    columns: tuple[int, ...] = ()
    width: Width = ""
    meaning: str


def _table(name: str, dtype: type[np.generic], meaning: str, columns: tuple[int, ...] = (), width: Width = "") -> Table:
    return Table(name=name, dtype=np.dtype(dtype), meaning=meaning, columns=columns, width=width)


TABLES: tuple[Table, ...] = (
    _table("samples/stop", np.int64, "end of the sample in samples/tokens; it starts where the one before ends"),
    _table("samples/digest", np.uint8, "SHA-256 of the sample", columns=(32,)),
    _table("samples/tokens", np.int32, "token id"),
    _table("samples/labels", np.int32, "label; -100 where the loss doesn't look"),
    _table("occurrences/sample", np.int32, "row of the sample table"),
    _table("occurrences/start", np.int32, "number of padding tokens before the sample in its row of the microbatch"),
    _table("microbatches/stop", np.int64, "end of the microbatch's rows in occurrences/"),
    _table("microbatches/width", np.int32, "tokens in a padded row"),
    _table("microbatches/has_mask", np.uint8, "1 where the model was given an attention mask"),
    _table("microbatches/denominator", np.float64, "what the microbatch's summed loss was divided by, tokens"),
    _table("microbatches/loss", np.float64, "loss that the model returned, nats"),
    _table(
        "microbatches/rng_row", np.int32, "row of rng/states from which the forward pass drew; -1 where it drew none"
    ),
    _table("rng/states", np.uint8, "state of the random number generators before a forward pass", width="rng_bytes"),
    _table("steps/stop", np.int64, "end of the step's microbatches in microbatches/"),
    _table("steps/lr", np.float64, "learning rate that the step used, for each parameter group", width="groups"),
    _table("steps/loss", np.float64, "sum of the step's microbatch losses, divided as the run did, nats"),
    _table("steps/gradient_norm", np.float64, "L2 norm of the gradient that the optimizer was given, after clipping"),
    _table("steps/seconds", np.float64, "wall time since the step before ended, or since recording began"),
    _table("steps/parameters_sha256", np.uint8, "SHA-256 of the parameters after the step", columns=(32,)),
)


def vector_codecs(itemsize: int) -> tuple[BloscCodec, Crc32cCodec]:
    """Compressors of parameter vectors: bitshuffle, zstd, then a checksum of the bytes on disk.

    Args:
        itemsize: bytes of an element.

    Returns:
        Zarr v3 codecs in the order of encoding.
    """
    return BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle", typesize=itemsize), Crc32cCodec()


def table_codecs() -> tuple[ZstdCodec, Crc32cCodec]:
    """Compressors of tables: zstd, then a checksum of the bytes on disk."""
    return ZstdCodec(level=3), Crc32cCodec()


def checkpoint_name(step: int) -> str:
    """Path of the checkpoint that holds the state before step `step`."""
    return f"{CHECKPOINTS}/{step:08d}"


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
    return DamagedError(
        f"the log is damaged: {log}: {where}: {problem}",
        hint="`lmcleaner inspect --verify` lists everything that is damaged; restore the log from a copy",
    )
