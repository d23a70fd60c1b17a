"""Prints what recording and unlearning cost on an accelerator, with the machine and the settings.

Usage: `python benchmarks/accelerator.py [--shapes full,lora] [--folder FOLDER]`; `--shapes tiny` is for a look at the
script itself, on any machine. One process trains, another one unlearns.
"""

import argparse
import gc
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from clock import Clock
from lmcleaner import Codec, HessianMode, ModelDtype, RecordOptions, TrainingLog, UnlearnOptions, record, unlearn
from lmcleaner.data.encoding import Encoding
from lmcleaner.data.rows import read_rows
from lmcleaner.recording.options import DEFAULT_TEMPLATE
from lmcleaner.recording.training import make_trainer
from lmcleaner.training.adapters import new_lora
from lmcleaner.training.models import load_model, load_tokenizer
from lmcleaner.training.numerics import device_name
from lmcleaner.training.vectors import torch_dtype
from processes import in_own_process, run_part
from random_models import random_rows, write_model

STEPS, WARM_STEPS = 12, 4
VOCABULARY = 32_000
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True, slots=True)
class Case:
    """A model to fine-tune.

    Attributes:
        shape: of the Llama.
        length: words of a row.
        batch: rows of a step.
        dtype: of the weights.
        lora_rank: of the adapter, if one is trained instead.
    """

    shape: dict[str, int]
    length: int
    batch: int
    dtype: ModelDtype = ModelDtype.FLOAT32
    lora_rank: int | None = None


def _shape(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int) -> dict[str, int]:
    return {
        "hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": VOCABULARY,
        "max_position_embeddings": 1024,
    }  # fmt: skip


CASES = {
    "tiny": Case(_shape(16, 32, 1, 2, 2), length=16, batch=4),
    "full": Case(_shape(768, 2048, 6, 12, 12), length=500, batch=8),
    "lora": Case(_shape(2048, 5632, 22, 32, 4), length=500, batch=8, dtype=ModelDtype.BFLOAT16, lora_rank=16),
}
LOGGED = ("none", "lossless")
MODES = (HessianMode.SECANT, HessianMode.GGN, HessianMode.EXACT)


def _options(folder: Path, name: str, updates: str) -> RecordOptions:
    case = CASES[name]
    return RecordOptions(
        model=str(folder / name), data=str(folder / f"{name}.jsonl"), output=folder / f"trained-{name}-{updates}",
        epochs=1, batch_size=case.batch, lr=1e-4, dtype=case.dtype, lora_rank=case.lora_rank, updates=Codec(updates),
    )  # fmt: skip


def run_trainings(folder: Path, name: str) -> dict[str, Any]:
    """The training without a log and with one, updates none and lossless."""
    case = CASES[name]
    parameters = write_model(folder / name, case.shape, torch_dtype(case.dtype))
    (folder / f"{name}.jsonl").write_text("".join(random_rows(STEPS * case.batch, case.length, VOCABULARY)))
    found: dict[str, Any] = {"parameters": parameters, "plain": _train(_options(folder, name, "none"))}
    for updates in LOGGED:
        gc.collect()
        found[updates] = _record(folder, name, updates)
    return found


def _train(options: RecordOptions) -> dict[str, Any]:
    tokenizer, source = load_tokenizer(options.model), read_rows(options.data)
    samples = Encoding(template=DEFAULT_TEMPLATE, max_length=512).samples(source.rows, tokenizer, source.source)
    model = load_model(options.model, torch_dtype(options.dtype))
    if options.lora_rank is not None:
        torch.manual_seed(options.seed)
        model = new_lora(model, options.lora_rank, options.lora_rank, None)
    clock = Clock()
    with tempfile.TemporaryDirectory() as scratch:
        make_trainer(model, tokenizer, samples, options, Path(scratch), clock).train()
    peak = torch.cuda.max_memory_allocated() if DEVICE == "cuda" else 0
    return {"step_seconds": clock.step_seconds(WARM_STEPS), "peak": peak}


def _record(folder: Path, name: str, updates: str) -> dict[str, Any]:
    clock, started = Clock(), time.perf_counter()
    log = folder / f"log-{name}-{updates}"
    result = record(log, _options(folder, name, updates), clock)
    manifest, check = TrainingLog(log).manifest, result.self_check
    return {
        "step_seconds": clock.step_seconds(WARM_STEPS), "seconds": time.perf_counter() - started,
        "elements": manifest.num_elements, "bytes": result.log_bytes["updates"], "matmul": manifest.numerics.matmul,
        "self_check": check.state if check else "none", "why": check.why if check else "",
    }  # fmt: skip


def run_unlearnings(folder: Path, name: str) -> dict[str, Any]:
    """Forgets a row of the first step in every mode."""
    log = TrainingLog(folder / f"log-{name}-lossless")
    runs = [(mode, offload) for mode in MODES for offload in (False, True)[: 2 if DEVICE == "cuda" else 1]]
    return {"runs": [_unlearn(folder, log, mode, offload=offload) for mode, offload in runs]}


def _unlearn(folder: Path, log: TrainingLog, mode: HessianMode, *, offload: bool) -> dict[str, Any]:
    gc.collect()
    output = folder / f"out-{log.manifest.num_elements}-{mode}-{offload}"
    options = UnlearnOptions(
        forget=log.step(0).samples[0].digest.hex(), output=output, K=None, hessian_mode=mode, offload=offload,
        oracle=not offload, ledger=False,
    )  # fmt: skip
    document = unlearn(log.location, options).document
    assert document is not None
    plan, oracle = document["plan"], document["oracle"]
    found = {
        "mode": mode.value, "offload": offload,
        "seconds": document["timing"]["sweep_seconds"], "planned_seconds": plan["seconds"],
        "peak": document["timing"]["peak_memory_bytes"],
        "planned_peak": plan["parameter_memory_bytes"] + plan["activation_bytes"],
        "relative_error": oracle["relative_error"] if oracle else None,
        "linearization_error": document["windows"][0]["linearization_error"],
    }  # fmt: skip
    sys.stderr.write(json.dumps(found) + "\n")
    return found


def measure(folder: Path, name: str, console: Console) -> None:
    """Everything of one model."""
    case, trained = CASES[name], in_own_process(run_trainings, folder, name)
    plain = trained["plain"]
    console.print(
        f"{name}: {trained['parameters']:,} parameters, {case.batch} rows of {case.length} words a step; plain "
        f"training {plain['step_seconds'] * 1000:.0f} ms a step, {plain['peak'] / 1e6:,.0f} MB of the device"
    )
    for updates in LOGGED:
        found = trained[updates]
        console.print(
            f"{name}, updates {updates}: {found['elements']:,} trained, {found['step_seconds'] * 1000:.0f} ms a step "
            f"({found['step_seconds'] / plain['step_seconds']:.2f} x), {found['seconds']:.1f} s in all, "
            f"{found['bytes'] / STEPS / found['elements']:.2f} bytes per parameter and step; matrices in "
            f"{found['matmul']}; self-check: {found['self_check']} {found['why']}"
        )
    table = Table("mode", "offload", "s", "x step", "planned s", "peak MB", "planned MB", "rel. error", "lin. error")
    for found in in_own_process(run_unlearnings, folder, name)["runs"]:
        error, linear = found["relative_error"], found["linearization_error"]
        table.add_row(
            found["mode"], "yes" if found["offload"] else "no", f"{found['seconds']:.1f}",
            f"{found['seconds'] / STEPS / plain['step_seconds']:.2f}", f"{found['planned_seconds']:.1f}",
            f"{found['peak'] / 1e6:,.0f}", f"{found['planned_peak'] / 1e6:,.0f}",
            "" if error is None else f"{error:.2e}", "" if linear is None else f"{linear:.2e}",
        )  # fmt: skip
    console.print(table)


def main() -> None:
    """Measures the models that are named."""
    if run_part(run_trainings, run_unlearnings):
        return
    parser = argparse.ArgumentParser()
    parser.add_argument("--shapes", default="full,lora")
    parser.add_argument("--folder", type=Path)
    chosen = parser.parse_args()
    console = Console(width=150)
    console.print(
        f"{device_name(DEVICE)}; {device_name('cpu')}, {os.cpu_count()} cores; torch {torch.__version__}; {STEPS} steps"
    )
    with tempfile.TemporaryDirectory() as scratch:
        for name in chosen.shapes.split(","):
            measure(chosen.folder or Path(scratch), name, console)


if __name__ == "__main__":
    main()
