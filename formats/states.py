"""Checkpoints: the full state between two steps, each vector an array of its own."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmcleaner.formats.canonical import array_digest
from lmcleaner.formats.commit import CheckpointCommit
from lmcleaner.formats.parallel import in_order
from lmcleaner.formats.steps import Checkpoint, OptimizerVectors
from lmcleaner.formats.store import Store
from lmcleaner.formats.tree import Tree
from lmcleaner.formats.vectors import Grid, VectorWriter, read_rows


def write_checkpoint(store: Store, tree: Tree, checkpoint: Checkpoint, threads: int = 1) -> CheckpointCommit:
    """Writes the arrays of a checkpoint.

    Args:
        store: where the log lies.
        tree: of the log.
        checkpoint: the state.
        threads: that compress it.

    Returns:
        What the commit record shall say of it.
    """
    arrays = _arrays(checkpoint)
    commit = CheckpointCommit(
        dtypes=dict(checkpoint.optimizer.dtypes),
        scalars=tuple(sorted(checkpoint.optimizer.scalars)),
        generator_bytes=len(checkpoint.generators),
        blake3={name: array_digest(values).hex() for name, values in arrays.items()},
    )
    for name, values in arrays.items():
        _write_vector(store, tree.vector(checkpoint.step, name, commit), values, threads)
    return commit


def assemble(step: int, commit: CheckpointCommit, arrays: Mapping[str, NDArray[Any]]) -> Checkpoint:
    """The full state before a step.

    Args:
        step: of the checkpoint.
        commit: what the commit record says of it.
        arrays: all its arrays, by name.

    Returns:
        The state.
    """
    return Checkpoint(
        step=step,
        parameters=arrays["parameters"],
        optimizer=OptimizerVectors(
            vectors={part: arrays[f"optimizer/{part}"] for part in commit.dtypes},
            dtypes=dict(commit.dtypes),
            scalars={part: arrays[f"optimizer/{part}"] for part in commit.scalars},
            present=arrays["present"].astype(np.bool_),
        ),
        generators=arrays["generators"].tobytes() if "generators" in arrays else b"",
    )


def read_array(store: Store, tree: Tree, step: int, name: str, commit: CheckpointCommit) -> NDArray[Any]:
    """One array of a checkpoint, checked against its digest.

    Args:
        store: where the log lies.
        tree: of the log.
        step: of the checkpoint.
        name: of the array.
        commit: what the commit record says of the checkpoint.

    Returns:
        Its elements.

    Raises:
        ChunkError: the bytes can't be read or don't have the committed digest.
        FileNotFoundError: an object isn't there.
    """
    values: NDArray[Any] = read_rows(store, tree.vector(step, name, commit), 1, commit.blake3[name])[0]
    return values


def _arrays(checkpoint: Checkpoint) -> dict[str, NDArray[Any]]:
    state = checkpoint.optimizer
    arrays: dict[str, NDArray[Any]] = {"parameters": checkpoint.parameters, "present": state.present.astype(np.uint8)}
    arrays |= {f"optimizer/{name}": values for name, values in {**state.vectors, **state.scalars}.items()}
    if checkpoint.generators:
        arrays["generators"] = np.frombuffer(checkpoint.generators, np.uint8)
    return arrays


def _write_vector(store: Store, grid: Grid, values: NDArray[Any], threads: int) -> None:
    writer = VectorWriter(store, grid)
    spans = (values[start : start + grid.chunk] for start in range(0, max(1, len(values)), grid.chunk))
    in_order(writer.compress, spans, writer.add, threads)
