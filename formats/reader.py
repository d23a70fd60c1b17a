"""Reads a training log, never changes it, and trusts nothing that its digests don't cover."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import zarr
import zarr.errors
from numpy.typing import NDArray

from lmcleaner.formats.bits import BIT_DTYPES, Bits, apply_in_parts
from lmcleaner.formats.canonical import array_digest, json_digest
from lmcleaner.formats.commit import Commit
from lmcleaner.formats.errors import InsufficientLogError, NotFoundError
from lmcleaner.formats.layout import (
    ATTRIBUTES,
    CHECKPOINTS,
    COMMIT,
    TABLES,
    UPDATES,
    VECTOR_CHUNK,
    checkpoint_name,
    damaged,
)
from lmcleaner.formats.manifest import Manifest
from lmcleaner.formats.samples import Sample
from lmcleaner.formats.steps import Checkpoint, MicrobatchRecord, OptimizerVectors, StepRecord

# What zarr and its codecs raise on bytes that aren't what they should be.
_UNREADABLE = (ValueError, TypeError, KeyError, RuntimeError, OSError, zarr.errors.BaseZarrError)


class TrainingLog:
    """An opened training log.

    Attributes:
        path: folder of the log.
        manifest: what the log says of its run before the first step.
        commit: what the log vouches for; rows beyond it are not there for a reader.
    """

    def __init__(self, path: Path | str) -> None:
        """Opens the log and checks its manifest and its commit record.

        Args:
            path: folder of the log.

        Raises:
            NotFoundError: no log lies there.
            DamagedError: the manifest or the commit record is damaged.
            VersionError: a later release wrote it.
        """
        self.path = Path(path)
        if not (self.path / "zarr.json").is_file():
            raise NotFoundError(
                f"no training log: {path}", hint="give the log's folder, or set LMCLEANER_LOG; `record` makes one"
            )
        try:
            self._group = zarr.open_group(str(path), mode="r")
            attributes = self._group.attrs.asdict()
            commit = self._subgroup(COMMIT).attrs.asdict()
        except _UNREADABLE as error:
            raise damaged(str(path), COMMIT, f"can't be read ({error})") from error
        self.manifest = Manifest.from_json(attributes, str(path))
        self.commit = Commit.from_json(commit, self.manifest.digest, str(path))
        self._cache: dict[str, NDArray[Any]] = {}

    @property
    def num_steps(self) -> int:
        """τ, the number of committed steps."""
        return self.commit.steps

    @property
    def root(self) -> str:
        """SHA-256 that names the log's whole committed content."""
        return self.commit.root(self.manifest.digest)

    @property
    def checkpoint_steps(self) -> tuple[int, ...]:
        """Steps before which the full state is stored, in order."""
        return tuple(sorted(int(step) for step in self.commit.checkpoints))

    @property
    def has_updates(self) -> bool:
        """Whether θ after every step can be read."""
        return self.manifest.updates != "none"

    @cached_property
    def sample_rows(self) -> dict[bytes, int]:
        """Digest of each sample -> its row of the sample table."""
        return {digest.tobytes(): row for row, digest in enumerate(self.table("samples/digest"))}

    @cached_property
    def occurrence_steps(self) -> NDArray[np.int64]:
        """Step of each row of the occurrence table, int64 `[num_occurrences]`."""
        microbatches = np.searchsorted(
            self.table("microbatches/stop"), np.arange(len(self.table("occurrences/sample"))), side="right"
        )
        return np.asarray(np.searchsorted(self.table("steps/stop"), microbatches, side="right"), dtype=np.int64)

    def table(self, name: str) -> NDArray[Any]:
        """All committed rows of a table, checked against their digest.

        Args:
            name: path of the table, see `layout.TABLES`.

        Returns:
            Array with the dtype that the layout states.

        Raises:
            DamagedError: the bytes can't be read or don't have the committed digest.
        """
        if name not in self._cache:
            self._cache[name] = self._read_table(name)
        return self._cache[name]

    def sample(self, row: int) -> Sample:
        """The sample in row `row` of the sample table."""
        stops = self.table("samples/stop")
        part = slice(int(stops[row - 1]) if row else 0, int(stops[row]))
        return Sample(self.table("samples/tokens")[part], self.table("samples/labels")[part])

    def step(self, step: int) -> StepRecord:
        """What step `step` did.

        Raises:
            NotFoundError: the log holds no such step.
        """
        self._check_step(step, self.num_steps - 1)
        return StepRecord(
            microbatches=tuple(self._microbatch(row) for row in self._rows("steps/stop", step)),
            lr=tuple(float(lr) for lr in self.table("steps/lr")[step]),
            gradient_norm=float(self.table("steps/gradient_norm")[step]),
            seconds=float(self.table("steps/seconds")[step]),
        )

    def nearest_checkpoint(self, step: int) -> int:
        """The last checkpoint at or before `step`."""
        return max(stored for stored in self.checkpoint_steps if stored <= step)

    def checkpoint(self, step: int) -> Checkpoint:
        """The full state before step `step`, checked against its digests.

        Raises:
            NotFoundError: there is no checkpoint of that step.
            DamagedError: the bytes can't be read or don't have the committed digest.
        """
        arrays = self._checkpoint_arrays(step)
        attributes = self._checkpoint_attributes(step)
        parts = {name.removeprefix("optimizer/"): name for name in arrays if name.startswith("optimizer/")}
        scalars = set(attributes["scalars"])
        return Checkpoint(
            step=step,
            parameters=arrays["parameters"],
            optimizer=OptimizerVectors(
                vectors={part: arrays[name] for part, name in parts.items() if part not in scalars},
                dtypes=dict(attributes["dtypes"]),
                scalars={part: arrays[name] for part, name in parts.items() if part in scalars},
                present=arrays["present"].astype(np.bool_),
            ),
        )

    def checkpoint_parameters(self, step: int) -> Bits:
        """θ[step] from its checkpoint, bit patterns `[num_elements]`, checked against its digest."""
        return self._checkpoint_array(step, "parameters")

    def advance(self, parameters: Sequence[Bits], step: int) -> None:
        """Takes θ[step] to θ[step+1] in place, and checks the result against its digest.

        Args:
            parameters: bit patterns of θ[step] in one or more consecutive parts, `[num_elements]` together.
            step: the step to apply.

        Raises:
            InsufficientLogError: the log holds no updates.
            NotFoundError: the log holds no such step.
            DamagedError: the update can't be read or leads to other parameters than the run's.
        """
        self._check_step(step, self.num_steps - 1)
        if not self.has_updates:
            raise InsufficientLogError(
                f"the log holds no updates: {self.path}: step {step}", hint="record with --updates lossless"
            )
        try:
            apply_in_parts(parameters, self._update_chunks(step))
        except _UNREADABLE as error:
            raise damaged(str(self.path), UPDATES, f"can't be read ({error})", step=step) from error
        content = hashlib.sha256()
        for part in parameters:
            content.update(part.data)
        if content.digest() != self.parameters_digest(step + 1):
            raise damaged(str(self.path), UPDATES, "the update doesn't lead to the parameters of the run", step=step)

    def parameters(self, step: int) -> Bits:
        """θ[step], bit patterns `[num_elements]`, from the nearest checkpoint and the updates after it."""
        self._check_step(step, self.num_steps)
        start = self.nearest_checkpoint(step)
        bits = self.checkpoint_parameters(start)
        for between in range(start, step):
            self.advance([bits], between)
        return bits

    def parameters_digest(self, step: int) -> bytes:
        """SHA-256 of θ[step], 32 bytes."""
        if step == 0:
            return bytes.fromhex(self.commit.checkpoints["0"]["parameters"])
        digest: NDArray[np.uint8] = self.table("steps/parameters_sha256")[step - 1]
        return digest.tobytes()

    def _check_step(self, step: int, last: int) -> None:
        if not 0 <= step <= last:
            raise NotFoundError(
                f"no such step: {self.path}: expected 0 to {last}, found {step}",
                hint="`lmcleaner inspect` shows how many steps the log holds",
            )

    def _update_chunks(self, step: int) -> Iterator[Bits]:
        updates, dtype = self._array(UPDATES), BIT_DTYPES[self.manifest.model.dtype]
        self._check_chunks(UPDATES, (step + 1, self.manifest.num_elements), first=step)
        for start in range(0, self.manifest.num_elements, VECTOR_CHUNK):
            yield np.asarray(updates[step, start : start + VECTOR_CHUNK], dtype=dtype)

    def _rows(self, stops: str, row: int) -> range:
        """Rows of the next finer table that row `row` of a table covers."""
        table = self.table(stops)
        return range(int(table[row - 1]) if row else 0, int(table[row]))

    def _microbatch(self, row: int) -> MicrobatchRecord:
        occurrences = self._rows("microbatches/stop", row)
        rng_row = int(self.table("microbatches/rng_row")[row])
        return MicrobatchRecord(
            samples=tuple(self.sample(int(self.table("occurrences/sample")[o])) for o in occurrences),
            starts=tuple(int(self.table("occurrences/start")[o]) for o in occurrences),
            width=int(self.table("microbatches/width")[row]),
            has_mask=bool(self.table("microbatches/has_mask")[row]),
            denominator=float(self.table("microbatches/denominator")[row]),
            loss=float(self.table("microbatches/loss")[row]),
            rng=b"" if rng_row < 0 else self.table("rng/states")[rng_row].tobytes(),
        )

    def _read_table(self, name: str) -> NDArray[Any]:
        layout = next(table for table in TABLES if table.name == name)
        committed = self.commit.tables[name]
        try:
            rows = np.asarray(self._array(name)[: committed["rows"]])
            self._check_chunks(name, rows.shape)
        except _UNREADABLE as error:
            raise damaged(str(self.path), name, f"can't be read ({error})") from error
        if rows.dtype != layout.dtype or len(rows) != committed["rows"]:
            expected = f"{committed['rows']} rows of {layout.dtype}"
            raise damaged(str(self.path), name, f"expected {expected}, found {len(rows)} of {rows.dtype}")
        if array_digest(rows).hex() != committed["sha256"]:
            raise damaged(str(self.path), name, "the rows don't have the committed digest")
        return rows

    def _checkpoint_arrays(self, step: int) -> dict[str, NDArray[Any]]:
        if str(step) not in self.commit.checkpoints:
            raise NotFoundError(f"no checkpoint of step {step}: {self.path}: found {list(self.checkpoint_steps)}")
        names = [name for name in self.commit.checkpoints[str(step)] if name != ATTRIBUTES]
        return {name: self._checkpoint_array(step, name) for name in names}

    def _checkpoint_attributes(self, step: int) -> dict[str, Any]:
        where = checkpoint_name(step)
        try:
            attributes: dict[str, Any] = self._subgroup(where).attrs.asdict()
            found = json_digest(attributes)
        except _UNREADABLE as error:
            raise damaged(str(self.path), where, f"can't be read ({error})", step=step) from error
        if found != self.commit.checkpoints[str(step)].get(ATTRIBUTES):
            raise damaged(str(self.path), where, "the attributes don't have the committed digest", step=step)
        return attributes

    def _checkpoint_array(self, step: int, name: str) -> NDArray[Any]:
        where = f"{checkpoint_name(step)}/{name}"
        try:
            values = np.asarray(self._array(where)[:])
            self._check_chunks(where, values.shape)
        except _UNREADABLE as error:
            raise damaged(str(self.path), where, f"can't be read ({error})", step=step) from error
        if array_digest(values).hex() != self.commit.checkpoints[str(step)][name]:
            raise damaged(str(self.path), where, "the values don't have the committed digest", step=step)
        return values

    def _check_chunks(self, name: str, shape: tuple[int, ...], *, first: int = 0) -> None:
        """Zarr reads a missing chunk as zeros, which may even be right; a log without one is damaged all the same."""
        sizes = self._array(name).chunks
        counts = [math.ceil(extent / size) for extent, size in zip(shape, sizes, strict=True)]
        for place in product(range(first, counts[0]), *map(range, counts[1:])):
            key = "/".join(map(str, ("c", *place)))
            if not (self.path / name / key).is_file():
                raise FileNotFoundError(f"no chunk {key}")

    def _array(self, name: str) -> zarr.Array[Any]:
        array = self._group[name]
        if not isinstance(array, zarr.Array):
            raise TypeError("expected an array, found a group")
        return array

    def _subgroup(self, name: str) -> zarr.Group:
        group = self._group[name]
        if not isinstance(group, zarr.Group):
            raise TypeError("expected a group, found an array")
        return group

    def bytes_on_disk(self) -> dict[str, int]:
        """Bytes of the log's files by part: samples, bookkeeping, updates, checkpoints."""
        parts = {"samples": 0, "bookkeeping": 0, "updates": 0, "checkpoints": 0}
        for file in self.path.rglob("*"):
            if file.is_file():
                top = file.relative_to(self.path).parts[0]
                parts[top if top in {"samples", UPDATES, CHECKPOINTS} else "bookkeeping"] += file.stat().st_size
        return parts
