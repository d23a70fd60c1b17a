"""What it costs to record one training from outside, by a callback, and not at all, as whole commands in turns.

Usage: `python benchmarks/ways.py [--shape demo|4M] [--length 256] [--steps 60] [--rounds 3] [--updates none lossless]`.
Processor seconds are those of the whole process, its start and the self-check at the end among them; other programs
change them less than wall seconds.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

SHAPES: dict[str, dict[str, Any]] = {
    "demo": {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 3, "vocab_size": 768},
    "4M": {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "vocab_size": 2000},
}
ROWS = 8
TRAIN = "train"


def train(base: str, steps: int, length: int, log: str, codec: str) -> None:
    """A training by Hugging Face `Trainer`; recorded by its callback if a log is named."""
    callbacks: list[TrainerCallback] = []
    if log:
        from lmcleaner import LMCleanerCallback, WatchOptions

        callbacks.append(LMCleanerCallback(log, WatchOptions(updates=codec, checkpoint_every=1000)))  # type: ignore[arg-type]
    model = LlamaForCausalLM.from_pretrained(base)
    tokens = torch.randint(model.config.vocab_size, (steps * ROWS, length), generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            scratch, num_train_epochs=1, per_device_train_batch_size=ROWS, learning_rate=1e-4, use_cpu=True,
            report_to=[], disable_tqdm=True, save_strategy="no", logging_strategy="no", dataloader_pin_memory=False,
        )  # fmt: skip
        rows = [{"input_ids": row, "labels": row} for row in tokens]
        Trainer(model, arguments, train_dataset=rows, callbacks=callbacks).train()


def commands(base: Path, steps: int, length: int, codecs: Sequence[str], folder: Path) -> dict[str, list[str]]:
    """Name -> command; each log is new."""
    script = [str(Path(__file__).resolve()), TRAIN, str(base), str(steps), str(length)]
    found = {"not recorded": [sys.executable, *script, "", ""]}
    for codec in codecs:
        log = str(folder / f"callback-{codec}")
        found[f"callback, {codec}"] = [sys.executable, *script, log, codec]
        log = str(folder / f"wrapper-{codec}")
        options = ["--updates", codec, "--checkpoint-every", "1000"]
        found[f"wrapper, {codec}"] = [
            sys.executable, "-m", "lmcleaner.cli", "record", log, *options, "--", *script, "", "",
        ]  # fmt: skip
    return found


def seconds(command: list[str]) -> tuple[float, float]:
    """Processor seconds and wall seconds of a command."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return used.ru_utime + used.ru_stime, time.perf_counter() - started


def measure(
    base: Path, steps: int, length: int, codecs: Sequence[str], rounds: int
) -> dict[str, list[tuple[float, float]]]:
    """Runs all commands in every round, the first of a round last in the next; the first round isn't counted."""
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in commands(base, steps, length, codecs, base)}
    for number in range(rounds + 1):
        with tempfile.TemporaryDirectory() as folder:
            turn = list(commands(base, steps, length, codecs, Path(folder)).items())
            for name, command in turn[number % len(turn) :] + turn[: number % len(turn)]:
                found = seconds(command)
                if number:
                    measured[name].append(found)
    return measured


def show(console: Console, measured: Mapping[str, list[tuple[float, float]]]) -> None:
    """Medians, and the ratio of each way to the one that it is compared with, round by round."""
    table = Table("recorded by", "processor seconds", "wall seconds", "against", "ratio", "middle half")
    for name, runs in measured.items():
        base = name.replace("wrapper", "callback") if name.startswith("wrapper") else "not recorded"
        ratios = [run[0] / other[0] for run, other in zip(runs, measured[base], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        cpu, wall = (statistics.median(run[part] for run in runs) for part in (0, 1))
        compared = ("–",) * 3 if base == name else (base, f"{middle:.3f}", f"{low:.3f} to {high:.3f}")
        table.add_row(name, f"{cpu:.2f}", f"{wall:.2f}", *compared)
    console.print(table)


def main() -> None:
    """Measures and prints."""
    if sys.argv[1:2] == [TRAIN]:
        base, steps, length, log, codec = sys.argv[2:]
        train(base, int(steps), int(length), log, codec)
        return
    from lmcleaner.training.numerics import device_name

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=list(SHAPES), default="4M")
    parser.add_argument("--length", type=int, default=256, help="tokens of a row")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--updates", nargs="+", default=["none", "lossless"], help="codecs of the recorded runs")
    options = parser.parse_args()
    console = Console(width=110)
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**SHAPES[options.shape], num_attention_heads=4))
        model.save_pretrained(folder)
        measured = measure(Path(folder), options.steps, options.length, options.updates, options.rounds)
    show(console, measured)
    console.print(
        f"{device_name('cpu')}, {os.cpu_count()} processors, torch {torch.__version__}; {model.num_parameters():,} "
        f"parameters, {options.steps} steps of {ROWS} x {options.length} tokens, {options.rounds} rounds"
    )


if __name__ == "__main__":
    main()
