"""What several benchmarks train: the demonstration's model on invented people, and a real one on real rows."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Set
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from clock import Clock
from lmcleaner import RecordOptions, TrainingLog
from lmcleaner.recording.training import make_trainer
from lmcleaner.training.models import load_base_model, load_tokenizer

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # the demonstration is no part of the package

from demo.base_model import make_base_model  # noqa: E402
from demo.people import make_people  # noqa: E402

PLAIN_STEPS = 25  # that are trained to time one, of which all but the first few are timed
WARM_STEPS = 5
SHARED = ROOT.parent / "shared"
REAL_MODEL = SHARED / "models" / "stories260K_hf"


def make_demonstration(folder: Path) -> dict[str, Any]:
    """Pretrains the demonstration's model on some invented people; others are to be learnt, 96 rows or 1,920.

    The model comes into `model`, the rows into `epochs/train.jsonl` and `once/train.jsonl`.
    """
    random = Random(1)
    people = make_people(480, random)
    others = make_people(1000, random, taken={person.name for person in people})
    rows = [row for person in people for row in person.rows()]
    parameters = make_base_model(folder / "model", [row for person in others for row in person.rows()], 1)
    for name, chosen in {"epochs": rows[:96], "once": rows}.items():
        Random(1).shuffle(chosen)
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chosen))
    return {"parameters": parameters}


def make_real_rows(folder: Path) -> None:
    """96 short rows of TOFU in `epochs/train.jsonl`, 960 in `once/train.jsonl`; needs the data beside the project."""
    tool = SHARED / "tools" / "tofu_slice.py"
    for name, options in {"epochs": (), "once": ("--retain", "952", "--max-chars", "200")}.items():
        subprocess.run([sys.executable, tool, folder / name, *options], check=True, stdout=subprocess.DEVNULL)


def train_plainly(log: TrainingLog, options: RecordOptions, forgotten: Set[bytes] = frozenset()) -> tuple[Any, Clock]:
    """The model of a run once more, by the plain `Trainer`, without some rows and without recording.

    It draws its own order of what is left and divides by what is there: the model that one would have had, but another
    one than the counterfactual.
    """
    model, tokenizer = load_base_model(log.manifest), load_tokenizer(options.model)
    rows = [log.sample(row) for digest, row in log.sample_rows.items() if digest not in forgotten]
    clock = Clock()
    with tempfile.TemporaryDirectory() as scratch:
        make_trainer(model, tokenizer, rows, options, Path(scratch), clock).train()
    return model, clock


def plain_step_seconds(log: TrainingLog, options: RecordOptions) -> float:
    """What a step of the plain `Trainer` takes at this moment."""
    return train_plainly(log, replace(options, max_steps=PLAIN_STEPS))[1].step_seconds(WARM_STEPS)
