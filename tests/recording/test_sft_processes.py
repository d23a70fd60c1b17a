"""TRL's `SFTTrainer` in two processes: padded or packed, by wrapper or callback, unbroken or resumed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import sft_processes
import torch
from sft_processes import ROWS, SETTINGS, STEPS, row, train
from two_processes import bytes_of, in_processes

from lmcleaner.audit.check import audit_model
from lmcleaner.audit.options import AuditOptions
from lmcleaner.choices import Denominator, HessianMode
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.samples import Sample
from lmcleaner.inspection.verify import verify
from lmcleaner.recording.callback import LMCleanerCallback
from lmcleaner.recording.options import WatchOptions
from lmcleaner.unlearning.options import UnlearnOptions
from lmcleaner.unlearning.run import unlearn
from real_runs import Interruption
from tiny_runs import content_of, parameters_in, same_bits, write_base_model

FORGOTTEN = (3, 8, 14, 21)
EVERY_THREE = WatchOptions(checkpoint_every=3)
pytestmark = pytest.mark.filterwarnings("ignore:Padding-free training is enabled:UserWarning")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base_model(tmp_path_factory.mktemp("base") / "model", dropout=0.1)


def recorded(base: Path, folder: Path, name: str) -> None:
    train(base, folder / "recorded", name, callbacks=[LMCleanerCallback(folder / "log", EVERY_THREE)])


def content(number: int) -> Sample:
    tokens, labels = (torch.tensor(row(number)[name]).int().numpy() for name in ("input_ids", "labels"))
    return Sample(tokens, labels)


def check_recorded(log: TrainingLog, name: str) -> None:
    """All rows of both processes are there, and one process takes all steps again."""
    assert (log.num_steps, log.manifest.world_size, log.commit.finished) == (STEPS, 2, True)
    steps = [log.step(number) for number in range(STEPS)]
    assert {s.digest for step in steps for s in step.samples} == {content(number).digest for number in range(ROWS)}
    for rank in (0, 1):
        own = {s.digest for step in steps for m in step.microbatches if m.rank == rank for s in m.samples}
        assert own < {content(number).digest for number in range(ROWS)}
    assert {m.packed for step in steps for m in step.microbatches} == {"max_length" in SETTINGS[name]}
    assert log.commit.self_check is not None
    assert (log.commit.self_check.state, log.commit.self_check.why) == ("exact", "")
    found = verify(log, replay_steps=STEPS)
    assert (found.problems, found.replay is not None and found.replay.is_exact) == ([], True)


def check_forgets(log: Path, output: Path, gold: Path) -> None:
    forget = ",".join(content(number).digest.hex() for number in FORGOTTEN)
    request = UnlearnOptions(
        forget=forget, output=output, K=None, hessian_mode=HessianMode.SECANT, denominator=Denominator.RETAINED
    )
    unlearn(log, request)
    assert same_bits(parameters_in(output), parameters_in(gold))
    assert audit_model(output, log, AuditOptions(oracle=True)).passed


@pytest.mark.parametrize("name", SETTINGS)
def test_one_process_forgets_as_a_retraining_in_two_does(name: str, base: Path, tmp_path: Path) -> None:
    in_processes(recorded, base, tmp_path, name)
    check_recorded(TrainingLog(tmp_path / "log"), name)
    in_processes(train, base, tmp_path / "gold", name, FORGOTTEN)
    check_forgets(tmp_path / "log", tmp_path / "unlearned", tmp_path / "gold")
    assert bytes_of(tmp_path / "gold") != bytes_of(tmp_path / "recorded")


def test_the_wrapper_around_torchrun_makes_the_same_log(base: Path, tmp_path: Path) -> None:
    script = Path(sft_processes.__file__)
    command = [
        sys.executable, "-m", "lmcleaner.cli", "record", tmp_path / "log", "--checkpoint-every", 3, "--json", "--",
        "torchrun", "--nproc-per-node", 2, script, base, tmp_path / "recorded", "packing", "[]",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["replayable"] == "exact"
    in_processes(recorded, base, tmp_path / "by callback", "packing")
    assert content_of(tmp_path / "log") == content_of(tmp_path / "by callback" / "log")


def test_what_each_process_divides_by_is_what_it_counted(base: Path, tmp_path: Path) -> None:
    in_processes(recorded, base, tmp_path, "each its own tokens")
    log = TrainingLog(tmp_path / "log")
    assert log.manifest.loss_divisor == 1
    for number in range(STEPS):
        for rank in (0, 1):
            own = [m for m in log.step(number).microbatches if m.rank == rank]
            labels = sum(sample.num_targets for m in own for sample in m.samples)
            assert [m.denominator for m in own] == [labels] * 2


def interrupted(base: Path, folder: Path, name: str) -> None:
    recording = LMCleanerCallback(folder / "log", EVERY_THREE)
    with pytest.raises(KeyboardInterrupt) as stop:
        train(base, folder / "own", name, callbacks=[recording, Interruption(3)], saves=True)
    recording.close(stop.value)


def resumed(base: Path, folder: Path, name: str) -> None:
    recording = LMCleanerCallback(folder / "log", WatchOptions(resume=True))
    train(base, folder / "own", name, callbacks=[recording], saves=True, resume=True)


@pytest.mark.parametrize("count", [1, 2])
def test_a_packed_training_goes_on_from_its_own_checkpoint(count: int, base: Path, tmp_path: Path) -> None:
    name = "packing"
    in_processes(recorded, base, tmp_path / "whole", name, count=count)
    in_processes(interrupted, base, tmp_path, name, count=count)
    assert TrainingLog(tmp_path / "log").num_steps == 3
    in_processes(resumed, base, tmp_path, name, count=count)
    assert content_of(tmp_path / "log") == content_of(tmp_path / "whole" / "log")
    found = verify(TrainingLog(tmp_path / "log"), replay_steps=STEPS)
    assert (found.problems, found.replay is not None and found.replay.is_exact) == ([], True)
    in_processes(train, base, tmp_path / "gold", name, FORGOTTEN, count=count)
    check_forgets(tmp_path / "log", tmp_path / "unlearned", tmp_path / "gold")
