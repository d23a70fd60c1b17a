"""Logs made to do harm: each change keeps every digest of the log right, so that only what is read can show it."""

import json
import math
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from lmcleaner.formats.arrays import group_metadata
from lmcleaner.formats.canonical import canonical_json, json_digest, sha256_hex
from lmcleaner.formats.chunks import encode_chunk
from lmcleaner.formats.layout import TABLES
from lmcleaner.formats.reader import TrainingLog

Document = dict[str, Any]
NUM_STEPS = 4  # of the log that is changed
TABLE_NAMES = [table.name for table in TABLES]


def attributes(log: Path, group: str = "") -> Document:
    document: Document = json.loads((log / group / "zarr.json").read_text())["attributes"]
    return document


def forge(log: Path, manifest: Any = None, commit: Any = None) -> None:
    """Replaces the manifest, the commit record or both, under a root that is right again."""
    manifest = attributes(log) if manifest is None else manifest
    commit = attributes(log, "commit") if commit is None else commit
    (log / "zarr.json").write_bytes(group_metadata(manifest))
    if isinstance(commit, dict):
        content = {name: value for name, value in commit.items() if name != "root"}
        commit = {**content, "root": json_digest({"manifest": json_digest(manifest), **content})}
    (log / "commit" / "zarr.json").write_bytes(canonical_json(plain_group(commit)))


def plain_group(content: Any) -> Document:
    return {"zarr_format": 3, "node_type": "group", "attributes": content}


def forge_table(log: Path, name: str, rows: Any, *, claimed: int | None = None) -> None:
    """Replaces a table's rows, of which there are fewer than a chunk takes, under a digest that is right."""
    opened = TrainingLog(log)
    layout = opened.tree.tables[name]
    values = np.asarray(rows, layout.dtype).reshape(-1, *layout.row)
    chunk = log / opened.tree.path(name) / "c" / "/".join("0" * len(layout.chunk))
    chunk.parent.mkdir(parents=True, exist_ok=True)
    chunk.write_bytes(encode_chunk(values, math.prod(layout.chunk), layout.compression))
    commit = attributes(log, "commit")
    commit["tables"][name] = {
        "rows": len(values) if claimed is None else claimed,
        "sha256": sha256_hex(values.tobytes()),
    }
    forge(log, commit=commit)


def checked(content: bytes) -> bytes:
    """Content and its CRC-32C."""
    return content + int(google_crc32c.value(content)).to_bytes(4, "little")


def shard_of(file: Path, chunks: list[bytes], index: list[tuple[int, int]] | None = None) -> None:
    """Writes a shard; its index says what is given, or the truth."""
    if index is None:
        edges = np.cumsum([0, *map(len, chunks)]).tolist()
        index = list(zip(edges[:-1], map(len, chunks), strict=True))
    content = np.array(index, "<u8").tobytes()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"".join([*chunks, checked(content)]))


def claim_rows(log: Path) -> None:
    """Every table of a level claims rows that nobody could hold, and a chunk of zeros is there for the first ones."""
    commit = attributes(log, "commit")
    for name in TABLE_NAMES:
        if name.startswith(("rng/", "occurrences/")):
            commit["tables"][name]["rows"] = 10**12
    forge(log, commit=commit)


def claim_steps(log: Path) -> None:
    """The log claims steps that nobody could have taken, with updates and a table row for each."""
    commit = attributes(log, "commit")
    commit["steps"] = 10**12
    commit["updates"] = [[0, 10**12]]
    for name in TABLE_NAMES:
        if name.startswith("steps/") and commit["tables"][name]["rows"]:
            commit["tables"][name]["rows"] = 10**12
    forge(log, commit=commit)


def claim_elements(log: Path) -> None:
    """One parameter has as many elements as the schema lets it have."""
    manifest = attributes(log)
    first = manifest["parameters"][0]
    manifest["parameters"] = [first | {"shape": [2**19, 2**19], "offset": 0}]
    forge(log, manifest=manifest)


def claim_elements_and_shards(log: Path) -> None:
    """As above, and the first shard of a checkpoint holds what it must."""
    claim_elements(log)
    grid = TrainingLog(log).tree.vector(0, "parameters", TrainingLog(log).commit.checkpoints[0])
    chunk = encode_chunk(np.zeros(grid.chunk, grid.layout.dtype), grid.chunk, grid.layout.compression)
    shard_of(log / grid.key(0, 0), [chunk] * grid.shard_chunks)


def claim_small_chunk(log: Path) -> None:
    """A Blosc frame says that two gigabytes come out of it."""
    chunk = log / "generation-0" / "samples" / "tokens" / "c" / "0"
    frame = bytearray(chunk.read_bytes()[:-4])
    frame[4:8] = (2**31 - 17).to_bytes(4, "little")
    chunk.write_bytes(checked(bytes(frame)))


def claim_blocks(log: Path) -> None:
    """A Blosc frame says that its blocks are of another size than they are."""
    chunk = log / "generation-0" / "samples" / "tokens" / "c" / "0"
    frame = bytearray(chunk.read_bytes()[:-4])
    frame[8:12] = (1).to_bytes(4, "little")
    chunk.write_bytes(checked(bytes(frame)))


def sparse_file(log: Path) -> None:
    """An update is a hole of ten gigabytes."""
    with (log / "generation-0" / "updates" / "c" / "0" / "0").open("wb") as file:
        file.truncate(10 * 2**30)


def sparse_chunk(log: Path) -> None:
    """A table's chunk is a hole of ten gigabytes."""
    with (log / "generation-0" / "samples" / "tokens" / "c" / "0").open("wb") as file:
        file.truncate(10 * 2**30)


def sparse_metadata(log: Path) -> None:
    """The metadata of an array is a hole of ten gigabytes."""
    with (log / "generation-0" / "samples" / "tokens" / "zarr.json").open("wb") as file:
        file.truncate(10 * 2**30)


def sparse_manifest(log: Path) -> None:
    """The manifest is a hole of ten gigabytes."""
    with (log / "zarr.json").open("wb") as file:
        file.truncate(10 * 2**30)


def sparse_entry(log: Path) -> None:
    """An entry of the request ledger is a hole of ten gigabytes."""
    (log / "ledger" / "00000000").mkdir(parents=True)
    with (log / "ledger" / "00000000" / "zarr.json").open("wb") as file:
        file.truncate(10 * 2**30)


def large_entry(log: Path) -> None:
    """An entry of the request ledger as large as it may be, of steps."""
    (log / "ledger" / "00000000").mkdir(parents=True)
    request = {"level": "batch", "named": "steps", "samples": ["ab" * 32], "steps": [10**12] * (10**6)}
    entry: Document = dict.fromkeys(("previous", "forget_set", "audit_sha256", "model_after", "time"), "ab" * 32)
    entry |= {"number": 0, "requests": [request]}
    content = group_metadata(entry | {"sha256": json_digest(entry)})
    (log / "ledger" / "00000000" / "zarr.json").write_bytes(content)


def many_corrections(log: Path) -> None:
    """A commit record as large as it may be, of numbers."""
    commit = attributes(log, "commit")
    commit["corrections"] = list(range(1, 500_000))
    forge(log, commit=commit)


def many_parameters(log: Path) -> None:
    """A manifest as large as it may be, of parameters."""
    manifest = attributes(log)
    manifest["parameters"] = [
        {"name": f"p{number}", "shape": [2**20], "offset": number << 20, "group": 0, "index": number}
        for number in range(50_000)
    ]
    forge(log, manifest=manifest)


def many_checkpoints(log: Path) -> None:
    """A commit record as large as it may be, of checkpoints that aren't there."""
    commit = attributes(log, "commit")
    entry = commit["checkpoints"]["0"] | {"dtypes": {}, "scalars": []}
    entry["blake3"] = dict.fromkeys(("parameters", "present"), "ab" * 32)
    commit["checkpoints"] |= {str(step): entry for step in range(1, NUM_STEPS)}
    commit["history"] = [
        {"kind": "pruning", "time": "", "root_before": "ab" * 32, "details": {"a": [number]}}
        for number in range(20_000)
    ]
    forge(log, commit=commit)


WORST = [
    claim_rows,
    claim_steps,
    claim_elements,
    claim_elements_and_shards,
    claim_small_chunk,
    claim_blocks,
    sparse_file,
    sparse_chunk,
    sparse_metadata,
    sparse_manifest,
    sparse_entry,
    large_entry,
    many_corrections,
    many_parameters,
    many_checkpoints,
]
