"""Recorded curvature: from each checkpoint on, an estimate of a matrix that a sweep would otherwise make itself."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray

from lmcleaner.formats.canonical import array_digest
from lmcleaner.formats.commit import Change, Commit, CurvatureCommit, EstimateKind
from lmcleaner.formats.generations import clean
from lmcleaner.formats.parallel import in_order
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.store import Store
from lmcleaner.formats.tree import Tree
from lmcleaner.formats.vectors import VectorWriter
from lmcleaner.formats.writer import write_commit, write_metadata


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEstimate:
    """An estimate of a symmetric matrix over the parameters.

    Attributes:
        kind: what it is of, and how it is written down.
        rank: eigenpairs that were asked for; 0 of a diagonal.
        trace: estimated trace of the whole matrix.
        arrays: `diagonal` `[num_elements]`, or `values` `[pairs]`, largest first, and `vectors`
            `[pairs, num_elements]`, orthonormal rows; float32, or float64 of float64 parameters.
    """

    kind: EstimateKind
    rank: int
    trace: float
    arrays: Mapping[str, NDArray[Any]]


def read_curvature(log: TrainingLog, step: int) -> StoredEstimate:
    """An estimate of the curvature, checked against its digests.

    Args:
        log: the training log.
        step: from which on it serves, one of the commit record's.

    Returns:
        The estimate.

    Raises:
        DamagedError: the bytes can't be read or don't have the committed digest.
    """
    entry = log.commit.curvature[step]
    arrays = {name: log.curvature_array(step, name) for name in entry.blake3}
    return StoredEstimate(kind=entry.kind, rank=entry.rank, trace=entry.trace, arrays=arrays)


class CurvatureWriter:
    """Estimates that become a log's with `commit`, all at once."""

    def __init__(self, log: TrainingLog, threads: int) -> None:
        """Not for callers: see `curvature_writer`."""
        self._log, self._threads = log, threads
        self._entries: dict[int, CurvatureCommit] = {}

    def write(self, step: int, curvature: StoredEstimate) -> None:
        """Writes an estimate that serves from step `step` on."""
        self._entries[step] = _write(self._log.store, self._log.tree, step, curvature, self._threads)

    def commit(self, change: Change) -> Commit:
        """Makes them the log's, by one write of the commit record.

        Args:
            change: the entry of the log's history.

        Returns:
            The record.
        """
        log = self._log
        commit = replace(log.commit, curvature=self._entries, history=(*log.commit.history, change))
        write_metadata(log.store, log.tree, commit, dict(log.tree.metadata(log.commit)))
        write_commit(log.store, commit, log.manifest_digest)
        return commit


@contextmanager
def curvature_writer(log: TrainingLog, threads: int = 1) -> Iterator[CurvatureWriter]:
    """Writes estimates into a log; what isn't committed when the block ends, however it does, is removed.

    Args:
        log: the log, on a store that can be written and whose lock the caller holds.
        threads: that compress.

    Yields:
        The writer.
    """
    clean(log)
    try:
        yield CurvatureWriter(log, threads)
    finally:
        log.store.sync()
        clean(TrainingLog(log.store))


def _write(store: Store, tree: Tree, step: int, curvature: StoredEstimate, threads: int) -> CurvatureCommit:
    arrays = curvature.arrays
    entry = CurvatureCommit(
        kind=curvature.kind,
        rank=curvature.rank,
        pairs=len(arrays.get("values", ())),
        trace=curvature.trace,
        blake3={name: array_digest(values).hex() for name, values in arrays.items()},
    )
    for name, values in arrays.items():
        grid, rows = tree.curvature(step, name, entry)
        writer = VectorWriter(store, grid)
        starts = range(0, grid.length, grid.chunk)
        spans = (row[start : start + grid.chunk] for row in values.reshape(rows, grid.length) for start in starts)
        in_order(writer.compress, spans, writer.add, threads)
        writer.flush()
    return entry
