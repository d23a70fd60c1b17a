"""Every way to record, in every framework where it applies: the same log, which forgets as a retraining does."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import trainings
from torch import Tensor
from trainings import FRAMEWORKS, MAX_NORM, PADDING, STEPS, Run

from lmcleaner.choices import Denominator, HessianMode
from lmcleaner.formats.layout import TABLES
from lmcleaner.formats.manifest import LossEntry
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.samples import Sample
from lmcleaner.recording.callback import LMCleanerCallback
from lmcleaner.recording.describe import RunDescription
from lmcleaner.recording.logger import TrainingLogger
from lmcleaner.recording.options import WatchOptions
from lmcleaner.recording.recorder import Recorder
from lmcleaner.recording.script import record_script
from lmcleaner.unlearning.options import UnlearnOptions
from lmcleaner.unlearning.run import unlearn
from tiny_runs import parameters_in, same_bits

FORGOTTEN = ((0, 1), (1, 0), (4, 2), (5, 1))  # batch and row
EVERY_FOUR = WatchOptions(checkpoint_every=4)
ACCUMULATIONS = (1, 3)
TRAINERS = {"Trainer", "SFTTrainer"}
Bits = Mapping[str, Tensor]


def bits(model: Any) -> dict[str, Tensor]:
    return {name: parameter.detach().cpu() for name, parameter in model.named_parameters()}


def by_wrapper(framework: str, run: Run, folder: Path) -> Bits:
    """The script as it is; it runs in this process, as `lmcleaner record LOG -- trainings.py …` runs it in its own."""
    script = [trainings.__file__, framework, run.accumulation, run.base, folder / "trained"]
    record_script(str(folder / "log"), [str(word) for word in script], EVERY_FOUR)
    return parameters_in(folder / "trained")


def by_recorder(framework: str, run: Run, folder: Path) -> Bits:
    description = RunDescription(
        model_source=str(run.base), max_grad_norm=MAX_NORM, padding_token=PADDING, checkpoint_every=4,
        loss_divisor=1 if framework in TRAINERS else run.accumulation,
        loss=LossEntry(name="trl_nll") if framework == "SFTTrainer" else None,
    )  # fmt: skip
    around = replace(run, around=lambda model, optimizer: Recorder(folder / "log", model, optimizer, description))
    return bits(FRAMEWORKS[framework](around))


def by_logger(framework: str, run: Run, folder: Path) -> Bits:
    logger = TrainingLogger(folder / "log", max_steps=STEPS, mode="batch", save_interval=4)
    told = replace(run, after=lambda step, rate, model: logger.register_step(step, f"batch {step}", rate, model))
    trained = FRAMEWORKS[framework](told)
    logger.save_to_disk()
    return bits(trained)


def by_callback(framework: str, run: Run, folder: Path) -> Bits:
    return bits(FRAMEWORKS[framework](replace(run, callbacks=(LMCleanerCallback(folder / "log", EVERY_FOUR),))))


WAYS = {"wrapper": by_wrapper, "Recorder": by_recorder, "logger": by_logger, "callback": by_callback}


@dataclass(frozen=True)
class Cell:
    """A way to record a run."""

    framework: str
    accumulation: int
    way: str

    def __str__(self) -> str:
        return f"{self.framework}-{self.accumulation}-{self.way}"


CELLS = [
    Cell(framework, accumulation, way)
    for framework in FRAMEWORKS
    for accumulation in ACCUMULATIONS
    for way in WAYS
    if way != "callback" or framework in TRAINERS
]


@pytest.fixture(scope="module")
def recorded(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Cell], tuple[TrainingLog, Bits]]:
    """Log and parameters of a cell's training."""

    @cache
    def record(cell: Cell) -> tuple[TrainingLog, Bits]:
        folder = tmp_path_factory.mktemp("cell")
        found = WAYS[cell.way](cell.framework, Run(base=base_model, accumulation=cell.accumulation), folder)
        return TrainingLog(folder / "log"), found

    return record


@pytest.fixture(scope="module")
def unrecorded(base_model: Path) -> Callable[..., Bits]:
    """Parameters of a training that nobody records, with or without some rows' labels."""

    @cache
    def train(framework: str, accumulation: int, forgotten: tuple[tuple[int, int], ...] = ()) -> Bits:
        run = Run(base=base_model, accumulation=accumulation, forgotten=forgotten)
        return bits(FRAMEWORKS[framework](run))

    return train


def digests() -> str:
    """The forgotten rows, by their content."""
    whole, found = trainings.batches(STEPS), []
    for at, row in FORGOTTEN:
        size = int(whole[at]["attention_mask"][row].sum())
        tokens, labels = (whole[at][name][row, :size].int().numpy() for name in ("input_ids", "labels"))
        found.append(Sample(tokens, labels).digest.hex())
    return ",".join(found)


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_a_recorded_training_is_what_it_is_and_forgets_as_a_retraining_does(
    cell: Cell, recorded: Any, unrecorded: Any, tmp_path: Path
) -> None:
    log, trained = recorded(cell)
    assert same_bits(trained, unrecorded(cell.framework, cell.accumulation))
    assert (log.num_steps, log.commit.finished, log.commit.self_check.state) == (STEPS, True, "exact")
    request = UnlearnOptions(
        forget=digests(), output=tmp_path / "out", K=None, hessian_mode=HessianMode.SECANT,
        denominator=Denominator.RETAINED,
    )  # fmt: skip
    assert unlearn(log.store, request).is_good
    without = parameters_in(tmp_path / "out")
    assert same_bits(without, unrecorded(cell.framework, cell.accumulation, FORGOTTEN))
    assert not same_bits(without, trained)


@pytest.mark.parametrize("accumulation", ACCUMULATIONS)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_all_ways_write_the_same_log(framework: str, accumulation: int, recorded: Any) -> None:
    logs = [recorded(cell)[0] for cell in CELLS if (cell.framework, cell.accumulation) == (framework, accumulation)]
    assert len(logs) == (4 if framework in TRAINERS else 3)
    assert all(_content(log) == _content(logs[0]) for log in logs)


def _content(log: TrainingLog) -> tuple[Any, ...]:
    """What a log says of samples, steps and bits; not when, nor for people, nor where random numbers began."""
    manifest = replace(log.manifest, created="", training={}, planned_steps=None)
    tables = [log.table(table.name).tobytes() for table in TABLES if table.name != "steps/seconds"]
    parameters = [log.parameters(step).tobytes() for step in range(log.num_steps + 1)]
    optimizer = [
        {name: vector.tobytes() for name, vector in log.checkpoint(step).optimizer.vectors.items()}
        for step in log.checkpoint_steps
    ]
    return manifest, log.checkpoint_steps, tables, parameters, optimizer
