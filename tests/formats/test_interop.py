"""A log read by the words of its format alone: with Zarr and numpy, without this package."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zarr
from blake3 import blake3
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tests.formats.conftest import Run

MakeRun = Callable[..., "Run"]
WriteRun = Callable[..., Path]
NUM_STEPS = 18  # more than a shard holds
BLOCK = 256


class PlainLog:
    """What anyone can make of a log with Zarr and numpy.

    Attributes:
        path: the log's folder.
        manifest: the root's attributes.
        commit: the commit record.
        group: the generation that it names.
    """

    def __init__(self, path: Path) -> None:
        """Opens the groups."""
        self.path = path
        root = zarr.open_group(str(path), mode="r")
        self.manifest: Any = dict(root.attrs)
        self.commit: Any = dict(zarr.open_group(str(path / "commit"), mode="r").attrs)
        self.group = path / f"generation-{self.commit['generation']}"

    def array(self, name: str) -> NDArray[Any]:
        """A whole array."""
        opened = zarr.open_array(str(self.group / name), mode="r")
        return np.asarray(opened[...])

    def table(self, name: str) -> NDArray[Any]:
        """The committed rows of a table, whose digest must be right."""
        committed = self.commit["tables"][name]
        rows: NDArray[Any] = self.array(name)[: committed["rows"]]
        assert hashlib.sha256(rows.tobytes()).hexdigest() == committed["sha256"]
        return rows

    def checkpoint(self, step: int, name: str) -> NDArray[Any]:
        """An array of a checkpoint, whose digest must be right."""
        values = self.array(f"checkpoints/{step:08d}/{name}")
        assert blake3(values.tobytes()).hexdigest() == self.commit["checkpoints"][str(step)]["blake3"][name]
        return values

    def rows(self, table: str, row: int) -> range:
        """The rows of the finer table that a row covers."""
        stops = self.table(table)
        return range(int(stops[row - 1]) if row else 0, int(stops[row]))


def undo_zigzag(bits: NDArray[Any], update: NDArray[Any]) -> NDArray[Any]:
    """The lossless codec: a zigzag difference of bit patterns, modulo their width."""
    return np.asarray(bits + ((update >> 1) ^ (0 - (update & 1))), bits.dtype)


def add_codes(bits: NDArray[Any], codes: NDArray[Any], scales: NDArray[Any]) -> NDArray[Any]:
    """The lossy codecs, for float32 without denormals: a number a block times the codes."""
    values = bits.view(np.float32) + codes.astype(np.float32) * np.repeat(scales, BLOCK)[: len(codes)]
    return np.asarray(values).view(np.uint32)


def nibbles(packed: NDArray[Any], count: int) -> NDArray[Any]:
    """Two signed four-bit numbers a byte, the first in the low bits."""
    pairs = np.stack([packed & 15, packed >> 4], axis=-1).reshape(-1)[:count].astype(np.int16)
    return np.where(pairs > 7, pairs - 16, pairs)


@pytest.fixture
def write(make_run: MakeRun, write_run: WriteRun, tmp_path: Path) -> Callable[..., tuple[PlainLog, Run]]:
    """Writes a run and opens its log without this package."""

    def write_and_open(**kind: str) -> tuple[PlainLog, Run]:
        run = make_run(NUM_STEPS, **kind)
        return PlainLog(write_run(tmp_path / "log", run)), run

    return write_and_open


Write = Callable[..., tuple[PlainLog, "Run"]]


def test_the_manifest_names_the_run(write: Write) -> None:
    log, run = write()
    assert (log.manifest["schema"], log.manifest["version"]) == ("lmcleaner-log", 1)
    assert [(p["name"], p["shape"]) for p in log.manifest["parameters"]] == [
        (entry.name, list(entry.shape)) for entry in run.manifest.parameters
    ]
    assert log.manifest["optimizer"]["groups"] == list(run.manifest.optimizer.groups)


def test_the_root_is_the_digest_of_the_canonical_records(write: Write) -> None:
    log, _ = write()

    def digest(value: object) -> str:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    content = {name: value for name, value in log.commit.items() if name != "root"}
    assert digest({"manifest": digest(log.manifest), **content}) == log.commit["root"]


def test_every_step_can_be_read_from_the_tables(write: Write) -> None:
    log, run = write()
    for number, step in enumerate(run.steps):
        assert log.table("steps/lr")[number].tolist() == list(step.lr)
        assert log.table("steps/gradient_norm")[number] == step.gradient_norm
        rows = log.rows("steps/stop", number)
        for row, microbatch in zip(rows, step.microbatches, strict=True):
            assert log.table("microbatches/width")[row] == microbatch.width
            assert log.table("microbatches/loss")[row] == microbatch.loss
            state = int(log.table("microbatches/rng_row")[row])
            assert (log.table("rng/states")[state].tobytes() if state >= 0 else b"") == microbatch.rng
            for use, sample, start in zip(
                log.rows("microbatches/stop", row), microbatch.samples, microbatch.starts, strict=True
            ):
                assert log.table("occurrences/start")[use] == start
                tokens = log.rows("samples/stop", int(log.table("occurrences/sample")[use]))
                assert log.table("samples/tokens")[tokens.start : tokens.stop].tolist() == sample.tokens.tolist()
                assert log.table("samples/labels")[tokens.start : tokens.stop].tolist() == sample.labels.tolist()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_checkpoints_hold_bit_patterns(write: Write, dtype: str) -> None:
    log, run = write(dtype=dtype)
    assert sorted(map(int, log.commit["checkpoints"])) == sorted(run.checkpoints)
    for step, checkpoint in run.checkpoints.items():
        np.testing.assert_array_equal(log.checkpoint(step, "parameters"), checkpoint.parameters)
        np.testing.assert_array_equal(log.checkpoint(step, "present"), checkpoint.optimizer.present)
        for part, values in {**checkpoint.optimizer.vectors, **checkpoint.optimizer.scalars}.items():
            np.testing.assert_array_equal(log.checkpoint(step, f"optimizer/{part}"), values)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_lossless_updates_lead_to_the_parameters_of_every_step(write: Write, dtype: str) -> None:
    log, run = write(dtype=dtype)
    bits, updates = log.checkpoint(0, "parameters"), log.array("updates")
    digests = log.table("steps/parameters_blake3")
    for step in range(NUM_STEPS):
        bits = undo_zigzag(bits, updates[step])
        np.testing.assert_array_equal(bits, run.parameters[step + 1])
        assert blake3(bits.tobytes()).digest() == digests[step].tobytes()


@pytest.mark.parametrize("codec", ["int8", "int4"])
def test_lossy_updates_lead_to_the_reconstruction_of_every_step(write: Write, codec: str) -> None:
    log, run = write(updates=codec)
    bits, digests = log.checkpoint(0, "parameters"), log.table("steps/reconstruction_blake3")
    updates, scales = log.array("updates"), log.array("updates_scales")
    for step in range(NUM_STEPS):
        codes = updates[step] if codec == "int8" else nibbles(updates[step], len(bits))
        bits = add_codes(bits, codes, scales[step])
        assert blake3(bits.tobytes()).digest() == digests[step].tobytes()
        if step + 1 in log.commit["corrections"]:
            bits = undo_zigzag(bits, log.array(f"corrections/{step + 1:08d}"))
            np.testing.assert_array_equal(bits, run.parameters[step + 1])
    assert len(log.commit["corrections"]) == NUM_STEPS // run.manifest.checkpoint_every


@pytest.mark.parametrize("codec", ["lossless", "int8", "int4"])
def test_gradients_begin_at_zero_in_every_step(write: Write, codec: str) -> None:
    log, run = write(gradients=codec)
    digests, rows = log.table("steps/gradient_blake3"), log.array("gradients")
    for step, gradient in enumerate(run.gradients):
        zeros = np.zeros_like(gradient)
        if codec == "lossless":
            found = undo_zigzag(zeros, rows[step])
            np.testing.assert_array_equal(found, gradient)
        else:
            codes = rows[step] if codec == "int8" else nibbles(rows[step], len(zeros))
            found = add_codes(zeros, codes, log.array("gradients_scales")[step])
        assert blake3(found.tobytes()).digest() == digests[step].tobytes()


KINDS: list[dict[str, str]] = [
    {"updates": "lossless"},
    {"updates": "int4", "gradients": "int8", "dtype": "bfloat16"},
    {"updates": "int8", "gradients": "lossless", "dtype": "float64"},
    {"updates": "none"},
]


@pytest.mark.parametrize("kind", KINDS)
def test_zarr_finds_every_array_and_says_what_the_metadata_says(write: Write, kind: dict[str, str]) -> None:
    log, _ = write(**kind)
    nodes = dict(zarr.open_group(str(log.path), mode="r").members(max_depth=None))
    files = {file.parent.relative_to(log.path).as_posix() for file in log.path.rglob("zarr.json")} - {"."}
    assert set(nodes) == files
    for name, node in nodes.items():
        document = json.loads((log.path / name / "zarr.json").read_text())
        assert dict(node.attrs) == document["attributes"]
        if isinstance(node, zarr.Array):
            assert list(node.shape) == document["shape"]
            assert np.asarray(node[...]).size == math.prod(node.shape)  # every chunk can be decoded


def test_an_unfinished_log_can_be_read_up_to_its_last_checkpoint(
    make_run: MakeRun, write_run: WriteRun, tmp_path: Path
) -> None:
    from lmcleaner.formats.writer import LogWriter

    run = make_run(5)
    writer = LogWriter.create(tmp_path / "log", run.manifest, run.checkpoints[0])
    for step in range(4):
        writer.append(run.steps[step], run.parameters[step + 1])
        if step + 1 in run.checkpoints:
            writer.write_checkpoint(run.checkpoints[step + 1])
    log = PlainLog(tmp_path / "log")
    assert log.commit["steps"] == 3
    assert log.table("steps/lr").tolist() == [list(step.lr) for step in run.steps[:3]]
    np.testing.assert_array_equal(log.checkpoint(3, "parameters"), run.parameters[3])
    writer.close()
