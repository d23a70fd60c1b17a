"""Prints what recording and unlearning cost on a model made here: time, memory, bytes; with the machine and the settings.

Each part runs in a process of its own, so that its peak memory is its own.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lmcleaner import RecordOptions, Thresholds, TrainingLog, UnlearnOptions, record, unlearn
from lmcleaner.training.models import load_base_model
from lmcleaner.training.numerics import device_name, replay_device, restored_numerics
from lmcleaner.training.replay import ReplayModel
from lmcleaner.training.state import TrainingState

STEPS = 12
SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "vocab_size": 4096,
}


def make_inputs(folder: Path) -> None:
    """Writes a random Llama, a tokenizer of numbered words, and rows of 64 words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {"<s>": 0, "</s>": 1, "<pad>": 2} | {f"w{i}": i for i in range(3, SHAPE["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPE, num_key_value_heads=4, max_position_embeddings=128, tie_word_embeddings=True)
    LlamaForCausalLM(config).save_pretrained(folder / "base")
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<pad>"
    )
    wrapped.save_pretrained(folder / "base")
    words = torch.randint(3, SHAPE["vocab_size"], (STEPS * 4, 64)).tolist()
    rows = [json.dumps({"text": " ".join(f"w{word}" for word in row)}) + "\n" for row in words]
    (folder / "train.jsonl").write_text("".join(rows))
    (folder / "one.jsonl").write_text(rows[0])
    (folder / "many.jsonl").write_text("".join(rows[: STEPS * 2]))


def peak_bytes() -> int:
    """Peak resident memory of this process since `reset_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def reset_peak() -> int:
    """Forgets the peak so far; returns what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes()


def run_step(folder: Path, optimizer: str) -> dict[str, Any]:
    """One plain training step: what its activations take, beside the vectors that it holds anyway."""
    log = TrainingLog(folder / f"log-{optimizer}")
    replay = ReplayModel(load_base_model(log.manifest), log.manifest, replay_device(log.manifest))
    with restored_numerics(log.manifest.numerics):
        state = TrainingState(log.manifest, log.checkpoint(0), replay.device)
        step = log.step(0)
        state.apply(replay.gradient(step, state.parameters), step.lr)
        before, started = reset_peak(), time.perf_counter()
        replay.gradient(step, state.parameters)
        return {"peak": peak_bytes() - before, "seconds": time.perf_counter() - started}


def run_unlearn(folder: Path, optimizer: str, mode: str, forget: str, steps: str) -> dict[str, Any]:
    """One unlearning run; its peak over what is resident once torch and the libraries are loaded."""
    options = UnlearnOptions(
        forget=str(folder / f"{forget}.jsonl"), output=folder / f"out-{optimizer}-{mode}-{forget}-{steps}",
        K=None if steps == "all" else int(steps), hessian_mode=mode, thresholds=Thresholds(),
    )  # fmt: skip
    log = folder / f"log-{optimizer}"
    before = reset_peak()
    result = unlearn(log, options)
    assert result.document is not None
    return {"peak": peak_bytes() - before, "seconds": result.document["timing"]["sweep_seconds"]}


def run_record(folder: Path, optimizer: str) -> dict[str, Any]:
    """Records the run that the others read."""
    momentum = {"momentum": 0.9} if optimizer == "sgd-momentum" else {}
    options = RecordOptions(
        model=str(folder / "base"), data=str(folder / "train.jsonl"), output=folder / f"trained-{optimizer}",
        epochs=1, batch_size=4, lr=1e-4, optimizer=optimizer.partition("-")[0], threads=1, **momentum,
    )  # fmt: skip
    before, started = reset_peak(), time.perf_counter()
    result = record(folder / f"log-{optimizer}", options)
    seconds = time.perf_counter() - started
    return {"peak": peak_bytes() - before, "seconds": seconds, "bytes": result.log_bytes}


PARTS = {"step": run_step, "unlearn": run_unlearn, "record": run_record}


def in_own_process(part: str, folder: Path, *arguments: str) -> dict[str, Any]:
    """Runs a part in a fresh process and returns what it measured."""
    command = [sys.executable, __file__, part, str(folder), *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def measure(folder: Path, console: Console) -> None:
    """Runs all parts and prints their figures."""
    make_inputs(folder)
    table = Table("optimizer", "mode", "K", "forgotten rows", "seconds", "peak MB", "vectors + activations", "limit")
    for optimizer, states in {"adamw": 2, "sgd-momentum": 1, "sgd": 0}.items():
        recorded = in_own_process("record", folder, optimizer)
        elements = TrainingLog(folder / f"log-{optimizer}").manifest.num_elements
        vector = elements * 4
        step = in_own_process("step", folder, optimizer)
        activations = step["peak"] - vector  # its gradient is a vector that the limit counts apart
        per_value = recorded["bytes"]["updates"] / elements / STEPS
        console.print(
            f"{optimizer}: {elements:,} parameters, {vector / 1e6:.1f} MB a vector; recording {recorded['seconds']:.1f} s, "
            f"{per_value:.2f} bytes per parameter and step; one gradient {step['seconds']:.2f} s, activations "
            f"{activations / 1e6:.1f} MB"
        )
        limit = (2 + 2 * states + 2) + activations / vector
        for mode, steps, forget in (
            ("secant", "all", "one"), ("secant", "2", "one"), ("secant", "all", "many"),
            ("GGN", "all", "one"), ("GGN", "all", "many"), ("exact", "all", "one"),
        ):  # fmt: skip
            found = in_own_process("unlearn", folder, optimizer, mode, forget, steps)
            rows = "1" if forget == "one" else str(STEPS * 2)
            table.add_row(
                optimizer, mode, steps, rows, f"{found['seconds']:.1f}", f"{found['peak'] / 1e6:.0f}",
                f"{found['peak'] / vector:.1f}", f"{limit:.1f}",
            )  # fmt: skip
    console.print(table)
    console.print("peak and limit in parameter vectors: (2 + 2 x optimizer state + 2) + one step's activations")


def main() -> None:
    """Without arguments measures everything; with arguments runs one part and prints its figures as JSON."""
    if len(sys.argv) > 1:
        part, folder, *arguments = sys.argv[1:]
        print(json.dumps(PARTS[part](Path(folder), *arguments)))  # noqa: T201
        return
    console = Console(width=120)
    console.print(
        f"{device_name('cpu')}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}, "
        f"torch {torch.__version__}, one thread; {STEPS} steps of 4 rows of 66 tokens"
    )
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), console)


if __name__ == "__main__":
    main()
