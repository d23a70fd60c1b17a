"""Prints what recording and unlearning cost on a model made here, with the machine and the settings.

Each part runs in a process of its own, so that its peak memory is its own.
"""

import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from lmcleaner import (
    HessianMode,
    OptimizerName,
    Propagation,
    RecordOptions,
    TrainingLog,
    UnlearnOptions,
    record,
    unlearn,
)
from lmcleaner.training.numerics import device_name, restored_numerics
from lmcleaner.training.replay import open_replay
from lmcleaner.training.state import TrainingState
from processes import PRECISE_MEMORY, in_own_process, peak_bytes, reset_peak, run_part
from random_models import random_rows, write_model

STEPS = 12
BATCH = 8
VOCABULARY = 4096
SHAPES = {
    "large": {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4, "num_attention_heads": 8},
    "warm-up": {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2},
}
COMMON: dict[str, Any] = {"vocab_size": VOCABULARY, "num_key_value_heads": 2, "max_position_embeddings": 128}
STATES = {"adamw": 2, "sgd-momentum": 1, "sgd": 0}
RUNS = [("secant", "2", "one", "optimizer"), ("secant", "all", "many", "optimizer")]
RUNS += [(mode.value, "all", "one", "optimizer") for mode in HessianMode]
PAPER_RUNS = [(mode.value, "all", "one", "paper") for mode in HessianMode if mode is not HessianMode.SECANT]
WITHIN_LIMIT = {"secant", "GGN", "exact"}  # the others hold estimates, or what they are made from


def make_inputs(folder: Path, size: str) -> int:
    """Writes a random Llama, and rows of 64 words, the same for every size of model; gives the number of parameters."""
    parameters = write_model(folder / size, COMMON | SHAPES[size])
    rows = random_rows(STEPS * BATCH, 64, VOCABULARY)
    (folder / "train.jsonl").write_text("".join(rows))
    (folder / "one.jsonl").write_text(rows[0])
    (folder / "many.jsonl").write_text("".join(rows[: STEPS * BATCH // 2]))
    return parameters


def run_step(folder: Path, optimizer: str) -> dict[str, Any]:
    """One plain gradient: what it takes beside the vectors that are there anyway."""
    _take_step(folder, "warm-up", optimizer)
    return _take_step(folder, "large", optimizer)


def _take_step(folder: Path, size: str, optimizer: str) -> dict[str, Any]:
    """Measures the second gradient: the first one's kernels keep memory of their own."""
    log = TrainingLog(folder / f"log-{size}-{optimizer}")
    replay = open_replay(log.manifest)
    with restored_numerics(log.manifest.numerics):
        state, step = TrainingState(log.manifest, log.checkpoint(0), replay.device), log.step(0)
        state.apply(replay.gradient(step, state.parameters), step.lr)
        before, started = reset_peak(), time.perf_counter()
        replay.gradient(step, state.parameters)
        return {"peak": peak_bytes() - before, "seconds": time.perf_counter() - started}


def run_unlearn(
    folder: Path, optimizer: str, mode: str, steps: str, forget: str, propagation: str = "optimizer"
) -> dict[str, Any]:
    """One unlearning run, after a gradient, whose kernels keep memory, and one of a tiny model have loaded all else."""
    measured: dict[str, Any] = {}
    _take_step(folder, "large", optimizer)
    for size in ("warm-up", "large"):
        options = UnlearnOptions(
            forget=str(folder / f"{forget}.jsonl"),
            output=folder / f"out-{size}-{optimizer}-{mode}-{steps}-{forget}-{propagation}",
            K=None if steps == "all" else int(steps), hessian_mode=HessianMode(mode),
            propagation=Propagation(propagation), ledger=False,
        )  # fmt: skip
        before = reset_peak()
        document = unlearn(folder / f"log-{size}-{optimizer}", options).document
        assert document is not None
        plan = document["plan"]
        measured = {
            "peak": peak_bytes() - before,
            "seconds": document["timing"]["sweep_seconds"],
            "planned_bytes": plan["parameter_memory_bytes"] + plan["activation_bytes"],
            "planned_seconds": plan["seconds"],
        }
    return measured


def run_record(folder: Path, optimizer: str, size: str) -> dict[str, Any]:
    """Records the run that the others read."""
    momentum = 0.9 if optimizer == "sgd-momentum" else 0.0
    options = RecordOptions(
        model=str(folder / size), data=str(folder / "train.jsonl"), output=folder / f"trained-{size}-{optimizer}",
        epochs=1, batch_size=BATCH, lr=1e-4, optimizer=OptimizerName(optimizer.partition("-")[0]), momentum=momentum,
        threads=1,
    )  # fmt: skip
    started = time.perf_counter()
    result = record(folder / f"log-{size}-{optimizer}", options)
    return {"seconds": time.perf_counter() - started, "bytes": result.log_bytes}


def measure(folder: Path, console: Console) -> None:
    """Runs all parts and prints their figures."""
    for size in SHAPES:
        make_inputs(folder, size)
    columns = ("optimizer", "mode", "K", "rows", "seconds", "planned", "peak MB", "planned", "in vectors", "limit")
    table = Table(*columns)
    for optimizer, states in STATES.items():
        in_own_process(run_record, folder, optimizer, "warm-up", environment=PRECISE_MEMORY)
        recorded = in_own_process(run_record, folder, optimizer, "large", environment=PRECISE_MEMORY)
        elements = TrainingLog(folder / f"log-large-{optimizer}").manifest.num_elements
        vector = elements * 4
        step = in_own_process(run_step, folder, optimizer, environment=PRECISE_MEMORY)
        activations = max(0, step["peak"] - vector)  # its gradient is a vector that the limit counts apart
        console.print(
            f"{optimizer}: {elements:,} parameters, {vector / 1e6:.1f} MB a vector; recording "
            f"{recorded['seconds']:.1f} s, updates {recorded['bytes']['updates'] / elements / STEPS:.2f} bytes per "
            f"parameter and step; one gradient {step['seconds']:.2f} s, activations {activations / 1e6:.1f} MB"
        )
        limit = (2 + 2 * states + 2) + activations / vector
        # The paper's form is the same whatever the optimizer.
        for mode, steps, forget, propagation in [*RUNS, *(PAPER_RUNS if optimizer == "sgd" else [])]:
            found = in_own_process(
                run_unlearn, folder, optimizer, mode, steps, forget, propagation, environment=PRECISE_MEMORY
            )
            rows = "1" if forget == "one" else str(STEPS * BATCH // 2)
            peak, name = found["peak"], mode if propagation == "optimizer" else f"paper, {mode}"
            is_limited = mode in WITHIN_LIMIT and propagation == "optimizer"
            table.add_row(
                optimizer, name, steps, rows, f"{found['seconds']:.1f}", f"{found['planned_seconds']:.1f}",
                f"{peak / 1e6:.0f}", f"{found['planned_bytes'] / 1e6:.0f}", f"{peak / vector:.1f}",
                f"{limit:.1f}" if is_limited else "",
            )  # fmt: skip
    console.print(table)
    console.print("limit: 2 + 2 x optimizer state + 2 parameter vectors, and one training step's activations")


def main() -> None:
    """Measures everything."""
    if run_part(run_step, run_unlearn, run_record):
        return
    console = Console(width=120)
    console.print(
        f"{device_name('cpu')}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}, "
        f"torch {torch.__version__}, one thread; {STEPS} steps of {BATCH} rows of 66 tokens"
    )
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), console)


if __name__ == "__main__":
    main()
