"""`lmcleaner record LOG -- torchrun train.py`: what the launcher starts is recorded, and is what it was."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from two_processes import bytes_of, in_processes

from lmcleaner.choices import Denominator, HessianMode
from lmcleaner.formats.errors import UsageError
from lmcleaner.formats.lock import holder
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.samples import Sample
from lmcleaner.formats.store import open_store
from lmcleaner.inspection.verify import verify
from lmcleaner.recording.launcher import is_launcher, launch
from lmcleaner.unlearning.options import UnlearnOptions
from lmcleaner.unlearning.run import unlearn
from tiny_runs import parameters_in

# A Hugging Face trainer, whose two processes accumulate over three microbatches and count tokens together.
TRAINER = """
import sys

import torch
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from rows import rows

base, output, *forgotten = sys.argv[1:]
torch.set_num_threads(1)


def collate(numbers):
    found = [rows[number] for number in numbers]
    width = max(map(len, found))
    tokens = torch.tensor([row + [2] * (width - len(row)) for row in found])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in found])
    gone = torch.tensor([str(number) in forgotten for number in numbers])
    labels = tokens.masked_fill(mask == 0, -100).masked_fill(gone[:, None], -100)
    return {"input_ids": tokens, "attention_mask": mask, "labels": labels}


arguments = TrainingArguments(
    output, max_steps=4, per_device_train_batch_size=2, gradient_accumulation_steps=3, learning_rate=1e-2, use_cpu=True,
    max_grad_norm=0.5, save_strategy="no", report_to=[], disable_tqdm=True, ddp_find_unused_parameters=False,
)
model = AutoModelForCausalLM.from_pretrained(base)
trainer = Trainer(model, arguments, train_dataset=list(range(24)), data_collator=collate)
trainer.train()
trainer.save_model(output)
if trainer.args.process_index == 0:
    print("trained")
"""
ROWS = """
import torch


def row(number):
    generator = torch.Generator().manual_seed(number)
    size = int(torch.randint(4, 9, (1,), generator=generator))
    return torch.randint(3, 20, (size,), generator=generator).tolist()


rows = [row(number) for number in range(24)]
"""
# A loop by Accelerate, one of whose processes dies in the third step.
FAILING = """
import sys

import torch
from accelerate import Accelerator
from transformers import AutoModelForCausalLM

accelerator = Accelerator(cpu=True)
torch.set_num_threads(1)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).train()
model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-2))
for step in range(4):
    tokens = torch.arange(3, 9).repeat(2, 1) + step + accelerator.process_index
    accelerator.backward(model(input_ids=tokens, labels=tokens).loss)
    if step == 2 and accelerator.process_index == 1 and len(sys.argv) == 2:
        raise ValueError("as it would by itself")
    optimizer.step()
    optimizer.zero_grad()
"""
FORGOTTEN = (3, 8, 14, 21)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("scripts")
    for name, content in {"train.py": TRAINER, "rows.py": ROWS, "failing.py": FAILING}.items():
        (made / name).write_text(content)
    return made


def record(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from lmcleaner.cli.main import main; main()", "record", *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=600
    )


@pytest.fixture(scope="module")
def recorded(base_model: Path, folder: Path) -> Path:
    """Where a training by torchrun was recorded."""
    done = record(
        folder, "log", "--checkpoint-every", 3, "--json", "--",
        "torchrun", "--nproc-per-node", 2, "train.py", base_model, folder / "recorded",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "log": "log", "exit_code": 0, "num_steps": 4, "finished": True, "replayable": "exact",
    }  # fmt: skip
    assert "\ntrained\n" in done.stderr
    return folder / "log"


def by_itself(folder: Path, base: Path, output: Path, *forgotten: object) -> None:
    sys.argv = ["train.py", str(base), str(output), *map(str, forgotten)]
    sys.path.insert(0, str(folder))
    runpy.run_path(str(folder / "train.py"), run_name="__main__")


def test_a_trainer_by_torchrun_has_the_bits_that_it_has_by_itself(
    recorded: Path, base_model: Path, folder: Path, tmp_path: Path
) -> None:
    in_processes(by_itself, folder, base_model, tmp_path / "plain")
    assert bytes_of(tmp_path / "plain") == bytes_of(folder / "recorded")
    log = TrainingLog(recorded)
    assert (log.manifest.world_size, log.checkpoint_steps) == (2, (0, 3, 4))
    assert [m.rank for m in log.step(1).microbatches] == [0, 0, 0, 1, 1, 1]
    assert len({m.denominator for m in log.step(1).microbatches}) == 1  # tokens of all six
    assert log.manifest.whole_divisor == 1.0  # Trainer multiplies each loss by the number of processes
    found = verify(log, replay_steps=4)
    assert found.replay is not None
    assert found.replay.num_exact == 4


def test_unlearning_gives_the_bits_of_the_trainer_without_the_rows_labels(
    recorded: Path, base_model: Path, folder: Path, tmp_path: Path
) -> None:
    in_processes(by_itself, folder, base_model, tmp_path / "gold", *FORGOTTEN)
    rows = runpy.run_path(str(folder / "rows.py"))["rows"]
    contents = [torch.tensor(rows[number]).int().numpy() for number in FORGOTTEN]
    request = UnlearnOptions(
        forget=",".join(Sample(content, content).digest.hex() for content in contents),
        output=tmp_path / "unlearned",
        K=None,
        hessian_mode=HessianMode.SECANT,
        denominator=Denominator.RETAINED,
        ledger=False,
    )
    unlearn(recorded, request)
    gold, found = parameters_in(tmp_path / "gold"), parameters_in(tmp_path / "unlearned")
    assert all(torch.equal(gold[name], found[name]) for name in gold)


def test_when_a_process_dies_the_launcher_ends_the_others_and_the_interrupted_log_can_be_resumed(
    base_model: Path, folder: Path
) -> None:
    done = record(
        folder, "failing", "--", "accelerate", "launch", "--multi_gpu", "--num_processes", 2, "failing.py", base_model
    )
    assert done.returncode == 1
    assert "ValueError: as it would by itself" in done.stderr
    log = TrainingLog(folder / "failing")
    assert (log.num_steps, log.commit.finished) == (2, False)
    assert holder(open_store(folder / "failing")) is None
    words = ("accelerate", "launch", "--multi_gpu", "--num_processes", 2, "failing.py", base_model, "not this time")
    done = record(folder, "failing", "--resume", "--", *words)
    assert done.returncode == 0, done.stderr
    log = TrainingLog(folder / "failing")
    assert (log.num_steps, log.commit.finished) == (4, True)
    assert log.commit.self_check is not None
    assert log.commit.self_check.state == "exact"


@pytest.mark.parametrize(
    "command", ["torchrun", "/some/where/torchrun", "-m torch.distributed.run", "accelerate launch"]
)
def test_launchers_are_known_by_their_names(command: str) -> None:
    assert is_launcher([*command.split(), "train.py"])


@pytest.mark.parametrize("command", ["", "train.py", "-m train", "accelerate test", "torchrun.py"])
def test_nothing_else_is_taken_for_one(command: str) -> None:
    assert not is_launcher(command.split())


def test_a_program_that_is_no_python_script_is_refused() -> None:
    with pytest.raises(UsageError, match=r"torchrun is told to start \./train without Python"):
        launch(["torchrun", "--no-python", "./train"], ["record", "log"])
