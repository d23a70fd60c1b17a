"""What the tables of a log must say of each other, so that whoever reads them needn't ask."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmcleaner.formats.codecs import CODECS
from lmcleaner.formats.commit import CheckpointCommit, Commit
from lmcleaner.formats.layout import OPTIONAL_TABLES, TABLES
from lmcleaner.formats.manifest import Manifest

# Table whose rows end in another one -> a table of that level.
_STOPS = {
    "samples/stop": "samples/tokens",
    "microbatches/stop": "occurrences/sample",
    "steps/stop": "microbatches/stop",
}
# Table of row numbers -> a table of the level that they point to, and the least number.
_POINTERS = {"occurrences/sample": ("samples/stop", 0), "microbatches/rng_row": ("rng/states", -1)}
_OWN_LENGTH = {"samples/tokens", "samples/labels", "rng/states"}


def problem_of_commit(commit: Commit, manifest: Manifest) -> str | None:
    """What a commit record says that can't be, or None."""
    if set(commit.tables) - {table.name for table in OPTIONAL_TABLES} != {table.name for table in TABLES}:
        return f"expected {len(TABLES)} tables, found {sorted(commit.tables)}"
    if ("microbatches/rank" in commit.tables) != (manifest.world_size > 1 and commit.steps > 0):
        return f"microbatches/rank: expected only in a run of several processes, found {manifest.world_size}"
    for name in commit.tables:
        expected, found = _expected_rows(name, commit, manifest), commit.tables[name].rows
        if found != expected:
            return f"{name}: expected {expected} rows, found {found}"
    if 0 not in commit.checkpoints or max(commit.checkpoints) > commit.steps:
        return f"expected checkpoints of steps 0 to {commit.steps}, found {sorted(commit.checkpoints)[-1:]}"
    for step, checkpoint in commit.checkpoints.items():
        if _arrays(checkpoint) != set(checkpoint.blake3):
            return f"checkpoint {step}: expected {sorted(_arrays(checkpoint))}, found {sorted(checkpoint.blake3)}"
    if (commit.updates and manifest.updates == "none") or (commit.corrections and not _is_lossy(manifest.updates)):
        return f"expected no updates or corrections with the codec {manifest.updates}, found some"
    if commit.gradients and manifest.gradients == "none":
        return "expected no gradients without a codec, found some"
    for stack, ranges in (("updates", commit.updates), ("gradients", commit.gradients)):
        edges = [edge for kept in ranges for edge in kept]
        if edges != sorted(edges) or edges[-1:] > [commit.steps]:
            return f"{stack}: expected ascending ranges up to {commit.steps}, found {edges[:8]}"
    corrections = list(commit.corrections)
    if corrections != sorted(set(corrections)) or corrections[-1:] > [commit.steps] or 0 in corrections:
        return f"corrections: expected ascending steps from 1 to {commit.steps}, found {corrections[:8]}"
    return _problem_of_curvature(commit)


def _problem_of_curvature(commit: Commit) -> str | None:
    if commit.curvature and (0 not in commit.curvature or max(commit.curvature) >= commit.steps):
        return f"curvature: expected steps from 0 to below {commit.steps}, found {sorted(commit.curvature)[:8]}"
    for step, entry in commit.curvature.items():
        expected = {"values", "vectors"} if entry.kind == "low_rank" else {"diagonal"}
        if set(entry.blake3) != expected:
            return f"curvature {step}: expected {sorted(expected)}, found {sorted(entry.blake3)}"
        if entry.pairs > entry.rank or (entry.kind == "low_rank") != (entry.pairs > 0):
            return f"curvature {step}: expected as many eigenpairs as fit its kind and rank, found {entry.pairs}"
    return None


def problem_of_table(name: str, rows: NDArray[Any], commit: Commit, manifest: Manifest) -> str | None:
    """What a table says that can't be, or None.

    Args:
        name: of the table.
        rows: all of them.
        commit: a record without problems.
        manifest: of the same log.
    """
    if name in _STOPS:
        end = commit.tables[_STOPS[name]].rows
        last = int(rows[-1]) if len(rows) else 0
        if last != end or (np.diff(rows, prepend=0) < 0).any():
            return f"expected ends that rise to {end}, found {last} at last"
    if name in _POINTERS and len(rows):
        target, least = _POINTERS[name]
        most = commit.tables[target].rows - 1
        if rows.min() < least or rows.max() > most:
            return f"expected row numbers from {least} to {most}, found {rows.min()} to {rows.max()}"
    if name == "microbatches/rank" and len(rows) and not 0 <= rows.min() <= rows.max() < manifest.world_size:
        return f"expected ranks below {manifest.world_size}, found {rows.min()} to {rows.max()}"
    if name == "microbatches/packed" and len(rows) and rows.max() != 1:
        return f"expected 0 and 1, and a packed microbatch, found {rows.min()} to {rows.max()}"
    if name == "steps/loss_scale" and len(rows) and not (np.isfinite(rows) & (rows > 0)).all():
        return f"expected finite factors above 0, found {rows.min()} to {rows.max()}"
    if name == "steps/loss_scale" and len(rows) and (rows == 1).all():
        return "expected a factor other than 1, found none"
    if name == "steps/parameters_blake3":
        return _problem_of_parameters(rows, commit)
    return None


def _problem_of_parameters(rows: NDArray[Any], commit: Commit) -> str | None:
    """A checkpoint holds what the step before it led to, or somebody changed θ in between."""
    for step, checkpoint in commit.checkpoints.items():
        if step and rows[step - 1].tobytes().hex() != checkpoint.blake3["parameters"]:
            return f"expected the parameters that checkpoint {step} holds, found others"
    return None


def _expected_rows(name: str, commit: Commit, manifest: Manifest) -> int:
    """How many rows a table must have."""
    is_absent = {
        "steps/reconstruction_blake3": not _is_lossy(manifest.updates),
        "steps/gradient_blake3": manifest.gradients == "none",
    }
    level = name.split("/")[0]
    if level == "steps":
        return 0 if is_absent.get(name, False) else commit.steps
    if name == "samples/labels":
        return commit.tables["samples/tokens"].rows
    if name in _OWN_LENGTH:
        return commit.tables[name].rows
    first = next(table.name for table in TABLES if table.name.startswith(level + "/"))
    return commit.tables[first].rows


def _is_lossy(codec: str) -> bool:
    return codec in CODECS and CODECS[codec].is_lossy


def _arrays(checkpoint: CheckpointCommit) -> set[str]:
    states = {f"optimizer/{part}" for part in (*checkpoint.dtypes, *checkpoint.scalars)}
    generators = {"generators"} if checkpoint.generator_bytes else set()
    return {"parameters", "present", *states, *generators}
