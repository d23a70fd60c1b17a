"""The tree of a log: which arrays it has, where each lies, and what the metadata of each must say."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from lmcleaner.formats.arrays import ArrayLayout, group_metadata
from lmcleaner.formats.bits import BIT_DTYPES
from lmcleaner.formats.codecs import CODECS, Column
from lmcleaner.formats.commit import CheckpointCommit, Commit, CurvatureCommit
from lmcleaner.formats.documents import metadata_key
from lmcleaner.formats.layout import (
    CHECKPOINTS,
    COMMIT,
    CORRECTIONS,
    CURVATURE,
    GRADIENTS,
    GROUPS,
    OPTIONAL_TABLES,
    TABLES,
    UPDATES,
    VECTOR_COMPRESSION,
    checkpoint_name,
    correction_name,
    curvature_name,
    generation_name,
    stack_layout,
    vector_layout,
)
from lmcleaner.formats.manifest import Manifest
from lmcleaner.formats.ranges import steps_in
from lmcleaner.formats.tables import chunk_keys
from lmcleaner.formats.vectors import Grid

PARTS = ("samples", "bookkeeping", UPDATES, GRADIENTS, CHECKPOINTS, CURVATURE)


class Tree:
    """Where everything of one generation lies.

    Attributes:
        manifest: of the log.
        generation: which generation.
    """

    def __init__(self, manifest: Manifest, generation: int) -> None:
        """Works out the layouts.

        Args:
            manifest: of the log.
            generation: which generation.
        """
        self.manifest, self.generation = manifest, generation
        widths: Any = {"": (), "groups": (len(manifest.optimizer.groups),), "rng_bytes": (manifest.numerics.rng_bytes,)}
        self.tables: dict[str, ArrayLayout] = {
            table.name: table.layout(widths) for table in (*TABLES, *OPTIONAL_TABLES)
        }

    @property
    def stacks(self) -> tuple[str, ...]:
        """Those of updates and gradients that the log holds."""
        return tuple(name for name in (UPDATES, GRADIENTS) if self.codec(name) != "none")

    def codec(self, stack: str) -> str:
        """Name of the codec of the updates or the gradients."""
        return self.manifest.updates if stack == UPDATES else self.manifest.gradients

    def path(self, name: str) -> str:
        """Where a group or an array of the generation lies in the store."""
        return f"{generation_name(self.generation)}/{name}" if name else generation_name(self.generation)

    def part(self, key: str) -> str:
        """Which of `PARTS` an object of the log belongs to; corrections belong to the updates."""
        top = key.removeprefix(self.path("") + "/").split("/")[0].removesuffix("_scales").replace(CORRECTIONS, UPDATES)
        return top if top in PARTS else "bookkeeping"

    def stack(self, name: str) -> list[Grid]:
        """The arrays of the updates or the gradients, one for each column of their codec."""
        num_elements, dtype = self.manifest.num_elements, self.manifest.model.dtype
        attributes = {"codec": self.codec(name), "dtype": dtype}
        layouts = {
            name + column.suffix: stack_layout(column, num_elements, attributes)
            for column in CODECS[self.codec(name)].columns(dtype)
        }
        return [Grid(self.path(array), layout, layout.row[0]) for array, layout in layouts.items()]

    def vector(self, step: int, name: str, checkpoint: CheckpointCommit) -> Grid:
        """One array of a checkpoint.

        Args:
            step: of the checkpoint.
            name: of the array.
            checkpoint: what is committed of it.

        Returns:
            Where its chunks lie.
        """
        path = self.path(f"{checkpoint_name(step)}/{name}")
        floats, part = {"parameters": self.manifest.model.dtype, **checkpoint.dtypes}, name.removeprefix("optimizer/")
        if part in floats:
            layout = vector_layout(
                BIT_DTYPES[floats[part]], self.manifest.num_elements, attributes={"dtype": floats[part]}
            )
            return Grid(path, layout, self.manifest.num_elements)
        num_parameters = len(self.manifest.parameters)
        length = checkpoint.generator_bytes if name == "generators" else num_parameters
        dtype = np.dtype(np.float64 if part in checkpoint.scalars else np.uint8)
        return Grid(path, vector_layout(dtype, length), length)

    def correction(self, step: int) -> Grid:
        """The correction of the reconstruction before step `step`."""
        (column,) = CODECS["lossless"].columns(self.manifest.model.dtype)
        length = self.manifest.num_elements
        attributes = {"codec": "lossless", "dtype": self.manifest.model.dtype}
        layout = vector_layout(column.dtype, length, compression=column.compression, attributes=attributes)
        return Grid(self.path(correction_name(step)), layout, length)

    def curvature(self, step: int, name: str, entry: CurvatureCommit) -> tuple[Grid, int]:
        """One array of an estimate of the curvature.

        Args:
            step: from which on the estimate serves.
            name: of the array.
            entry: what is committed of the estimate.

        Returns:
            Where its chunks lie, and its rows: one for each eigenvector, or 1.
        """
        dtype, length = self.wide_dtype, self.manifest.num_elements
        path = self.path(f"{curvature_name(step)}/{name}")
        if name == "vectors":
            column = Column(suffix="", dtype=dtype, elements=1, compression=VECTOR_COMPRESSION)
            return Grid(path, stack_layout(column, length, {}), length), entry.pairs
        length = entry.pairs if name == "values" else length
        return Grid(path, vector_layout(dtype, length), length), 1

    @property
    def wide_dtype(self) -> np.dtype[Any]:
        """Of what is estimated of parameters: float64 of float64 ones, float32 of others."""
        return np.dtype(np.float64 if self.manifest.model.dtype == "float64" else np.float32)

    def metadata(self, commit: Commit) -> Iterator[tuple[str, bytes]]:
        """The metadata of every group and array, but for the root and the commit record.

        Args:
            commit: what the metadata shall tell.

        Yields:
            Key and content.
        """
        checkpoints = [checkpoint_name(step) for step in commit.checkpoints]
        states = [f"{checkpoint_name(step)}/optimizer" for step in commit.checkpoints]
        estimates = [CURVATURE, *map(curvature_name, commit.curvature)] if commit.curvature else []
        for group in ("", *GROUPS, *checkpoints, *states, *estimates):
            yield metadata_key(self.path(group)), group_metadata({})
        for name in commit.tables:
            yield metadata_key(self.path(name)), self.tables[name].metadata(commit.tables[name].rows)
        for stack in self.stacks:
            for grid in self.stack(stack):
                yield metadata_key(grid.path), grid.layout.metadata(commit.steps)
        for grid in self._vectors(commit):
            yield metadata_key(grid.path), grid.layout.metadata(grid.length)
        for grid, rows in self._estimates(commit):
            yield metadata_key(grid.path), grid.layout.metadata(rows if grid.layout.row else grid.length)

    def objects(self, commit: Commit) -> Iterator[str]:
        """Every object that a commit record counts, metadata included.

        Args:
            commit: the record.

        Yields:
            The objects' keys.
        """
        yield from (metadata_key(""), metadata_key(COMMIT))
        yield from (key for key, _ in self.metadata(commit))
        for name in commit.tables:
            yield from chunk_keys(self.path(name), self.tables[name], commit.tables[name].rows)
        for stack in self.stacks:
            for grid in self.stack(stack):
                yield from _stack_keys(grid, self.rows_of(stack, commit))
        for grid in self._vectors(commit):
            yield from grid.shards_of(0)
        for grid, rows in self._estimates(commit):
            yield from _stack_keys(grid, list(range(rows)))

    def rows_of(self, stack: str, commit: Commit) -> list[int]:
        """The steps whose rows the stack holds."""
        return steps_in(commit.gradients if stack == GRADIENTS else commit.updates)

    def _vectors(self, commit: Commit) -> Iterator[Grid]:
        """Every array of every checkpoint, and every correction.

        Yields:
            Where its chunks lie.
        """
        for step, checkpoint in commit.checkpoints.items():
            yield from (self.vector(step, name, checkpoint) for name in checkpoint.blake3)
        yield from map(self.correction, commit.corrections)

    def _estimates(self, commit: Commit) -> Iterator[tuple[Grid, int]]:
        for step, entry in commit.curvature.items():
            yield from (self.curvature(step, name, entry) for name in entry.blake3)


def _stack_keys(grid: Grid, rows: list[int]) -> Iterator[str]:
    yield from dict.fromkeys(key for row in rows for key in grid.shards_of(row))
