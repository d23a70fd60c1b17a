"""A step as rows of the tables, and back."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmcleaner.formats.chunks import ChunkError
from lmcleaner.formats.layout import damaged
from lmcleaner.formats.manifest import Manifest
from lmcleaner.formats.samples import Sample, StoredSample
from lmcleaner.formats.steps import MicrobatchRecord, StepRecord
from lmcleaner.formats.tables import TableWriter


class RowWriter:
    """Appends steps to the tables; a sample enters its table at its first occurrence."""

    def __init__(self, tables: Mapping[str, TableWriter], sample_rows: Mapping[bytes, int], manifest: Manifest) -> None:
        """Begins, or goes on behind the rows that are stored.

        Args:
            tables: by name.
            sample_rows: digest of each stored sample -> its row.
            manifest: what the log says of its run.
        """
        self._tables, self._sample_rows, self._manifest = tables, dict(sample_rows), manifest

    def append(self, step: StepRecord) -> None:
        """Adds the rows of a step, without the digests of its vectors."""
        tables = self._tables
        for microbatch in step.microbatches:
            self._append_microbatch(microbatch)
        tables["steps/stop"].append([tables["microbatches/stop"].num_rows])
        tables["steps/lr"].append([step.lr])
        tables["steps/loss"].append([sum(m.loss for m in step.microbatches) / self._manifest.whole_divisor])
        tables["steps/gradient_norm"].append([step.gradient_norm])
        tables["steps/seconds"].append([step.seconds])
        norms = tables["steps/unclipped_norm"]
        if step.unclipped_norm is not None and norms.num_rows == tables["steps/stop"].num_rows - 1:
            norms.append([step.unclipped_norm])  # of every step or, in a log that was begun without, of none
        self._append_scale(step)

    def _append_microbatch(self, microbatch: MicrobatchRecord) -> None:
        tables = self._tables
        tables["occurrences/sample"].append([self._sample_row(sample) for sample in microbatch.samples])
        tables["occurrences/start"].append(microbatch.starts)
        tables["microbatches/stop"].append([tables["occurrences/sample"].num_rows])
        tables["microbatches/width"].append([microbatch.width])
        tables["microbatches/has_mask"].append([microbatch.has_mask])
        tables["microbatches/denominator"].append([microbatch.denominator])
        tables["microbatches/loss"].append([microbatch.loss])
        if self._manifest.world_size > 1:
            tables["microbatches/rank"].append([microbatch.rank])
        self._append_packed(microbatch)
        tables["microbatches/rng_row"].append([tables["rng/states"].num_rows if microbatch.rng else -1])
        if microbatch.rng:
            tables["rng/states"].append(np.frombuffer(microbatch.rng, np.uint8))

    def _append_scale(self, step: StepRecord) -> None:
        """From the first step with scaled losses on there is such a table, which says 1 of those before."""
        table, num_rows = self._tables["steps/loss_scale"], self._tables["steps/stop"].num_rows
        if step.loss_scale != 1 or table.num_rows:
            table.append([*np.ones(num_rows - 1 - table.num_rows), step.loss_scale])

    def _append_packed(self, microbatch: MicrobatchRecord) -> None:
        """From the first packed microbatch on there is such a table, which says of those before that they weren't."""
        table, num_rows = self._tables["microbatches/packed"], self._tables["microbatches/stop"].num_rows
        if microbatch.packed or table.num_rows:
            table.append([*np.zeros(num_rows - 1 - table.num_rows, np.uint8), microbatch.packed])

    def _sample_row(self, sample: Sample) -> int:
        digest = sample.digest
        if digest not in self._sample_rows:
            self._sample_rows[digest] = len(self._sample_rows)
            tables = self._tables
            tables["samples/tokens"].append(sample.tokens)
            tables["samples/labels"].append(sample.labels)
            tables["samples/stop"].append([tables["samples/tokens"].num_rows])
            tables["samples/digest"].append(np.frombuffer(digest, np.uint8))
            tables["samples/redacted"].append([sample.is_redacted])
        return self._sample_rows[digest]


class RowReader:
    """Builds records from the tables."""

    def __init__(self, table: Callable[[str], NDArray[Any]], location: str) -> None:
        """Reads nothing yet.

        Args:
            table: name -> all committed rows.
            location: of the log, for messages.
        """
        self._table, self._location = table, location

    def sample(self, row: int) -> Sample:
        """The sample in row `row` of the sample table; its content is read when somebody looks at it."""
        return StoredSample(
            self._table("samples/digest")[row].tobytes(),
            lambda: self._content(row),
            is_redacted=bool(self._table("samples/redacted")[row]),
        )

    def step(self, step: int) -> StepRecord:
        """What step `step` did; no sample's content is read."""
        norms, scales = self._table("steps/unclipped_norm"), self._table("steps/loss_scale")
        return StepRecord(
            microbatches=tuple(self._microbatch(row) for row in self._range("steps/stop", step)),
            lr=tuple(float(lr) for lr in self._table("steps/lr")[step]),
            gradient_norm=float(self._table("steps/gradient_norm")[step]),
            seconds=float(self._table("steps/seconds")[step]),
            unclipped_norm=float(norms[step]) if len(norms) else None,
            loss_scale=float(scales[step]) if len(scales) else 1.0,
        )

    def _content(self, row: int) -> Sample:
        part = self._range("samples/stop", row)
        tokens = self._table("samples/tokens")[part.start : part.stop]
        labels = self._table("samples/labels")[part.start : part.stop]
        digest = self._table("samples/digest")[row].tobytes()
        if self._table("samples/redacted")[row]:
            return Sample(tokens, labels, tombstone=digest)
        found = Sample(tokens, labels)
        if found.digest != digest:
            raise damaged(
                self._location, "samples/digest", f"row {row}: the content has the digest {found.digest.hex()}"
            )
        return found

    def _microbatch(self, row: int) -> MicrobatchRecord:
        occurrences = self._range("microbatches/stop", row)
        sample_rows = [int(self._table("occurrences/sample")[o]) for o in occurrences]
        starts = tuple(int(self._table("occurrences/start")[o]) for o in occurrences)
        width, rng_row = int(self._table("microbatches/width")[row]), int(self._table("microbatches/rng_row")[row])
        ranks, packed = self._table("microbatches/rank"), self._table("microbatches/packed")
        lengths = [len(self._range("samples/stop", row)) for row in sample_rows]
        if any(not 0 <= start <= width - length for start, length in zip(starts, lengths, strict=True)):
            raise ChunkError(f"expected samples that fit into {width} tokens, found starts {starts}")
        found = MicrobatchRecord(
            samples=tuple(map(self.sample, sample_rows)),
            starts=starts,
            width=width,
            has_mask=bool(self._table("microbatches/has_mask")[row]),
            denominator=float(self._table("microbatches/denominator")[row]),
            loss=float(self._table("microbatches/loss")[row]),
            rng=b"" if rng_row < 0 else self._table("rng/states")[rng_row].tobytes(),
            rank=int(ranks[row]) if len(ranks) else 0,
            packed=bool(packed[row]) if len(packed) else False,
        )
        _check_pack(found, lengths)
        return found

    def _range(self, stops: str, row: int) -> range:
        """Rows of the next finer table that row `row` of a table covers."""
        table = self._table(stops)
        return range(int(table[row - 1]) if row else 0, int(table[row]))


def _check_pack(microbatch: MicrobatchRecord, lengths: Sequence[int]) -> None:
    """Packed samples lie without gaps, from the beginning of a row, and the model was given no mask."""
    if not microbatch.packed:
        return
    stops = [start + length for start, length in zip(microbatch.starts, lengths, strict=True)]
    places = zip(microbatch.starts, [0, *stops], strict=False)
    if microbatch.has_mask or 0 in lengths or any(start not in {0, before} for start, before in places):
        raise ChunkError(
            "expected packed samples that aren't empty, without gaps and without a mask, found starts "
            f"{microbatch.starts} of {lengths} tokens"
        )
