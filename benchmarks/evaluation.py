"""Prints what it takes to evaluate 400 forgotten and 400 retained TOFU rows with their paraphrases and wrong answers.

Needs the real model and data beside the project.
"""

import argparse
import os
import platform
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from lmcleaner.data.encoding import Encoding
from lmcleaner.data.rows import RowSource, read_rows
from lmcleaner.evaluation.evaluate import evaluate
from lmcleaner.evaluation.parts import Parts, part_rows
from lmcleaner.evaluation.scores import Part
from lmcleaner.formats.samples import Sample
from lmcleaner.training.models import load_model, load_tokenizer
from lmcleaner.training.numerics import computing_with, device_name

SHARED = Path(__file__).resolve().parents[2] / "shared"
MODEL = SHARED / "models" / "stories260K_hf"
FILES = {Part.FORGET: "forget10_perturbed", Part.RETAIN: "retain_perturbed", Part.HOLDOUT: "holdout10"}


class Stages:
    """Seconds and model calls of every stage."""

    def __init__(self) -> None:
        """Starts before the first one."""
        self.seconds: dict[str, float] = {}
        self.counts: dict[str, Counter[str]] = {}
        self._name, self._started = "", time.perf_counter()

    def say(self, text: str) -> None:
        """Nothing is said."""

    def begin(self, what: str, total: int) -> None:
        """Ends the stage before."""
        self.end()
        self._name, self._started = what, time.perf_counter()
        self.counts[what] = Counter(batches=total)

    def advance(self) -> None:
        """Batches are known from the beginning."""

    def end(self) -> None:
        """Keeps the seconds of the stage."""
        if self._name:
            self.seconds[self._name] = time.perf_counter() - self._started

    def watch(self, module: Any, args: Any, given: dict[str, Any]) -> None:
        """Counts what the model is given: a prompt or row with its padding, or one more token of each answer."""
        tokens, counts = given["input_ids"], self.counts[self._name]
        if tokens.shape[1] == 1:
            counts["grown"] += tokens.numel()
            return
        mask = given.get("attention_mask")  # generation leaves it out where nothing is padding
        counts["tokens"] += tokens.numel() if mask is None else int(mask.sum())
        counts["padded"] += tokens.numel()
        counts["rows"] += len(tokens)


def read_parts(tokenizer: Any, num_rows: int) -> Parts:
    """The first rows of each part, encoded as the acceptance run encodes them."""
    encoding = Encoding(template="Question: {question} Answer:", max_length=512)

    def encode(source: RowSource) -> list[Sample]:
        return encoding.samples(source.rows, tokenizer, source.source)

    sources = {part: read_rows(str(SHARED / "data" / "tofu" / f"{name}.json")) for part, name in FILES.items()}
    return {part: part_rows(replace(it, rows=it.rows[:num_rows]), encode) for part, it in sources.items()}


def main() -> None:
    """Measures everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=int, nargs="?", default=400, help="of each part; default: %(default)s")
    num_rows: int = parser.parse_args().rows
    console = Console(width=120)
    if not MODEL.is_dir():
        console.print("no real model and data beside the project: nothing to evaluate")
        return
    console.print(
        f"{device_name('cpu')}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}, "
        f"torch {torch.__version__}, one thread; {num_rows} rows of each part"
    )
    model, tokenizer, stages = load_model(str(MODEL), torch.float32), load_tokenizer(str(MODEL)), Stages()
    model.register_forward_pre_hook(stages.watch, with_kwargs=True)
    parts = read_parts(tokenizer, num_rows)
    with computing_with(1, flush_denormal=True, deterministic=False):
        started = time.perf_counter()
        evaluate({"gold": model}, tokenizer, parts, gold="gold", progress=stages)
        seconds = time.perf_counter() - started
    stages.end()
    table = Table("stage", "sequences", "batches", "tokens", "padding %", "answer tokens", "seconds", "tokens/s")
    for name, counts in stages.counts.items():
        total = counts["tokens"] + counts["grown"]
        table.add_row(
            name, f"{counts['rows']:,}", f"{counts['batches']:,}", f"{counts['tokens']:,}",
            f"{100 * (1 - counts['tokens'] / counts['padded']):.1f}", f"{counts['grown']:,}",
            f"{stages.seconds[name]:.1f}", f"{total / stages.seconds[name]:,.0f}",
        )  # fmt: skip
    console.print(table)
    whole = sum(stages.counts.values(), Counter())
    console.print(
        f"in all {seconds:.0f} s: {whole['rows'] / seconds:.1f} sequences/s, "
        f"{(whole['tokens'] + whole['grown']) / seconds:,.0f} tokens/s, "
        f"padding {100 * (1 - whole['tokens'] / whole['padded']):.1f} %"
    )


if __name__ == "__main__":
    main()
