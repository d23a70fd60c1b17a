"""Writes a training log: data first, the commit record last."""

import errno
import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from lmcleaner.formats.bits import BIT_DTYPES, Bits, encode_update
from lmcleaner.formats.canonical import array_digest, json_digest
from lmcleaner.formats.commit import Commit
from lmcleaner.formats.errors import ExistsError, ResourceError
from lmcleaner.formats.layout import (
    ATTRIBUTES,
    COMMIT,
    SCHEMA,
    TABLE_CHUNK,
    TABLES,
    UPDATES,
    VECTOR_CHUNK,
    Table,
    checkpoint_name,
    table_codecs,
    vector_codecs,
)
from lmcleaner.formats.manifest import Manifest
from lmcleaner.formats.samples import Sample
from lmcleaner.formats.steps import Checkpoint, MicrobatchRecord, StepRecord

FLUSH_STEPS = 16  # steps between two commit records; a kill loses at most these

# An all-zero chunk is written like any other, so that a missing one is always damage.
_STORE_EVERY_CHUNK: Any = {"write_empty_chunks": True}


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turns a full disk or an unwritable folder into an error that names the place.

    Args:
        path: what is being written.

    Yields:
        Nothing.

    Raises:
        ResourceError: the system has no room, or doesn't let us write.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}:
            raise
        raise ResourceError(
            f"can't write: {path}: {error.strerror}", hint="free some space or choose another folder"
        ) from error


class TableWriter:
    """One growing table: rows wait in memory until they are flushed, and a running digest covers the flushed ones."""

    def __init__(self, group: zarr.Group, table: Table, columns: tuple[int, ...]) -> None:
        """Creates the empty array."""
        self._table = table
        self._columns = columns
        self._array = group.create_array(
            table.name,
            shape=(0, *columns),
            chunks=(TABLE_CHUNK, *columns),
            dtype=table.dtype,
            fill_value=0,
            compressors=table_codecs(),
            config=_STORE_EVERY_CHUNK,
            attributes={"meaning": table.meaning},
        )
        self._digest = hashlib.sha256()
        self._waiting: list[NDArray[Any]] = []
        self.num_rows = 0

    def append(self, rows: Any) -> None:
        """Adds rows; `rows` has the table's columns behind axis 0."""
        block = np.asarray(rows, dtype=self._table.dtype).reshape(-1, *self._columns)
        self._waiting.append(block)
        self.num_rows += len(block)

    def flush(self) -> None:
        """Writes the waiting rows."""
        if not self._waiting:
            return
        block = np.concatenate(self._waiting)
        self._waiting.clear()
        if len(block):
            self._array.append(block)
            self._digest.update(block.astype(block.dtype.newbyteorder("<")).tobytes())

    def commitment(self) -> dict[str, Any]:
        """What the commit record says of the flushed rows."""
        return {"rows": int(self._array.shape[0]), "sha256": self._digest.hexdigest()}


class LogWriter:
    """Appends steps and checkpoints to a new log.

    A step becomes visible to readers with the commit record that follows it: every `FLUSH_STEPS` steps, at each
    checkpoint and at the end.
    """

    def __init__(self, path: Path, manifest: Manifest, start: Checkpoint, *, overwrite: bool = False) -> None:
        """Creates the log with its checkpoint of step 0.

        Args:
            path: folder of the log; must not exist, or hold a log if `overwrite`.
            manifest: what the log says of the run.
            start: θ[0] and the optimizer's state.
            overwrite: removes a log that lies at `path`.

        Raises:
            ExistsError: something lies at `path`.
        """
        self.path = path
        self.manifest = manifest
        self._manifest_digest = manifest.digest
        self.num_steps = 0
        self._bits: Bits = start.parameters
        self._samples: dict[bytes, int] = {}
        self._checkpoints: dict[str, dict[str, str]] = {}
        check_place(path, overwrite)
        with storage_errors(path):
            if path.exists():
                shutil.rmtree(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._group = zarr.create_group(str(path), zarr_format=3, attributes=manifest.to_json())
            self._commit_group = self._group.create_group(COMMIT)
            widths = {"": (), "groups": (len(manifest.optimizer.groups),), "rng_bytes": (manifest.numerics.rng_bytes,)}
            self._tables = {
                table.name: TableWriter(self._group, table, table.columns or widths[table.width]) for table in TABLES
            }
            self._updates = self._create_updates() if manifest.updates == "lossless" else None
        self.write_checkpoint(start)

    def append(self, step: StepRecord, parameters: Bits) -> None:
        """Records one step.

        Args:
            step: what the step did.
            parameters: bit patterns of θ after the step, `[num_elements]`; kept, so the caller must not change them.
        """
        with storage_errors(self.path):
            if self._updates is not None:
                self._write_update(parameters)
            self._bits = parameters
            self._append_rows(step, array_digest(parameters))
            self.num_steps += 1
            if self.num_steps % FLUSH_STEPS == 0:
                self.commit()

    def write_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Writes the state before step `checkpoint.step`, which must be the next one, and commits."""
        assert checkpoint.step == self.num_steps, (checkpoint.step, self.num_steps)
        with storage_errors(self.path):
            attributes = {"dtypes": checkpoint.optimizer.dtypes, "scalars": sorted(checkpoint.optimizer.scalars)}
            group = self._group.create_group(checkpoint_name(checkpoint.step), attributes=attributes)
            arrays: dict[str, NDArray[Any]] = {
                "parameters": checkpoint.parameters,
                "present": checkpoint.optimizer.present.astype(np.uint8),
                **{f"optimizer/{name}": bits for name, bits in checkpoint.optimizer.vectors.items()},
                **{f"optimizer/{name}": values for name, values in checkpoint.optimizer.scalars.items()},
            }
            for name, values in arrays.items():
                _write_vector(group, name, values)
            digests = {name: array_digest(values).hex() for name, values in arrays.items()}
            self._checkpoints[str(checkpoint.step)] = {ATTRIBUTES: json_digest(attributes), **digests}
            self.commit()

    def commit(self, *, finished: bool = False) -> None:
        """Writes what waits, then the commit record that makes it visible."""
        with storage_errors(self.path):
            for table in self._tables.values():
                table.flush()
            commit = Commit(
                steps=self.num_steps,
                finished=finished,
                tables={name: table.commitment() for name, table in self._tables.items()},
                checkpoints=dict(self._checkpoints),
            )
            self._commit_group.update_attributes(commit.to_json(self._manifest_digest))

    def _create_updates(self) -> zarr.Array[Any]:
        num_elements = self.manifest.num_elements
        dtype = BIT_DTYPES[self.manifest.model.dtype]
        return self._group.create_array(
            UPDATES,
            shape=(0, num_elements),
            chunks=(1, min(num_elements, VECTOR_CHUNK)),
            dtype=dtype,
            fill_value=0,
            compressors=vector_codecs(dtype.itemsize),
            config=_STORE_EVERY_CHUNK,
            attributes={"dtype": self.manifest.model.dtype, "codec": "zigzag difference of ordered bit patterns"},
        )

    def _write_update(self, parameters: Bits) -> None:
        assert self._updates is not None
        self._updates.resize((self.num_steps + 1, self.manifest.num_elements))
        for start in range(0, len(parameters), VECTOR_CHUNK):
            part = slice(start, start + VECTOR_CHUNK)
            self._updates[self.num_steps, part] = encode_update(self._bits[part], parameters[part])

    def _append_rows(self, step: StepRecord, parameters_digest: bytes) -> None:
        tables = self._tables
        for microbatch in step.microbatches:
            self._append_microbatch(microbatch)
        tables["steps/stop"].append([tables["microbatches/stop"].num_rows])
        tables["steps/lr"].append([step.lr])
        tables["steps/loss"].append([sum(m.loss for m in step.microbatches) / self.manifest.loss_divisor])
        tables["steps/gradient_norm"].append([step.gradient_norm])
        tables["steps/seconds"].append([step.seconds])
        tables["steps/parameters_sha256"].append([np.frombuffer(parameters_digest, np.uint8)])

    def _append_microbatch(self, microbatch: MicrobatchRecord) -> None:
        tables = self._tables
        tables["occurrences/sample"].append([self._sample_row(sample) for sample in microbatch.samples])
        tables["occurrences/start"].append(microbatch.starts)
        tables["microbatches/stop"].append([tables["occurrences/sample"].num_rows])
        tables["microbatches/width"].append([microbatch.width])
        tables["microbatches/has_mask"].append([microbatch.has_mask])
        tables["microbatches/denominator"].append([microbatch.denominator])
        tables["microbatches/loss"].append([microbatch.loss])
        tables["microbatches/rng_row"].append([tables["rng/states"].num_rows if microbatch.rng else -1])
        if microbatch.rng:
            tables["rng/states"].append(np.frombuffer(microbatch.rng, np.uint8))

    def _sample_row(self, sample: Sample) -> int:
        """Row of the sample table, which the sample enters at its first occurrence."""
        digest = sample.digest
        if digest not in self._samples:
            self._samples[digest] = len(self._samples)
            tables = self._tables
            tables["samples/tokens"].append(sample.tokens)
            tables["samples/labels"].append(sample.labels)
            tables["samples/stop"].append([tables["samples/tokens"].num_rows])
            tables["samples/digest"].append(np.frombuffer(digest, np.uint8))
        return self._samples[digest]


def check_place(path: Path, overwrite: bool) -> None:
    """Makes sure that a log may be created at `path`: nothing lies there, or a log that may be removed.

    Args:
        path: folder of the log to be.
        overwrite: whether a log that lies there may be removed; anything else never is.

    Raises:
        ExistsError: something lies there.
    """
    if path.exists() and not (overwrite and _holds_log(path)):
        raise ExistsError(
            f"the log exists already: {path}", hint="choose another place, or give --overwrite to remove the log first"
        )


def _holds_log(path: Path) -> bool:
    """Whether the folder says that it is a training log, of whatever version and however damaged further down."""
    try:
        document = json.loads((path / "zarr.json").read_text(encoding="utf-8"))
        return bool(document["attributes"]["schema"] == SCHEMA)
    except (OSError, ValueError, TypeError, KeyError):
        return False


def _write_vector(group: zarr.Group, name: str, values: NDArray[Any]) -> None:
    array = group.create_array(
        name,
        shape=values.shape,
        chunks=(min(len(values), VECTOR_CHUNK),),
        dtype=values.dtype,
        fill_value=0,
        compressors=vector_codecs(values.dtype.itemsize),
        config=_STORE_EVERY_CHUNK,
    )
    array[:] = values
