"""Logs that were written once are read for ever: by the package, through Zarr alone, by the specification alone."""

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
import zarr
from blake3 import blake3
from numcodecs import blosc
from numpy.typing import NDArray
from zarr.storage import MemoryStore

from lmcleaner.formats import golden
from lmcleaner.formats.curvature import read_curvature
from lmcleaner.formats.golden.make import EXPECTED, LOG, expected_of, write_expected, write_log
from lmcleaner.formats.golden.runs import GOLDEN, Golden
from lmcleaner.formats.layout import OPTIONAL_TABLES, TABLES
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.store import open_store

FOLDER = Path(next(iter(golden.__path__)))
README = (FOLDER.parent / "README.md").read_text(encoding="utf-8")
FOLDERS = sorted(path.parent for path in FOLDER.glob(f"*/{EXPECTED}"))
SPAN, SHARD_STEPS, SHARD_BYTES = 1 << 18, 16, 1 << 25
BITS = {"float32": "<u4", "bfloat16": "<u2", "float64": "<u8", "uint8": "u1"}

Array = NDArray[Any]
golden_logs = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)


def tables_of_the_readme() -> dict[str, tuple[str, str, int]]:
    """Table -> dtype, row and rows in a chunk, as the specification has them."""
    rows = re.findall(r"^\| `(\w+/\w+)` \| (\w+) \| (\S+) \| ([\d,]+) \|", README, re.MULTILINE)
    return {name: (dtype, row, int(chunk.replace(",", ""))) for name, dtype, row, chunk in rows}


class View(Protocol):
    """A log as one of the readers below sees it."""

    manifest: dict[str, Any]
    commit: dict[str, Any]

    def table(self, name: str) -> Array:
        """All committed rows."""

    def row(self, stack: str, step: int) -> Array:
        """A step's row of updates, gradients or their scales."""

    def vector(self, name: str) -> Array:
        """A correction or an array of a checkpoint."""


class ThroughZarr:
    """Reads with zarr and json, and believes the metadata."""

    def __init__(self, path: Path) -> None:
        root = zarr.open_group(path, mode="r", zarr_format=3)
        self.manifest: dict[str, Any] = dict(root.attrs)
        self.commit: dict[str, Any] = dict(zarr.open_group(path / "commit", mode="r", zarr_format=3).attrs)
        self._path = path / f"generation-{self.commit['generation']}"

    def table(self, name: str) -> Array:
        return self._array(name)[: self.commit["tables"][name]["rows"]]

    def row(self, stack: str, step: int) -> Array:
        return np.asarray(self._open(stack)[step])

    def vector(self, name: str) -> Array:
        return self._array(name)

    def _array(self, name: str) -> Array:
        return np.asarray(self._open(name)[:])

    def _open(self, name: str) -> Any:
        return zarr.open_array(self._path / name, mode="r", zarr_format=3)


class BySpecification:
    """Reads with the standard library, numpy and Blosc, by what README.md says, without the arrays' metadata."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.manifest, self.manifest_bytes = self._document("")
        self.commit, self.commit_bytes = self._document("commit")
        self._path = path / f"generation-{self.commit['generation']}"
        self._bits = BITS[self.manifest["model"]["dtype"]]
        self._count = sum(math.prod(entry["shape"]) for entry in self.manifest["parameters"])

    def table(self, name: str) -> Array:
        dtype, row, chunk = tables_of_the_readme()[name]
        widths = {
            "–": (),
            "groups": (len(self.manifest["optimizer"]["groups"]),),
            "rng_bytes": (self.manifest["numerics"]["rng_bytes"],),
        }
        columns = widths.get(row) if row in widths else (int(row),)
        assert columns is not None
        num_rows = self.commit["tables"][name]["rows"]
        blocks = [np.empty((0, *columns), dtype)]
        for number in range(math.ceil(num_rows / chunk)):
            key = "/".join([name, "c", str(number), *("0" for _ in columns)])
            block = unpacked((self._path / key).read_bytes(), dtype, chunk * math.prod(columns))
            blocks.append(block.reshape(chunk, *columns))
        return np.concatenate(blocks)[:num_rows]

    def row(self, stack: str, step: int) -> Array:
        steps = max(1, min(SHARD_STEPS, (1 << 22) // self._count))
        dtype, elements = self._coded(stack)
        size = math.ceil(min(self._count, SPAN) / elements)
        chunks = min(math.ceil(self._count / SPAN), SHARD_BYTES // (size * np.dtype(dtype).itemsize))
        parts = []
        for span in range(math.ceil(self._count / SPAN)):
            shard = self._path / stack / "c" / str(step // steps) / str(span // chunks)
            data = chunk_of(shard.read_bytes(), steps * chunks, step % steps * chunks + span % chunks)
            parts.append(unpacked(data, dtype, size))
        return np.concatenate(parts)[: math.ceil(self._count / elements)]

    def vector(self, name: str) -> Array:
        if name.endswith("/vectors"):
            entry = self.commit["curvature"][str(int(name.split("/")[1]))]
            return np.stack([self.row(name, pair) for pair in range(entry["pairs"])])
        dtype, length = self._vector_type(name)
        size = max(1, min(length, SPAN))
        chunks = max(1, min(math.ceil(length / SPAN), SHARD_BYTES // (size * np.dtype(dtype).itemsize)))
        parts = []
        for span in range(math.ceil(length / SPAN)):
            shard = (self._path / name / "c" / str(span // chunks)).read_bytes()
            parts.append(unpacked(chunk_of(shard, chunks, span % chunks), dtype, size))
        return np.concatenate(parts)[:length]

    def _coded(self, stack: str) -> tuple[str, int]:
        """Dtype of a stored element, and how many of the parameters' it stands for."""
        if stack.startswith("curvature"):
            return ("<f8" if self._bits == "<u8" else "<f4"), 1
        kinds = {"lossless": (self._bits, 1), "int8": ("i1", 1), "int4": ("u1", 2)}
        return ("<f4", 256) if stack.endswith("_scales") else kinds[self.manifest[stack]]

    def _vector_type(self, name: str) -> tuple[str, int]:
        if name.startswith("corrections"):
            return self._bits, self._count
        kind, step, part = name.split("/", 2)
        if kind == "curvature":
            return self._estimate_type(self.commit["curvature"][str(int(step))], part)
        checkpoint, num_parameters = self.commit["checkpoints"][str(int(step))], len(self.manifest["parameters"])
        types = {
            "parameters": (self._bits, self._count),
            "present": ("u1", num_parameters),
            "generators": ("u1", checkpoint["generator_bytes"]),
        }
        types |= {f"optimizer/{name}": (BITS[dtype], self._count) for name, dtype in checkpoint["dtypes"].items()}
        types |= {f"optimizer/{name}": ("<f8", num_parameters) for name in checkpoint["scalars"]}
        return types[part]

    def _estimate_type(self, entry: dict[str, Any], part: str) -> tuple[str, int]:
        dtype = "<f8" if self.manifest["model"]["dtype"] == "float64" else "<f4"
        return dtype, entry["pairs"] if part == "values" else self._count

    def _document(self, group: str) -> tuple[dict[str, Any], bytes]:
        """Attributes of a group, and the bytes that they are."""
        data = (self._path / group / "zarr.json").read_bytes()
        head, tail = b'{"attributes":', b',"node_type":"group","zarr_format":3}'
        assert data.startswith(head)
        assert data.endswith(tail)
        inner = data[len(head) : -len(tail)]
        return json.loads(inner), inner


def chunk_of(shard: bytes, places: int, number: int) -> bytes:
    """One chunk of a shard."""
    tail = shard[-16 * places - 4 :]
    assert crc32c(tail[:-4]) == int.from_bytes(tail[-4:], "little")
    start, size = np.frombuffer(tail[:-4], "<u8").reshape(places, 2)[number].tolist()
    return shard[start : start + size]


def unpacked(chunk: bytes, dtype: str, num_elements: int) -> Array:
    """The elements of a chunk."""
    frame, checksum = chunk[:-4], int.from_bytes(chunk[-4:], "little")
    size = num_elements * np.dtype(dtype).itemsize
    assert crc32c(frame) == checksum
    assert [size, len(frame)] == [int.from_bytes(frame[at : at + 4], "little") for at in (4, 12)]
    return np.frombuffer(blosc.decompress(frame), np.dtype(dtype).newbyteorder("<"))


def crc32c(data: bytes) -> int:
    """CRC-32C, bit by bit for each value of a byte."""
    value = 0xFFFFFFFF
    for byte in data:
        value = CRC_OF_BYTE[(value ^ byte) & 0xFF] ^ (value >> 8)
    return value ^ 0xFFFFFFFF


def _crc_of_byte(byte: int) -> int:
    for _ in range(8):
        byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)
    return byte


CRC_OF_BYTE = [_crc_of_byte(byte) for byte in range(256)]


def decoded(view: View, stack: str, step: int, before: Array) -> Array:
    """What a row of updates or gradients makes of bit patterns."""
    codec, dtype = view.manifest[stack], view.manifest["model"]["dtype"]
    if codec == "lossless":
        return after_lossless(before, view.row(stack, step))
    codes, scales = view.row(stack, step), view.row(f"{stack}_scales", step)
    if codec == "int4":
        nibbles = np.stack([codes & 15, codes >> 4], axis=1).reshape(-1)[: len(before)].astype(np.int16)
        codes = np.where(nibbles > 7, nibbles - 16, nibbles)
    wide = np.float64 if dtype == "float64" else np.float32
    product = codes.astype(wide) * np.repeat(scales, 256)[: len(before)].astype(wide)
    return bits_of(flushed(before, dtype) + product, dtype)


def after_lossless(before: Array, update: Array) -> Array:
    """A lossless update, with Python's own whole numbers where an element changes."""
    ones = (1 << before.dtype.itemsize * 8) - 1
    after = before.copy()
    for place in np.flatnonzero(update).tolist():
        zigzag = int(update[place])
        difference = (zigzag >> 1) ^ (ones if zigzag & 1 else 0)
        after[place] = (int(before[place]) + difference) & ones
    return after


def flushed(bits: Array, dtype: str) -> Array:
    """The numbers, +0.0 for denormals and -0.0."""
    wide = bits.astype("<u4") << 16 if dtype == "bfloat16" else bits
    values = wide.view("<f8" if dtype == "float64" else "<f4").copy()
    values[np.abs(values) < np.finfo(values.dtype).tiny] = 0.0
    return values


def bits_of(values: Array, dtype: str) -> Array:
    """Bit patterns; bfloat16 is rounded to nearest, ties to even."""
    bits = values.view("<u8" if dtype == "float64" else "<u4")
    if dtype != "bfloat16":
        return bits
    kept, rest = bits >> 16, bits & 0xFFFF
    is_up = (rest > 0x8000) | ((rest == 0x8000) & (kept & 1 == 1))
    return np.asarray(kept + is_up).astype("<u2")


def trajectory(view: View) -> Iterator[tuple[Array, Array]]:
    """r[t] before a correction, and after it, for t from 1 to τ, from the checkpoint of step 0.

    Yields:
        Bit patterns.
    """
    bits = view.vector("checkpoints/00000000/parameters")
    for step in range(view.commit["steps"]):
        found = decoded(view, "updates", step, bits)
        bits = found
        if step + 1 in view.commit["corrections"]:
            bits = after_lossless(found, view.vector(f"corrections/{step + 1:08d}"))
        yield found, bits


def digest_of(values: Array) -> str:
    return blake3(np.ascontiguousarray(values).tobytes()).hexdigest()


def plain(name: str, rows: Array) -> list[Any]:
    """A table as `expected.json` has it."""
    is_bytes = rows.dtype == np.uint8 and rows.ndim == 2
    return [row.tobytes().hex() for row in rows] if is_bytes else list(rows.tolist())


def expected(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / EXPECTED).read_text(encoding="utf-8"))
    return document


def test_every_kind_of_golden_log_is_there() -> None:
    assert {made.name for made in GOLDEN} <= {folder.name for folder in FOLDERS}


@golden_logs
def test_the_package_reads_it(folder: Path) -> None:
    log, wanted = TrainingLog(folder / LOG), expected(folder)
    assert {name: plain(name, log.table(name)) for name in log.commit.tables} == wanted["tables"]
    for step, arrays in wanted["checkpoints"].items():
        assert {name: digest_of(log.checkpoint_array(int(step), name)) for name in arrays} == arrays
    for step, entry in wanted.get("curvature", {}).items():
        found = read_curvature(log, int(step))
        assert {name: digest_of(values) for name, values in found.arrays.items()} == entry["blake3"]
        assert (found.kind, found.rank, found.trace) == (entry["kind"], entry["rank"], entry["trace"])
    gradients = [digest_of(log.gradient(step)) for step in range(len(wanted["gradient_blake3"]))]
    assert gradients == wanted["gradient_blake3"]
    for step, digest in enumerate(wanted["reconstruction_blake3"], start=1):
        is_the_runs_own = step in log.commit.checkpoints
        assert digest_of(log.parameters(step)) == (wanted["parameters_blake3"][step] if is_the_runs_own else digest)


@golden_logs
@pytest.mark.parametrize("reader", [ThroughZarr, BySpecification])
def test_another_reader_finds_the_same(folder: Path, reader: Callable[[Path], View]) -> None:
    view, wanted = reader(folder / LOG), expected(folder)
    assert {name: plain(name, view.table(name)) for name in view.commit["tables"]} == wanted["tables"]
    for step, arrays in wanted["checkpoints"].items():
        assert {name: digest_of(view.vector(f"checkpoints/{int(step):08d}/{name}")) for name in arrays} == arrays
    for step, entry in wanted.get("curvature", {}).items():
        places = {name: f"curvature/{int(step):08d}/{name}" for name in entry["blake3"]}
        assert {name: digest_of(view.vector(place)) for name, place in places.items()} == entry["blake3"]
    zeros = np.zeros_like(view.vector("checkpoints/00000000/parameters"))
    gradients = [digest_of(decoded(view, "gradients", t, zeros)) for t in range(len(wanted["gradient_blake3"]))]
    assert gradients == wanted["gradient_blake3"]


@golden_logs
@pytest.mark.parametrize("reader", [ThroughZarr, BySpecification])
def test_another_reader_follows_the_run_through_its_updates(folder: Path, reader: Callable[[Path], View]) -> None:
    view, wanted = reader(folder / LOG), expected(folder)
    if view.manifest["updates"] == "none":
        assert wanted["reconstruction_blake3"] == []
        return
    corrected = {step: wanted["parameters_blake3"][step] for step in view.commit["corrections"]}
    digests = wanted["reconstruction_blake3"]
    for step, (found, after) in enumerate(trajectory(view), start=1):
        assert digest_of(found) == digests[step - 1], step
        assert digest_of(after) == corrected.get(step, digests[step - 1]), step
    assert len(digests) == view.commit["steps"]


@golden_logs
def test_its_root_follows_from_its_bytes_and_its_tables(folder: Path) -> None:
    view = BySpecification(folder / LOG)
    manifest = hashlib.sha256(view.manifest_bytes).hexdigest()
    head, _, tail = view.commit_bytes.rpartition(b'"root":"')
    content = head + b'"manifest":"' + manifest.encode() + tail[64:]
    assert hashlib.sha256(content).hexdigest() == view.commit["root"]
    for name, table in view.commit["tables"].items():
        assert hashlib.sha256(view.table(name).tobytes()).hexdigest() == table["sha256"], name


@pytest.mark.parametrize("made", GOLDEN, ids=lambda made: made.name)
def test_the_same_run_still_gives_the_same_log(made: Golden, tmp_path: Path) -> None:
    store = open_store(MemoryStore(), writable=True)
    run = write_log(store, made)
    write_expected(tmp_path / EXPECTED, expected_of(run))
    assert expected(tmp_path) == expected(FOLDER / made.name)
    assert TrainingLog(store).root == TrainingLog(FOLDER / made.name / LOG).root


def test_the_specification_lists_the_tables_that_a_log_has() -> None:
    rows = {(): "–", (32,): "32"}
    assert tables_of_the_readme() == {
        table.name: (table.dtype.name, table.width or rows[table.columns], table.chunk_rows)
        for table in (*TABLES, *OPTIONAL_TABLES)
    }


def test_the_golden_logs_cover_what_a_log_can_hold() -> None:
    views = [BySpecification(folder / LOG) for folder in FOLDERS]
    assert {view.manifest["updates"] for view in views} == {"lossless", "int8", "int4", "none"}
    parts = [entry["dtypes"] for view in views for entry in view.commit["checkpoints"].values()]
    assert {view.manifest["model"]["dtype"] for view in views} == {"float32", "bfloat16", "float64"}
    assert {dtype for dtypes in parts for dtype in dtypes.values()} == set(BITS)
    assert any(view.commit["generation"] for view in views)
    estimates = [entry for view in views for entry in view.commit.get("curvature", {}).values()]
    assert {entry["kind"] == "low_rank" for entry in estimates} == {True, False}
    assert any("steps/unclipped_norm" in view.commit["tables"] for view in views)
    assert any(view.manifest.get("world_size", 1) > 1 and view.table("microbatches/rank").any() for view in views)
    assert any(
        view.table("microbatches/packed").any() for view in views if "microbatches/packed" in view.commit["tables"]
    )
    assert any("steps/loss_scale" in view.commit["tables"] for view in views)
    assert any(view.table("samples/redacted").any() for view in views)
    assert any(len(list((folder / LOG).glob("generation-*/updates/c/*"))) > 1 for folder in FOLDERS)
