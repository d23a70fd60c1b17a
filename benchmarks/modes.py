"""Measures every mode against the replayed counterfactual, and draws what it costs and how far off it is.

Each model has a folder of its own; cells that it has already are not measured again. Each recorded run is worked
through in a process of its own.
"""

import argparse
import copy
import gc
import json
import os
import platform
import tempfile
from collections.abc import Iterator, Sequence, Set
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from demonstration import (
    PLAIN_STEPS,
    REAL_MODEL,
    SHARED,
    WARM_STEPS,
    make_demonstration,
    make_real_rows,
    plain_step_seconds,
    train_plainly,
)
from drawing import draw
from lmcleaner import (
    Codec,
    CurvatureKind,
    Denominator,
    DivergedError,
    HessianMode,
    Level,
    OptimizerName,
    Propagation,
    RecordOptions,
    TrainingLog,
    UnlearnOptions,
    record,
    unlearn,
)
from lmcleaner.audit.oracle import replay_counterfactual
from lmcleaner.choices import Steps
from lmcleaner.evaluation.answers import answer_probabilities, mean_divergence
from lmcleaner.formats.samples import Sample
from lmcleaner.progress import Silent
from lmcleaner.training.models import load_model
from lmcleaner.training.numerics import device_name, restored_numerics
from lmcleaner.training.replay import ReplayModel, open_replay
from lmcleaner.training.vectors import distance
from lmcleaner.unlearning.request import ForgetSet
from lmcleaner.unlearning.run import resolve_request
from naming import add_names
from processes import HeapPeak, in_own_process, run_part
from tables import MEMORY, RESULTS, as_markdown, read_lines, show

SAMPLE_PERCENT = 20.0
STEPS_KEPT = ("10", "25", "50", "100", "200", "all", "auto")
SHARES = (0.01, 0.08, 0.10)
PAPER_MODES = [mode for mode in HessianMode if mode is not HessianMode.SECANT]
RATES = {"adamw": 1e-3, "sgd": 0.1}
MOST_ROWS = 64  # that answers are compared on
RETRAIN = "retrain"
SCATTERED = 100
EARLY_STEP = 20  # whose first row, or which as a whole, the cells over K forget


@dataclass(frozen=True, slots=True)
class Training:
    """How a run goes through its rows.

    Attributes:
        epochs: over all of them.
        batch_size: rows of a step.
    """

    epochs: int
    batch_size: int


MODELS = {  # the demonstration's on invented people, and stories260K on TOFU, whose rows are longer
    "demonstration": {"epochs": Training(20, 8), "once": Training(1, 8)},
    "real": {"epochs": Training(8, 8), "once": Training(1, 4)},
}


@dataclass(frozen=True, slots=True)
class Cell:
    """One measurement: what to forget from which run of a model, and how.

    Attributes:
        run: "epochs" uses its rows many times, "once" each once.
        optimizer: that trained it.
        forget: a share of the rows, "early" for the first row, or all, of one early step, or "scattered" for that row
            and 99 of later steps.
        level: rows or whole steps.
        K: as on the command line.
        mode: how gradients are found; "retrain" trains anew without the forgotten rows.
        propagation: through the optimizer or the paper's form.
    """

    run: str
    optimizer: str
    forget: str
    level: str
    K: str
    mode: str
    propagation: str = "optimizer"


def cells(run: str, optimizer: str) -> Iterator[Cell]:
    """What is measured on one recorded run.

    Yields:
        Shares of rows with K=all in every mode and propagation; on the run that uses each row once, K as well.
    """
    level = "batch" if run == "once" else "sample"
    for share in SHARES:
        yield Cell(run, optimizer, f"{share:g}", level, "all", RETRAIN)
        for mode in HessianMode:
            yield Cell(run, optimizer, f"{share:g}", level, "all", mode.value)
        for mode in PAPER_MODES if share == SHARES[1] else ():
            yield Cell(run, optimizer, f"{share:g}", level, "all", mode.value, "paper")
    for level in ("sample", "batch") if run == "once" else ():
        for steps in STEPS_KEPT:
            for mode in HessianMode:
                yield Cell(run, optimizer, "early", level, steps, mode.value)
    if run == "once":
        yield Cell(run, optimizer, "scattered", "sample", "all", HessianMode.SECANT.value)


def make_inputs(folder: Path, model: str) -> dict[str, Any]:
    """The rows of a model's runs, and the demonstration's model."""
    if model == "demonstration":
        make_demonstration(folder)
    else:
        make_real_rows(folder)
    return {}


def make_log(folder: Path, model: str, run: str, optimizer: str) -> dict[str, Any]:
    """Records 240 steps, or the 96 of the real model's epochs, with gradients and a checkpoint every 40."""
    record(folder / run / f"log-{optimizer}", _record_options(folder, model, run, optimizer))
    return {}


def _record_options(folder: Path, model: str, run: str, optimizer: str) -> RecordOptions:
    training = MODELS[model][run]
    return RecordOptions(
        model=str(folder / "model" if model == "demonstration" else REAL_MODEL),
        data=str(folder / run / "train.jsonl"), output=folder / run / f"trained-{optimizer}", epochs=training.epochs,
        batch_size=training.batch_size, lr=RATES[optimizer], warmup_ratio=0.1, optimizer=OptimizerName(optimizer),
        checkpoint_every=40, gradients=Codec.LOSSLESS, curvature=CurvatureKind.LOW_RANK, threads=1,
    )  # fmt: skip


def measure_run(folder: Path, model: str, run: str, optimizer: str) -> dict[str, Any]:
    """Measures all cells of a run that are not there yet, the reference of each request first."""
    results = folder / RESULTS
    known = {json.dumps(row["cell"]) for row in read_lines(results)}
    log = TrainingLog(folder / run / f"log-{optimizer}")
    training = _record_options(folder, model, run, optimizer)
    replay = open_replay(log.manifest)
    after = None
    oracles: dict[tuple[str, str], list[torch.Tensor]] = {}
    for cell in cells(run, optimizer):
        if json.dumps(asdict(cell)) in known:
            continue
        with restored_numerics(log.manifest.numerics), tempfile.TemporaryDirectory() as scratch:
            options = _options(log, cell, Path(scratch) / "out")
            forget_set, _ = resolve_request(log, options)
            request = cell.forget, cell.level
            if request not in oracles:
                oracles[request] = replay_counterfactual(log, replay, forget_set, Denominator.LOGGED, Silent())
            before = after or plain_step_seconds(log, training)
            measured: dict[str, Any]
            try:
                if cell.mode == RETRAIN:
                    made, measured = _trained(log, training, forget_set.digests)
                else:
                    made, measured = _unlearned(log, options)
                measured |= _compared(log, replay, made, forget_set, oracles[request])
            except DivergedError as error:
                measured = {"diverged": error.message}
            after = plain_step_seconds(log, training)
        with results.open("a") as file:
            file.write(json.dumps({"cell": asdict(cell), "step_seconds": (before + after) / 2, **measured}) + "\n")
    return {}


def measure_memory(folder: Path, run: str, optimizer: str) -> dict[str, Any]:
    """Peak memory of each mode by itself: of the second of two sweeps, since the first one's kernels keep memory.

    One early row is forgotten; memory depends on neither rows nor K.
    """
    log = TrainingLog(folder / run / f"log-{optimizer}")
    peaks = []
    for propagation, modes in (("optimizer", list(HessianMode)), ("paper", PAPER_MODES)):
        for mode in modes:
            cell = Cell(run, optimizer, "early", "sample", "10", mode.value, propagation)
            with suppress(DivergedError):  # as `measure_run` says of it
                _peak(log, cell)
                peak, planned = _peak(log, cell)
                peaks.append({"mode": mode.value, "propagation": propagation, "peak": peak, "planned": planned})
    return {"run": run, "optimizer": optimizer, "peaks": peaks}


def _peak(log: TrainingLog, cell: Cell) -> tuple[int, int]:
    """Bytes that a sweep takes over what is there before, and that its plan foresees."""
    with tempfile.TemporaryDirectory() as scratch:
        options = replace(_options(log, cell, Path(scratch) / "out"), oracle_sample=0.0)
        gc.collect()
        with HeapPeak() as peak:
            document = unlearn(log, options).document
    assert document is not None
    return peak.bytes, document["plan"]["parameter_memory_bytes"] + document["plan"]["activation_bytes"]


def _trained(log: TrainingLog, options: RecordOptions, forgotten: Set[bytes]) -> tuple[Any, dict[str, Any]]:
    """The model that one would have had without some rows, and what it took."""
    model, clock = train_plainly(log, options, forgotten)
    return model, {"seconds": clock.times[-1] - clock.times[0], "steps": len(clock.times) - 1}


def _options(log: TrainingLog, cell: Cell, output: Path) -> UnlearnOptions:
    if cell.forget == "scattered":
        steps = range(EARLY_STEP, log.num_steps, 2)
        forget = ",".join(log.step(step).samples[0].digest.hex() for step in steps[:SCATTERED])
    elif cell.forget != "early":
        count = max(1, round(float(cell.forget) * len(log.sample_rows)))
        digests = sorted(log.sample_rows)[:count]
        forget = ",".join(digest.hex() for digest in digests)
    elif cell.level == "sample":
        forget = log.step(EARLY_STEP).samples[0].digest.hex()
    else:
        forget = f"steps:{EARLY_STEP}"
    K: Steps = None if cell.K == "all" else "auto" if cell.K == "auto" else int(cell.K)  # noqa: N806
    return UnlearnOptions(
        forget=forget, output=output, level=Level(cell.level), K=K,
        hessian_mode=HessianMode.SECANT if cell.mode == RETRAIN else HessianMode(cell.mode),
        propagation=Propagation(cell.propagation), ledger=False,
        oracle_sample=SAMPLE_PERCENT if cell.propagation == "optimizer" else 0.0,
    )  # fmt: skip


def _unlearned(log: TrainingLog, options: UnlearnOptions) -> tuple[Any, dict[str, Any]]:
    """The unlearned model, and what its audit says."""
    document = unlearn(log.location, options).document
    assert document is not None
    assert options.output is not None
    keys = ("gradients", "hvp_calls", "K_used", "settled", "linearization_error")
    return load_model(str(options.output), torch.float32, log.manifest.numerics.attention), {
        "seconds": document["timing"]["sweep_seconds"],
        "steps": sum(window["tau"] - window["start"] for window in document["windows"]),
        "verdict": document["result"]["verdict"],
        "estimated_error": document["result"]["estimated_error"],
        "plan": document["plan"],
        "windows": [{key: window[key] for key in keys} for window in document["windows"]],
    }


def _compared(
    log: TrainingLog, replay: ReplayModel, made: Any, forget_set: ForgetSet, oracle: list[torch.Tensor]
) -> dict[str, Any]:
    """How far a model is from the replayed counterfactual, in parameters and in answers."""
    own = [parameter.detach() for parameter in ReplayModel(made, log.manifest, replay.device).parameters]
    trained = replay.load(log.parameters(log.num_steps))
    reference = copy.deepcopy(made)
    ReplayModel(reference, log.manifest, replay.device).point_to(oracle)
    answers = {}
    for name, samples in _rows(log, forget_set.digests).items():
        probabilities = answer_probabilities(made, samples)
        answers[name] = {
            "answer_probability": sum(probabilities) / len(probabilities),
            "kl_from_oracle": mean_divergence(reference, made, samples),
        }
    return {"relative_error": distance(own, oracle) / distance(trained, oracle), "answers": answers}


def _rows(log: TrainingLog, forgotten: Set[bytes]) -> dict[str, list[Sample]]:
    """Evenly spaced rows in and outside the forget set."""
    chosen = {
        name: [row for digest, row in log.sample_rows.items() if (digest in forgotten) is inside]
        for name, inside in {"forgotten": True, "retained": False}.items()
    }
    return {name: [log.sample(row) for row in rows[:: -(-len(rows) // MOST_ROWS)]] for name, rows in chosen.items()}


def _remember_memory(folder: Path, optimizer: str) -> None:
    """Measures memory in a process of its own, unless it has been; one run will do, since all train the same model."""
    if optimizer not in {found["optimizer"] for found in read_lines(folder / MEMORY)}:
        found = in_own_process(measure_memory, folder, "once", optimizer)
        with (folder / MEMORY).open("a") as file:
            file.write(json.dumps(found) + "\n")


def measure(folder: Path, model: str, console: Console) -> None:
    """Measures what a model's folder doesn't have yet, prints and draws everything."""
    runs = MODELS[model]
    console.print(f"{model}: {', '.join(f'{run}, batch {training.batch_size}' for run, training in runs.items())}")
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "once" / "train.jsonl").is_file():
        in_own_process(make_inputs, folder, model)
    for run in runs:
        for optimizer in RATES:
            if not (folder / run / f"log-{optimizer}").is_dir():
                in_own_process(make_log, folder, model, run, optimizer)
            in_own_process(measure_run, folder, model, run, optimizer)
    for optimizer in RATES:
        _remember_memory(folder, optimizer)
    show(folder, console)
    for picture in draw(folder / RESULTS, folder):
        console.print(f"drawn: {picture}")
    (folder / "tables.md").write_text(as_markdown(folder))
    console.print(f"written: {folder / 'tables.md'}")


def read_options(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of a command line; all models that are there where none is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_names(parser, "models", MODELS, [name for name in MODELS if name != "real" or SHARED.is_dir()])
    parser.add_argument("--folder", type=Path, default=Path("modes-run"), help="default: %(default)s")
    return parser.parse_args(words)


def main() -> None:
    """Measures the models that are asked for."""
    if run_part(make_inputs, make_log, measure_run, measure_memory):
        return
    options = read_options()
    console = Console(width=190)
    console.print(
        f"{device_name('cpu')}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}, "
        f"torch {torch.__version__}, one thread; {SAMPLE_PERCENT:g} % of the steps taken twice; x step: in steps of "
        f"the plain Trainer, {PLAIN_STEPS - WARM_STEPS} of which are timed before and after a cell"
    )
    for model in options.models:
        measure(options.folder / model, model, console)


if __name__ == "__main__":
    main()
