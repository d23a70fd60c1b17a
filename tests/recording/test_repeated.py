"""A loop of one's own goes on with its log: from any step that the log knows, and only if it is the same run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from lmcleaner.formats.errors import ExistsError, LmcleanerError, MismatchError, UsageError
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.recording.describe import RunDescription
from lmcleaner.recording.recorder import Recorder
from lmcleaner.recording.resume import restore
from tiny_runs import write_base_model

STEPS = 10


class Run:
    """A run of ten steps with dropout, that tests interrupt, bend and go on with."""

    def __init__(self, base: Path, log: Path) -> None:
        self.log = log
        torch.manual_seed(0)
        self.model = AutoModelForCausalLM.from_pretrained(base).train()
        self.optimizer: torch.optim.Optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01)
        self.description: dict[str, Any] = {"model_source": str(base), "padding_token": 2, "checkpoint_every": 4}
        self.first_row = 0

    def recorder(self, *, resume: bool) -> Recorder:
        description = RunDescription(**self.description)
        return Recorder(self.log, self.model, self.optimizer, description, resume=resume)

    def train(self, start: int, stop: int) -> None:
        for number in range(start, stop):
            self.optimizer.param_groups[0]["lr"] = 0.01 * number  # 0 at first, so that the step changes nothing
            tokens = (torch.arange(12).reshape(2, 6) + number + self.first_row) % 20 + 3
            self.model(input_ids=tokens, labels=tokens).loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base_model(tmp_path_factory.mktemp("dropout") / "model", dropout=0.1)


@pytest.fixture
def log(base: Path, tmp_path: Path) -> Path:
    """A log of a run that was interrupted after six steps."""
    run = Run(base, tmp_path / "log")
    with pytest.raises(KeyboardInterrupt), run.recorder(resume=False):  # noqa: PT012 -- the loop is the point
        run.train(0, 6)
        raise KeyboardInterrupt
    return run.log


@pytest.fixture(scope="module")
def whole(base: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingLog:
    run = Run(base, tmp_path_factory.mktemp("whole") / "log")
    with run.recorder(resume=False):
        run.train(0, STEPS)
    return TrainingLog(run.log)


def assert_same(log: Path, whole: TrainingLog) -> None:
    found = TrainingLog(log)
    assert found.commit.finished
    assert found.parameters_digest(STEPS) == whole.parameters_digest(STEPS)
    assert found.commit.checkpoints == whole.commit.checkpoints
    tables = set(whole.commit.tables) - {"steps/seconds"}
    assert all(found.commit.tables[name] == whole.commit.tables[name] for name in tables)


def test_it_goes_on_from_the_last_checkpoint(base: Path, log: Path, whole: TrainingLog) -> None:
    run = Run(base, log)
    start = restore(log, run.model, run.optimizer)
    assert start == 4
    with run.recorder(resume=True) as recorder:
        assert recorder.num_steps == 4
        run.train(4, STEPS)
    assert_same(log, whole)


@pytest.mark.parametrize("start", [0, 1, 3, 6])
def test_it_goes_on_from_any_step(start: int, base: Path, log: Path, whole: TrainingLog) -> None:
    run = Run(base, log)
    run.train(0, start)
    with run.recorder(resume=True) as recorder:
        assert recorder.num_steps == start
        run.train(start, STEPS)
    assert_same(log, whole)


def _other_rows(run: Run) -> None:
    run.first_row = 1


def _other_random_numbers(run: Run) -> None:
    torch.manual_seed(1)


def _other_state(run: Run) -> None:
    run.optimizer.state[run.model.model.norm.weight]["exp_avg"].mul_(2)


DIFFERENT: dict[str, tuple[Callable[[Run], None], str]] = {
    "rows": (_other_rows, r"step 4, rows: expected \['"),
    "random numbers": (_other_random_numbers, "step 4, random state"),
    "optimizer state": (_other_state, "step 4, parameters after it: expected BLAKE3"),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_a_step_that_differs_is_named_and_the_log_stays_as_it_was(case: str, base: Path, log: Path) -> None:
    change, message = DIFFERENT[case]
    before = TrainingLog(log).commit
    run = Run(base, log)
    restore(log, run.model, run.optimizer)
    change(run)
    with (
        pytest.raises(MismatchError, match=f"doesn't repeat what its log holds: .*{message}"),
        run.recorder(resume=True),
    ):
        run.train(4, STEPS)
    assert TrainingLog(log).commit == before


def test_a_loop_that_ends_before_its_log_does_is_refused(base: Path, log: Path) -> None:
    run = Run(base, log)
    message = r"ended too early: .*expected at least the log's 6 steps, found 5"
    with pytest.raises(MismatchError, match=message), run.recorder(resume=True):
        run.train(0, 5)
    assert not TrainingLog(log).commit.finished


def _other_weights(run: Run) -> None:
    with torch.no_grad():
        run.model.model.norm.weight.add_(1)


def _other_divisor(run: Run) -> None:
    run.description["loss_divisor"] = 2.0


def _other_betas(run: Run) -> None:
    run.optimizer.param_groups[0]["betas"] = (0.8, 0.999)


def _other_optimizer(run: Run) -> None:
    run.optimizer = torch.optim.SGD(run.model.parameters(), lr=0.01)


def _frozen_parameter(run: Run) -> None:
    run.model.model.norm.weight.requires_grad_(False)
    run.optimizer = torch.optim.Adam([p for p in run.model.parameters() if p.requires_grad], lr=0.01)


def _without_flushing(run: Run) -> None:
    torch.set_flush_denormal(False)


NOT_THE_RUN: dict[str, tuple[Callable[[Run], None], type[LmcleanerError], str]] = {
    "other weights": (_other_weights, MismatchError, "at no step of the log: .*steps 0 to 6"),
    "another description": (_other_divisor, UsageError, r"loss_divisor: the log has 1\.0, found 2\.0"),
    "other hyperparameters": (_other_betas, MismatchError, r"optimizer\.1\.betas\.0: the log has 0\.9, found 0\.8"),
    "another optimizer": (_other_optimizer, MismatchError, r"optimizer\.0\.name: the log has Adam, found SGD"),
    "a frozen parameter": (_frozen_parameter, MismatchError, "parameters: the log has "),
    "other rounding": (_without_flushing, MismatchError, r"numerics\.flush_denormal: the log has True, found False"),
}


@pytest.mark.parametrize("case", NOT_THE_RUN)
def test_another_run_is_refused_before_it_begins(case: str, base: Path, log: Path) -> None:
    change, error, message = NOT_THE_RUN[case]
    run = Run(base, log)
    change(run)
    with pytest.raises(error, match=message):
        run.recorder(resume=True)


def test_restoring_into_another_model_is_refused(base: Path, log: Path, tmp_path: Path) -> None:
    other = Run(write_base_model(tmp_path / "wide", hidden_size=32), log)
    with pytest.raises(UsageError, match="other trainable parameters than the run's"):
        restore(log, other.model, other.optimizer)


def test_of_two_that_go_on_at_once_the_second_is_refused(base: Path, log: Path) -> None:
    first, second = Run(base, log), Run(base, log)
    late = second.recorder(resume=True)
    with first.recorder(resume=True):
        with pytest.raises(ExistsError, match="being written"), late:
            pass
        torch.manual_seed(0)
        first.train(0, STEPS)
    with pytest.raises(ExistsError, match="another process has gone on"), late:
        pass
