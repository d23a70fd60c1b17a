"""Prints what a training log costs: time and memory while training, bytes on disk, and the speed of reading it back.

    python benchmarks/log.py overhead|write|read|sizes

Each measured part runs in a process of its own, so that its peak memory is its own.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from numcodecs import blosc
from rich.console import Console
from rich.table import Table
from safetensors.numpy import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from lmcleaner import HessianMode, RecordOptions, TrainingLog, UnlearnOptions, record, unlearn
from lmcleaner.formats.layout import UPDATES
from lmcleaner.formats.vectors import VectorReader
from lmcleaner.recording.describe import RunDescription
from lmcleaner.recording.recorder import Recorder
from lmcleaner.training.numerics import device_name
from naming import add_names
from processes import PRECISE_MEMORY, in_own_process, peak_bytes, run_part

CODECS = ("lossless", "int8", "int4", "none")
SHAPES: dict[str, dict[str, Any]] = {
    "25M": {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 6, "vocab_size": 6000},
    "4M": {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "vocab_size": 2000},
    "tiny": {"hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 2, "vocab_size": 500},
}
SHARED = Path(__file__).parents[2] / "shared"


def make_model(shape: str) -> Any:
    """A random Llama."""
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPES[shape], num_attention_heads=8, num_key_value_heads=8, tie_word_embeddings=False)
    return LlamaForCausalLM(config)


class Training:
    """Trains a random model with AdamW and clipping on 8 rows of 256 tokens a step."""

    def __init__(self, shape: str, threads: int, steps: int) -> None:
        """Warms up, and makes the optimizer's state."""
        torch.set_num_threads(threads)
        torch.set_flush_denormal(True)
        self.model = make_model(shape)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self.rows = torch.randint(0, SHAPES[shape]["vocab_size"], (steps + 1, 8, 256))
        self._step(self.rows[steps])

    def take(self, steps: range, recorder: Recorder | None = None) -> None:
        """Takes steps, and waits until they are recorded."""
        for number in steps:
            self._step(self.rows[number])
        if recorder is not None:
            recorder.wait()

    def _step(self, batch: torch.Tensor) -> None:
        self.model.train()
        self.model(input_ids=batch, labels=batch, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def recorder(self, folder: Path, codec: str, checkpoint_every: int) -> Recorder:
        """Records it into a log."""
        description = RunDescription(
            model_source="made here", max_grad_norm=1.0, checkpoint_every=checkpoint_every, updates=codec,  # type: ignore[arg-type]
        )  # fmt: skip
        return Recorder(folder / "log", self.model, self.optimizer, description)


def overhead(folder: Path, shape: str, codec: str, steps: int, threads: int) -> dict[str, Any]:
    """The same training plain and recorded, in turns of ten steps, so that the machine's noise meets both alike."""
    plain, recorded = Training(shape, threads, steps), Training(shape, threads, steps)
    seconds: dict[str, list[float]] = {name: [] for name in ("plain", "recorded", "plain, cpu", "recorded, cpu")}

    def note(name: str, *work: Any) -> None:
        before = time.process_time()
        seconds[name].append(timed(*work))
        seconds[f"{name}, cpu"].append(time.process_time() - before)

    recorder = recorded.recorder(folder, codec, checkpoint_every=steps)
    with recorder:
        for start in range(0, steps, 10):
            block = range(start, min(start + 10, steps))
            note("plain", plain.take, block)
            note("recorded", recorded.take, block, recorder)
    return seconds


def peak(folder: Path, shape: str, codec: str, threads: int) -> dict[str, Any]:
    """Peak resident memory of four steps and a checkpoint."""
    training = Training(shape, threads, 4)
    with training.recorder(folder, codec, checkpoint_every=4) if codec != "plain" else nullcontext():
        training.take(range(4))
    return {"bytes": peak_bytes(), "vector": 4 * sum(p.numel() for p in training.model.parameters())}


def timed(work: Callable[..., Any], *arguments: Any) -> float:
    """Seconds that it takes."""
    started = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - started


def show_overhead(console: Console, options: argparse.Namespace, folder: Path) -> None:
    """What recording adds to a training step's time and to the process's memory."""
    shape, steps, threads = options.shape, options.steps or 40, options.threads
    base = in_own_process(peak, folder / "plain", shape, "plain", threads, environment=PRECISE_MEMORY)
    columns = ("overhead", "middle half", "of processor seconds", "middle half", "extra memory in vectors")
    table = Table("updates", "plain, s a step", "recorded", *columns)
    for codec in options.updates:
        seconds = in_own_process(overhead, folder / codec, shape, codec, steps, threads)
        plain, recorded = (sum(seconds[name]) for name in ("plain", "recorded"))
        found = in_own_process(peak, folder / f"peak-{codec}", shape, codec, threads, environment=PRECISE_MEMORY)
        table.add_row(
            codec,
            f"{plain / steps:.3f}",
            f"{recorded / steps:.3f}",
            *_shares(seconds["plain"], seconds["recorded"]),
            *_shares(seconds["plain, cpu"], seconds["recorded, cpu"]),
            f"{(found['bytes'] - base['bytes']) / found['vector']:.2f}",
        )
    console.print(table)
    console.print(
        f"{shape} Llama, 8 x 256 tokens, {threads} threads; {steps} steps each, in turns of ten, and one checkpoint"
    )


def _shares(plain: Sequence[float], recorded: Sequence[float]) -> tuple[str, str]:
    """What recording adds in all, and in the middle half of the turns."""
    shares = [b / a - 1 for a, b in zip(plain, recorded, strict=True)]
    low, _, high = statistics.quantiles(shares, n=4) if len(shares) > 1 else (shares * 3)
    return f"{sum(recorded) / sum(plain) - 1:.1%}", f"{low:.1%} to {high:.1%}"


def walk(num_elements: int) -> Iterator[np.ndarray]:
    """Parameters that move as AdamW moves them: each by about the learning rate.

    Yields:
        Their bit patterns, step after step.
    """
    generator = np.random.default_rng(0)
    values = (generator.standard_normal(num_elements, np.float32) * np.float32(0.02)).astype(np.float32)
    while True:
        yield values.view(np.uint32).copy()
        values += generator.standard_normal(num_elements, np.float32) * np.float32(1e-5)


def show_write(console: Console, options: argparse.Namespace, folder: Path) -> None:
    """The same parameters written by each way, one thread, fsync'd by none but the log."""
    num_elements = 25_000_000 if options.shape == "25M" else 100_000
    steps = options.steps or 10
    table = Table("written as", "seconds a step", "bytes per parameter and step")
    vectors = walk(num_elements)
    kept = [next(vectors) for _ in range(steps + 1)]
    for name, write in _writers(folder, num_elements).items():
        seconds = []
        for number, bits in enumerate(kept):
            seconds.append(timed(write, number, bits))
        size = sum(file.stat().st_size for file in (folder / name).rglob("*") if file.is_file())
        table.add_row(name, f"{statistics.median(seconds[1:]):.3f}", f"{size / num_elements / (steps + 1):.2f}")
    console.print(table)
    console.print(f"{num_elements:,} parameters that move by 1e-5 a step, {steps} steps")


def _writers(folder: Path, num_elements: int) -> dict[str, Callable[[int, np.ndarray], None]]:
    for name in ("torch.save", "safetensors", "zarr"):
        (folder / name).mkdir(parents=True)
    array = zarr.create_array(
        str(folder / "zarr" / "log"), shape=(1 << 16, num_elements), chunks=(1, min(num_elements, 1 << 22)), dtype="f4"
    )

    def as_zarr(number: int, bits: np.ndarray) -> None:
        array[number] = bits.view(np.float32)

    writers: dict[str, Callable[[int, np.ndarray], None]] = {
        "torch.save": lambda n, bits: torch.save(
            torch.from_numpy(bits.view(np.float32)), folder / "torch.save" / f"{n}.pt"
        ),
        "safetensors": lambda n, bits: save_file(
            {"parameters": bits.view(np.float32)}, folder / "safetensors" / f"{n}.safetensors"
        ),
        "zarr": as_zarr,
    }
    return writers | {codec: _log_writer(folder / codec, codec, num_elements) for codec in CODECS[:3]}


def _log_writer(path: Path, codec: str, num_elements: int) -> Callable[[int, np.ndarray], None]:
    writer: Any = None

    def write(number: int, bits: np.ndarray) -> None:
        nonlocal writer
        if writer is None:
            writer = synthetic_writer(path, codec, bits)
        else:
            writer.append(empty_step(), bits)

    return write


def synthetic_writer(path: Path, codec: str, bits: np.ndarray) -> Any:
    """A writer for a run that has no model: one parameter, no optimizer state."""
    from dataclasses import replace

    from lmcleaner.formats.manifest import Manifest, ModelEntry, NumericsEntry, OptimizerEntry, ParameterEntry
    from lmcleaner.formats.steps import Checkpoint, OptimizerVectors
    from lmcleaner.formats.writer import LogWriter

    state = OptimizerVectors(vectors={}, dtypes={}, scalars={}, present=np.array([False]))
    manifest = Manifest(
        created="2026-01-01T00:00:00+00:00",
        model=ModelEntry(source="", class_name="", fingerprint="0" * 64, dtype="float32", forward_arguments={}),
        parameters=(ParameterEntry(name="weight", shape=(len(bits),), offset=0, group=0, index=0),),
        optimizer=OptimizerEntry(name="SGD", groups=({"lr": 0.1},)),
        max_grad_norm=None, loss_divisor=1.0, padding_token=0,
        numerics=NumericsEntry(
            device="cpu", device_name="", threads=1, flush_denormal=True, deterministic=False, attention="eager",
            rng_bytes=1,
        ),
        updates="lossless", gradients="none", checkpoint_every=100, planned_steps=None, data={}, tokenizer={},
        training={}, environment={},
    )  # fmt: skip
    manifest = replace(manifest, updates=codec)  # type: ignore[arg-type]
    return LogWriter.create(path, manifest, Checkpoint(step=0, parameters=bits, optimizer=state))


def empty_step() -> Any:
    """A step without rows."""
    from lmcleaner.formats.steps import StepRecord

    return StepRecord(microbatches=(), lr=(0.1,), gradient_norm=0.0, seconds=0.0)


def show_read(console: Console, options: argparse.Namespace, folder: Path) -> None:
    """A window against a bare loop that reads and decompresses the same chunks."""
    num_elements = 25_000_000 if options.shape == "25M" else 100_000
    vectors = walk(num_elements)
    writer = synthetic_writer(folder / "log", "lossless", next(vectors))
    steps = options.steps or 200
    for _ in range(steps):
        writer.append(empty_step(), next(vectors))
    writer.commit(finished=True)
    writer.close()
    log = TrainingLog(folder / "log")
    times: dict[str, list[float]] = {"bare loop": [], "window": []}
    for _ in range(options.turns):
        for name, read in (("bare loop", read_bare), ("window", read_window)):
            times[name].append(timed(read, log))
    bare, window = (statistics.median(times[name]) for name in times)
    gigabytes = steps * num_elements * 4 / 1e9
    table = Table("reading", "seconds", "GB of parameters a second", "share of the bare loop's speed")
    table.add_row("bare loop", f"{bare:.2f}", f"{gigabytes / bare:.2f}", "100 %")
    table.add_row("window", f"{window:.2f}", f"{gigabytes / window:.2f}", f"{100 * bare / window:.0f} %")
    console.print(table)
    console.print(f"{num_elements:,} parameters, {steps} steps, median of {options.turns} turns")


def read_bare(log: TrainingLog) -> None:
    """Reads and decompresses every chunk of the updates, and does nothing with it."""
    (grid,) = log.tree.stack(UPDATES)
    reader = VectorReader(log.store, grid)
    target = np.empty(grid.chunk, grid.layout.dtype)
    for step in range(log.num_steps):
        for chunk in reader.stored(step, range(grid.chunks_per_row)):
            blosc.decompress(bytes(chunk[:-4]), target)


def read_window(log: TrainingLog) -> None:
    """Streams θ[0] to θ[τ], checked against the run's digests."""
    for _ in log.window(0, log.num_steps + 1):
        pass


def show_sizes(console: Console, options: argparse.Namespace, folder: Path) -> None:
    """Bytes and the effect of each codec on unlearning, on a real model and real rows."""
    model, data = SHARED / "models" / "stories260K_hf", folder / "data"
    if not model.is_dir():
        console.print(f"sizes: skipped, no model at {model}")
        return
    command = [sys.executable, str(SHARED / "tools" / "tofu_slice.py"), str(data)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    columns = (
        "bytes per parameter and step",
        "checkpoints MB",
        "bookkeeping bytes a microbatch",
        "relative error, exact",
    )
    table = Table("updates", *columns)
    for codec in CODECS:
        table.add_row(codec, *_size_row(model, data, folder, codec))
    console.print(table)


def _size_row(model: Path, data: Path, folder: Path, codec: str) -> list[str]:
    options = RecordOptions(
        model=str(model), data=str(data / "train.jsonl"), output=folder / f"model-{codec}", epochs=8, batch_size=8,
        lr=1e-3, warmup_ratio=0.1, updates=codec,  # type: ignore[arg-type]
    )  # fmt: skip
    record(folder / f"sizes-{codec}", options)
    log = TrainingLog(folder / f"sizes-{codec}")
    request = UnlearnOptions(
        forget=str(data / "forget.jsonl"), output=folder / f"out-{codec}", K=None, hessian_mode=HessianMode.EXACT,
        oracle=True, ledger=False,
    )  # fmt: skip
    document = unlearn(folder / f"sizes-{codec}", request).document
    assert document is not None
    sizes = log.bytes_on_disk()
    return [
        f"{sizes[UPDATES] / log.num_steps / log.manifest.num_elements:.3f}",
        f"{sizes['checkpoints'] / 1e6:.1f}",
        f"{sizes['bookkeeping'] / len(log.table('microbatches/stop')):.0f}",
        f"{document['oracle']['relative_error']:.4f}",
    ]


PARTS = {"overhead": show_overhead, "write": show_write, "read": show_read, "sizes": show_sizes}


def read_options(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of a command line; all parts where none is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_names(parser, "parts", PARTS, list(PARTS))
    parser.add_argument("--shape", choices=list(SHAPES), default="25M")
    parser.add_argument("--updates", nargs="+", choices=CODECS, default=CODECS, help="of overhead")
    parser.add_argument("--steps", type=int, help="default: overhead 40, write 10, read 200")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args(words)


def main() -> None:
    """Prints the parts that are asked for."""
    if run_part(overhead, peak):
        return
    options = read_options()
    console = Console(width=110)
    console.print(f"{device_name('cpu')}, {os.cpu_count()} processors, torch {torch.__version__}")
    for name in options.parts:
        with tempfile.TemporaryDirectory() as folder:
            PARTS[name](console, options, Path(folder))


if __name__ == "__main__":
    main()
