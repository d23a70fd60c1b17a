"""Damages a training log, one change after the other, and prints which were noticed.

    python benchmarks/damage.py [LOG] [--flips 1000] [--cuts 200]

Flips single bits, cuts files off and deletes files of a copy of the log, and mends each before the next. Every change
must be found by `verify`, and everything that is read must be refused or be what was written. Without a log it makes
one of each kind. Exits with 1 if any change goes unnoticed, or is noticed without its place.
"""

import argparse
import hashlib
import os
import platform
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from lmcleaner.formats.bits import Bits
from lmcleaner.formats.errors import DamagedError, LmcleanerError, NotFoundError, VersionError
from lmcleaner.formats.layout import TABLES
from lmcleaner.formats.manifest import CodecName, Manifest, ModelEntry, NumericsEntry, OptimizerEntry, ParameterEntry
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.samples import Sample
from lmcleaner.formats.steps import Checkpoint, MicrobatchRecord, OptimizerVectors, StepRecord
from lmcleaner.formats.verify import find_problems
from lmcleaner.formats.window import WindowStep
from lmcleaner.formats.writer import LogWriter

KINDS: list[tuple[CodecName, CodecName]] = [("lossless", "none"), ("int8", "int4"), ("none", "lossless")]
STEPS = 20  # more than a shard holds
CHECKPOINT_EVERY = 8
SHAPES = {"embedding": (40, 8), "head": (8, 40)}
ELEMENTS = 640
OUTSIDE = (DamagedError, NotFoundError, VersionError)


def make_log(folder: Path, updates: CodecName, gradients: CodecName) -> Path:
    """Writes a run of random numbers."""
    rng = np.random.default_rng(0)
    theta, path = rng.normal(size=ELEMENTS).astype(np.float32), folder / f"{updates}-{gradients}"
    with LogWriter.create(path, _manifest(updates, gradients), _checkpoint(0, theta)) as writer:
        for step in range(1, STEPS + 1):
            gradient = rng.normal(size=ELEMENTS).astype(np.float32)
            theta = theta - np.float32(1e-3) * gradient
            writer.append(_step(rng), _bits(theta), None if gradients == "none" else _bits(gradient))
            if step % CHECKPOINT_EVERY == 0:
                writer.write_checkpoint(_checkpoint(step, theta))
        writer.write_checkpoint(_checkpoint(STEPS, theta))
        writer.commit(finished=True)
    return path


def _bits(values: np.ndarray) -> Bits:
    return values.copy().view(np.uint32)


def _manifest(updates: CodecName, gradients: CodecName) -> Manifest:
    offsets = [0, 320]
    return Manifest(
        created="2026-01-02T03:04:05+00:00",
        model=ModelEntry(
            source="made here", class_name="Model", fingerprint="ab" * 32, dtype="float32", forward_arguments={}
        ),
        parameters=tuple(
            ParameterEntry(name=name, shape=shape, offset=offset, group=0, index=index)
            for index, ((name, shape), offset) in enumerate(zip(SHAPES.items(), offsets, strict=True))
        ),
        optimizer=OptimizerEntry(name="AdamW", groups=({"lr": 1e-3},)),
        max_grad_norm=1.0, loss_divisor=1.0, padding_token=0,
        numerics=NumericsEntry(
            device="cpu", device_name="made up", threads=1, flush_denormal=True, deterministic=False,
            attention="sdpa", rng_bytes=32,
        ),
        updates=updates, gradients=gradients, checkpoint_every=CHECKPOINT_EVERY, planned_steps=STEPS,
        data={}, tokenizer={}, training={}, environment={},
    )  # fmt: skip


def _checkpoint(step: int, theta: np.ndarray) -> Checkpoint:
    state = OptimizerVectors(
        vectors={"exp_avg": _bits(theta * 2)}, dtypes={"exp_avg": "float32"},
        scalars={"step": np.full(len(SHAPES), float(step))}, present=np.ones(len(SHAPES), np.bool_),
    )  # fmt: skip
    return Checkpoint(step=step, parameters=_bits(theta), optimizer=state, generators=bytes(range(64)))


def _step(rng: np.random.Generator) -> StepRecord:
    tokens = rng.integers(1, 40, (2, 12), dtype=np.int32)
    microbatch = MicrobatchRecord(
        samples=tuple(Sample(row, row) for row in tokens), starts=(0, 0), width=12, has_mask=True, denominator=22.0,
        loss=float(rng.random()), rng=rng.bytes(32),
    )  # fmt: skip
    return StepRecord(microbatches=(microbatch,), lr=(1e-3,), gradient_norm=1.0, seconds=0.1)


def reads(log: TrainingLog) -> dict[str, Callable[[], object]]:
    """Everything that a reader can get, by name."""
    found: dict[str, Callable[[], object]] = {
        table.name: partial(_digest_of, log.table, table.name) for table in TABLES
    }
    for step in log.checkpoint_steps:
        for name in log.commit.checkpoints[step].blake3:
            found[f"{step}/{name}"] = partial(_digest_of, log.checkpoint_array, step, name)
    if log.has_updates:
        for step in range(log.num_steps + 1):
            found[f"theta {step}"] = partial(_digest_of, log.parameters, step)
        found["sweep"] = lambda: [_of_step(step) for step in log.window(0, log.num_steps + 1)]
    if log.manifest.gradients != "none":
        for step in range(log.num_steps):
            found[f"gradient {step}"] = partial(_digest_of, log.gradient, step)
    return found


def _digest_of(read: Callable[..., np.ndarray], *arguments: object) -> bytes:
    return hashlib.sha256(read(*arguments).tobytes()).digest()


def _of_step(step: WindowStep) -> bytes:
    return hashlib.sha256(b"".join(values.tobytes() for values in step.parameters.values())).digest()


def sweep_without_checkpoints(log: TrainingLog) -> None:
    """Walks all updates from the start: a damaged update before a checkpoint is noticed only so."""
    if log.has_updates:
        log.reconstruct(0).advance_to(log.num_steps)


class Outcome:
    """What became of one change.

    Attributes:
        by_verify: whether verify found it.
        by_read: whether a read refused.
        wrong: names of what was read and isn't what was written.
        is_placed: whether what was reported names the damaged array.
        is_refused: whether the log can't be opened any more.
    """

    def __init__(self, path: Path, file: Path, expected: dict[str, object]) -> None:
        """Verifies and reads everything."""
        self.by_verify = self.by_read = self.is_placed = self.is_refused = False
        self.wrong: list[str] = []
        try:
            log = TrainingLog(path)
        except OUTSIDE:
            self.by_verify = self.by_read = self.is_refused = True
            self.is_placed = len(file.parts) <= 2  # the manifest and the commit record are all that opening needs
            return
        problems = [problem for problem in find_problems(log) if problem and problem.kind == "damaged"]
        self.by_verify = bool(problems)
        self.is_placed = array_of(file) in {array_of(Path(problem.array)) for problem in problems}
        self._read(log, expected)

    def _read(self, log: TrainingLog, expected: dict[str, object]) -> None:
        attempts = reads(log) | {"walk": partial(sweep_without_checkpoints, log)}
        for name, read in attempts.items():
            try:
                if read() != expected[name]:
                    self.wrong.append(name)
            except LmcleanerError:
                self.by_read = True


def array_of(file: Path) -> str:
    """The array that a file belongs to, as problems name it: a correction is part of the updates."""
    array = file.as_posix().partition("/c/")[0].removeprefix("generation-0/").removesuffix("_scales")
    return "updates" if array.startswith("corrections/") and not array.endswith(".json") else array


def flip(file: Path, chance: random.Random) -> None:
    """Flips one bit."""
    content = bytearray(file.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    file.write_bytes(content)


def cut(file: Path, chance: random.Random) -> None:
    """Cuts the file off."""
    os.truncate(file, chance.randrange(file.stat().st_size))


def delete(file: Path, chance: random.Random) -> None:
    """Removes the file."""
    file.unlink()


def changes(path: Path, options: argparse.Namespace) -> Iterator[tuple[str, Callable[..., None], Path]]:
    """Which files are changed, and how: bits and cuts by chance, deletions of every file.

    Yields:
        Name of the change, the change, the file.
    """
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.name != "lock.json")
    chance = random.Random(1)
    for name, change, count in (("bit flipped", flip, options.flips), ("cut off", cut, options.cuts)):
        yield from ((name, change, file) for file in chance.choices(files, k=count))
    yield from (("deleted", delete, file) for file in files)


def measure(path: Path, options: argparse.Namespace, table: Table) -> int:
    """Damages one log; how many changes went unnoticed or unplaced."""
    log = TrainingLog(path)
    expected: dict[str, object] = {name: read() for name, read in reads(log).items()} | {"walk": None}
    counts: dict[str, Counter[str]] = {}
    chance = random.Random(2)
    for kind, change, file in changes(path, options):
        content, count = file.read_bytes(), counts.setdefault(kind, Counter())
        change(file, chance)
        outcome = Outcome(path, file.relative_to(path), expected)
        file.write_bytes(content)
        is_metadata = file.name == "zarr.json" and not outcome.is_refused  # of an array: for other readers of Zarr
        count.update(
            changes=1, verify=outcome.by_verify, read=outcome.by_read, unread=is_metadata, wrong=bool(outcome.wrong),
            placed=outcome.is_placed, missed=not (
                outcome.by_verify and outcome.is_placed and (outcome.by_read or is_metadata) and not outcome.wrong
            ),
        )  # fmt: skip
    for kind, count in counts.items():
        figures = [str(count[name]) for name in ("changes", "verify", "read", "unread", "wrong", "placed", "missed")]
        table.add_row(f"{log.manifest.updates}, {log.manifest.gradients}", kind, *figures)
    return sum(count["missed"] for count in counts.values())


def main() -> None:
    """Damages copies, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", nargs="?", type=Path, help="a log to copy; without it, one of each kind is made")
    parser.add_argument("--flips", type=int, default=1000, help="bits to flip")
    parser.add_argument("--cuts", type=int, default=200, help="files to cut off")
    options = parser.parse_args()
    console, started = Console(width=120), time.perf_counter()
    table = Table(
        "updates, gradients",
        "change",
        "changes",
        "by verify",
        "by read",
        "not read",
        "wrong numbers",
        "placed",
        "missed",
    )
    with tempfile.TemporaryDirectory() as name:
        if options.log:
            paths = [Path(shutil.copytree(options.log, Path(name) / "log"))]
        else:
            paths = [make_log(Path(name), *kind) for kind in KINDS]
        missed = sum(measure(path, options, table) for path in paths)
    console.print(table)
    console.print(f"{platform.system()}, Python {platform.python_version()}, {time.perf_counter() - started:.0f} s")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
