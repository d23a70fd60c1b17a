"""Kills recordings with SIGKILL at random moments, and checks what is left of them: `python benchmarks/crash.py`.

Every log must open, hold only steps that verify, and go on to the bits of a run that nobody killed. Some runs are
killed again while they resume. Exits with 1 if one of them fails.
"""

import argparse
import multiprocessing
import random
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lmcleaner.formats.errors import DamagedError, InsufficientLogError, NotFoundError
from lmcleaner.formats.manifest import CodecName
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.verify import find_problems
from lmcleaner.recording.background import QUEUE_JOBS
from lmcleaner.recording.describe import RunDescription
from lmcleaner.recording.recorder import Recorder
from lmcleaner.recording.resume import restore
from lmcleaner.recording.unfinished import open_unfinished

STEPS = 90
VOCABULARY, WIDTH = 64, 32
KILLED_TWICE = 0.4  # share of the runs that are killed while they resume, too
PARALLEL = 2
MOST_LOST = 2 * QUEUE_JOBS + 1  # steps since the last commit, steps in line, and the one that is being taken


@dataclass(frozen=True)
class Setting:
    """How a run is recorded."""

    updates: CodecName
    gradients: CodecName
    checkpoint_every: int


SETTINGS = (
    Setting("lossless", "none", 7),
    Setting("lossless", "int8", 50),
    Setting("int8", "lossless", 16),
    Setting("int4", "none", 5),
    Setting("none", "none", 10),
)


class Model(nn.Module):
    """Predicts each token from the one before, with dropout, so that random numbers count."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.inner = nn.Linear(WIDTH, WIDTH)
        self.outer = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, input_ids: Tensor, labels: Tensor) -> SimpleNamespace:
        """The mean cross-entropy."""
        hidden = nn.functional.dropout(self.inner(self.embedding(input_ids)).relu(), 0.2, self.training)
        logits = self.outer(hidden)[:, :-1]
        return SimpleNamespace(loss=nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten()))


def train(log: str, setting: Setting, resume: bool, taken: str) -> None:
    """Records a run, or goes on with it; tells the number of steps that it has taken in a file."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    start = restore(log, model, optimizer) if resume else 0
    description = RunDescription(
        model_source="none",
        updates=setting.updates,
        gradients=setting.gradients,
        checkpoint_every=setting.checkpoint_every,
    )
    counter = np.memmap(taken, np.int64, "w+", shape=(1,))
    with Recorder(log, model, optimizer, description, overwrite=not resume, resume=resume):
        for step in range(start, STEPS):
            tokens = torch.randint(VOCABULARY, (4, 12), generator=torch.Generator().manual_seed(step))
            model(input_ids=tokens, labels=tokens).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            counter[0] = step + 1
    ended(Path(log)).touch()


def ended(log: Path) -> Path:
    """The file that says that a process ended by itself; exit codes may be wrong where several threads ask for them."""
    return log.with_suffix(".ended")


def start(log: Path, setting: Setting, *, resume: bool) -> Any:
    """A process that is about to record."""
    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lmcleaner.recording.recorder", "torch._dynamo"])  # they take seconds to load
    taken = log.with_suffix(".taken")
    taken.unlink(missing_ok=True)
    ended(log).unlink(missing_ok=True)
    process = context.Process(target=train, args=(str(log), setting, resume, str(taken)))
    process.start()
    while process.is_alive() and not taken.exists():
        time.sleep(0.001)
    return process


def content(log: TrainingLog) -> dict[str, Any]:
    """What must be the same in every log of the run; its seconds never are."""
    tables = {name: table for name, table in log.commit.tables.items() if name != "steps/seconds"}
    return {"tables": tables, "checkpoints": log.commit.checkpoints, "corrections": log.commit.corrections}


def undisturbed(folder: Path, setting: Setting) -> tuple[dict[str, Any], float]:
    """Content and seconds of a run that nobody kills."""
    log = folder / f"undisturbed-{SETTINGS.index(setting)}"
    process = start(log, setting, resume=False)
    began = time.perf_counter()
    process.join()
    if not ended(log).exists():
        raise RuntimeError(f"a run that nobody killed failed: {setting}")
    return content(TrainingLog(log)), time.perf_counter() - began


def opened(log: Path) -> TrainingLog | None:
    """The log that a kill left; None where there is none to go on with, as `record --resume` says."""
    try:
        return TrainingLog(log)
    except (NotFoundError, DamagedError):
        try:
            open_unfinished(log)
        except (NotFoundError, InsufficientLogError):
            return None
        raise


class Victim:
    """One run and what becomes of it."""

    def __init__(self, log: Path, number: int, expected: dict[str, Any], seconds: float) -> None:
        """Prepares the run."""
        self.log, self.setting = log, SETTINGS[number % len(SETTINGS)]
        self.expected, self.seconds, self.random = expected, seconds, random.Random(number)
        self.counts: Counter[str] = Counter()
        self.lost = 0

    def live(self) -> None:
        """Kills it once or twice, then lets it come to its end."""
        resumable = self.kill(resume=False)
        if resumable and self.random.random() < KILLED_TWICE:
            self.counts["runs killed again"] += 1
            resumable = self.kill(resume=True)
        left = opened(self.log)
        if left is None or not left.commit.finished:
            process = start(self.log, self.setting, resume=resumable)
            process.join()
            self.counts["failed: didn't end"] += not ended(self.log).exists()
        whole = content(TrainingLog(self.log)) == self.expected and TrainingLog(self.log).commit.finished
        self.counts["same content in the end" if whole else "failed: other content in the end"] += 1

    def kill(self, *, resume: bool) -> bool:
        """Starts it, kills it, looks at the log; whether there is one that can go on."""
        while not (killed := self._kill(resume=resume)) and not resume:
            pass
        self.counts["kills" if killed else "resumed before the kill"] += 1
        left = opened(self.log)
        if left is None:
            self.counts["before the first commit"] += 1
            return False
        damage = [problem for problem in find_problems(left) if problem and problem.kind != "leftover"]
        self.counts["logs that verify" if not damage else f"failed: {damage[0]}"] += 1
        self._count_lost(left, resume)
        return not left.commit.finished

    def _kill(self, *, resume: bool) -> bool:
        """Whether it was killed before it ended by itself."""
        process = start(self.log, self.setting, resume=resume)
        process.join(self.random.uniform(0, self.seconds))
        process.kill()
        process.join()
        return not ended(self.log).exists()

    def _count_lost(self, left: TrainingLog, resume: bool) -> None:
        taken = int(np.fromfile(self.log.with_suffix(".taken"), np.int64)[0])
        self.lost = max(self.lost, taken - left.num_steps)
        if self.lost > MOST_LOST:
            self.counts[f"failed: more than {MOST_LOST} steps lost"] += 1


def main() -> None:
    """Runs all and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    number = parser.parse_args().runs
    sys.warnoptions.append("ignore::UserWarning:multiprocessing.resource_tracker")  # the killed leave semaphores
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(PARALLEL) as pool:
        folder = Path(name)
        known = list(pool.map(lambda setting: undisturbed(folder, setting), SETTINGS))
        victims = [Victim(folder / f"log-{n}", n, *known[n % len(SETTINGS)]) for n in range(number)]
        for _ in pool.map(Victim.live, victims):
            pass
    counts = sum((victim.counts for victim in victims), Counter[str]())
    rows = [("runs", number), *sorted(counts.items()), ("most steps lost", max(victim.lost for victim in victims))]
    for what, count in rows:
        sys.stdout.write(f"{what:<28}{count:>6}\n")
    failures = sum(count for what, count in counts.items() if what.startswith("failed"))
    sys.exit(1 if failures or counts["same content in the end"] != number else 0)


if __name__ == "__main__":
    main()
