"""What a step of a sweep costs that reads no row, in steps of the plain training, by what such a step trains on.

Usage: `python benchmarks/data_free.py [--rounds 3]`. A request for a whole step with recorded gradients and curvature,
K = all. The plain `Trainer` is timed before and after each sweep.
"""

import argparse
import os
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from demonstration import REAL_MODEL, make_demonstration, make_real_rows, plain_step_seconds
from lmcleaner import (
    Codec,
    CurvatureKind,
    HessianMode,
    Level,
    RecordOptions,
    TrainingLog,
    UnlearnOptions,
    record,
    unlearn,
)
from lmcleaner.training.numerics import device_name, restored_numerics

STEPS = 60
FORGOTTEN = 4  # the step
KINDS = {  # the curvature that a mode's log holds
    HessianMode.DIAG: CurvatureKind.DIAG,
    HessianMode.LOW_RANK: CurvatureKind.LOW_RANK,
    HessianMode.FISHER: CurvatureKind.LOW_RANK,
}


@dataclass(frozen=True, slots=True)
class Run:
    """A training.

    Attributes:
        model: a folder.
        data: a file.
        batch_size: rows of a step.
    """

    model: Path
    data: Path
    batch_size: int

    def options(self, output: Path, kind: CurvatureKind) -> RecordOptions:
        """How it is recorded."""
        return RecordOptions(
            model=str(self.model), data=str(self.data), output=output, epochs=STEPS, max_steps=STEPS,
            batch_size=self.batch_size, lr=1e-3, warmup_ratio=0.1, checkpoint_every=STEPS // 3,
            gradients=Codec.LOSSLESS, curvature=kind, threads=1,
        )  # fmt: skip


def runs(folder: Path) -> dict[str, Run]:
    """By name; the real model's where it lies beside the project."""
    make_demonstration(folder)
    people = folder / "once" / "train.jsonl"
    found = {f"demonstration, {rows} rows a step": Run(folder / "model", people, rows) for rows in (8, 32)}
    if REAL_MODEL.is_dir():
        make_real_rows(folder / "real")
        found["stories260K, 8 rows of TOFU a step"] = Run(REAL_MODEL, folder / "real" / "epochs" / "train.jsonl", 8)
    return found


def measure(run: Run, rounds: int) -> dict[str, Any]:
    """Tokens and seconds of a plain step, and the costs of each mode's step in such steps."""
    costs: dict[HessianMode, list[float]] = {mode: [] for mode in KINDS}
    plain: list[float] = []
    with tempfile.TemporaryDirectory() as scratch:
        logs = dict[CurvatureKind, TrainingLog]()
        for kind in sorted(set(KINDS.values())):
            record(Path(scratch) / f"log-{kind}", run.options(Path(scratch) / f"trained-{kind}", kind))
            logs[kind] = TrainingLog(Path(scratch) / f"log-{kind}")
        for number in range(rounds * len(KINDS)):
            mode = list(KINDS)[number % len(KINDS)]
            log, options = logs[KINDS[mode]], run.options(Path(scratch), KINDS[mode])
            with restored_numerics(log.manifest.numerics):
                before = plain_step_seconds(log, options)
                seconds = sweep_seconds(log, mode)
                after = plain_step_seconds(log, options)
            plain += [before, after]
            costs[mode].append(2 * seconds / (before + after))
        tokens = [sum(len(sample.tokens) for sample in log.step(step).samples) for step in range(STEPS)]
    return {"tokens": statistics.mean(tokens), "plain": statistics.median(plain), "costs": costs}


def sweep_seconds(log: TrainingLog, mode: HessianMode) -> float:
    """Of a step of the sweep, in the mean; the sweep must have read no row."""
    with tempfile.TemporaryDirectory() as scratch:
        options = UnlearnOptions(
            forget=f"steps:{FORGOTTEN}", level=Level.BATCH, K=None, hessian_mode=mode, output=Path(scratch) / "out",
            ledger=False,
        )  # fmt: skip
        document = unlearn(log.location, options).document
    assert document is not None
    (window,) = document["windows"]
    if not window["data_free"]:
        raise RuntimeError(f"{mode} read rows")
    seconds: float = document["timing"]["sweep_seconds"] / (window["tau"] - window["start"])
    return seconds


def show(console: Console, measured: Mapping[str, dict[str, Any]]) -> None:
    """Medians, with the least and the most of the rounds."""
    table = Table("run", "tokens a step", "plain step, ms", *(f"{mode}, x step" for mode in KINDS))
    for name, found in measured.items():
        costs = [
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            for ratios in found["costs"].values()
        ]
        table.add_row(name, f"{found['tokens']:.0f}", f"{1e3 * found['plain']:.1f}", *costs)
    console.print(table)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    console = Console(width=130)
    with tempfile.TemporaryDirectory() as folder:
        show(console, {name: measure(run, rounds) for name, run in runs(Path(folder)).items()})
    console.print(
        f"{device_name('cpu')}, {os.cpu_count()} processors, torch {torch.__version__}, one thread; {STEPS} steps, a "
        f"checkpoint every {STEPS // 3}, {rounds} rounds"
    )


if __name__ == "__main__":
    main()
