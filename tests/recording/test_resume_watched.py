"""A watched training that goes on from a checkpoint of its own goes on in its log, with the bits of an unbroken run."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM
from two_processes import in_processes

from lmcleaner.formats.errors import ExistsError, LmcleanerError, MismatchError, NotFoundError, UsageError
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.inspection.verify import verify
from lmcleaner.recording.callback import LMCleanerCallback
from lmcleaner.recording.options import WatchOptions
from lmcleaner.recording.resume import restore
from lmcleaner.recording.watch import Watch
from real_runs import EVERY_TWO, STEPS, Interruption, Setting, bits, load, trainer_of, with_lora
from tiny_runs import content_of, same_bits, write_base_model

SAVES = {"save_strategy": "steps", "save_steps": 2}
RESUME = WatchOptions(resume=True)


def with_dropout_in_lora(base: Path) -> Any:
    return with_lora(base, lora_dropout=0.1)


TRAINERS: dict[str, Setting] = {
    "autocast": Setting(load, trainer={**SAVES, "bf16": True}),
    "LoRA": Setting(with_dropout_in_lora, trainer=SAVES),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base_model(tmp_path_factory.mktemp("base") / "model", dropout=0.1)


@pytest.mark.parametrize("setting", TRAINERS.values(), ids=TRAINERS)
def test_a_trainer_goes_on_from_its_own_checkpoint(setting: Setting, base: Path, tmp_path: Path) -> None:
    whole, log = tmp_path / "whole", tmp_path / "log"
    unbroken = trainer_of(setting, base, tmp_path / "a", callbacks=[LMCleanerCallback(whole, EVERY_TWO)])
    unbroken.train()
    recording = LMCleanerCallback(log, EVERY_TWO)
    with pytest.raises(KeyboardInterrupt) as stop:
        trainer_of(setting, base, tmp_path / "b", callbacks=[recording, Interruption(3)]).train()
    recording.close(stop.value)
    assert TrainingLog(log).num_steps == 3
    again = trainer_of(setting, base, tmp_path / "b", callbacks=[LMCleanerCallback(log, RESUME)])
    again.train(resume_from_checkpoint=True)
    assert content_of(log) == content_of(whole)
    assert TrainingLog(log).commit.self_check.state == "exact"  # type: ignore[union-attr]
    assert unbroken.model is not None
    assert same_bits(bits(again.model), bits(unbroken.model))


# --- Several processes.


def train(base: Path, folder: Path, log: str, options: WatchOptions, stop: int | None = None) -> None:
    """A loop that saves its state before the third step, and goes on from it where it finds it."""
    with Watch(folder / log, options):
        dist.init_process_group("gloo")
        torch.manual_seed(dist.get_rank())
        model = AutoModelForCausalLM.from_pretrained(base).train()
        wrapped = DistributedDataParallel(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        own = folder / f"own-{dist.get_rank()}.pt"
        start = 0
        if options.resume and own.exists():
            state = torch.load(own, weights_only=True)
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            torch.set_rng_state(state["generator"])
            start = 2
        for step in range(start, STEPS):
            if step == 2:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                torch.save(state | {"generator": torch.get_rng_state()}, own)
            generator = torch.Generator().manual_seed(10 * step + dist.get_rank())
            tokens = torch.randint(3, 20, (2, 6), generator=generator)
            wrapped(input_ids=tokens, labels=tokens).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if step == stop:
                raise KeyboardInterrupt


def interrupted(base: Path, folder: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(base, folder, "log", WatchOptions(checkpoint_every=2, updates="int8", gradients="lossless"), stop=3)


@pytest.fixture(scope="module")
def processes(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run of two processes, once unbroken and once interrupted; tests work on copies of its log."""
    folder = tmp_path_factory.mktemp("processes")
    in_processes(train, base, folder, "whole", WatchOptions(checkpoint_every=2, updates="int8", gradients="lossless"))
    in_processes(interrupted, base, folder)
    assert TrainingLog(folder / "log").num_steps == 4
    return folder


@pytest.mark.parametrize("where", ["from its own checkpoint", "from the start"])
def test_two_processes_go_on(where: str, base: Path, processes: Path, tmp_path: Path) -> None:
    shutil.copytree(processes / "log", tmp_path / "log")
    if where == "from its own checkpoint":
        for own in processes.glob("own-*.pt"):
            shutil.copy(own, tmp_path)
    in_processes(train, base, tmp_path, "log", RESUME)
    assert content_of(tmp_path / "log") == content_of(processes / "whole")
    found = verify(TrainingLog(tmp_path / "log"), replay_steps=STEPS)
    assert found.replay is not None
    assert found.replay.is_exact


def is_refused(base: Path, folder: Path, options: WatchOptions, error: type[LmcleanerError], message: str) -> None:
    with pytest.raises(error, match=message):
        train(base, folder, "log", options)


def test_another_number_of_processes_is_refused(base: Path, processes: Path, tmp_path: Path) -> None:
    shutil.copytree(processes / "log", tmp_path / "log")
    before = content_of(tmp_path / "log")
    in_processes(is_refused, base, tmp_path, RESUME, MismatchError, "processes: the log has 2, found 1", count=1)
    assert content_of(tmp_path / "log") == before


def test_a_log_of_several_processes_has_no_random_state_to_restore_for_each(base: Path, processes: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base)
    with pytest.raises(UsageError, match="holds the random state of the first one alone") as caught:
        restore(processes / "log", model, torch.optim.AdamW(model.parameters()))
    assert "a checkpoint of your own" in str(caught.value.hint)


# --- What stands against it.


def test_what_stands_against_resuming_is_said(base: Path, processes: Path, tmp_path: Path) -> None:
    in_processes(is_refused, base, tmp_path, RESUME, NotFoundError, "no training log", count=1)
    in_processes(interrupted, base, tmp_path, count=1)
    other = WatchOptions(checkpoint_every=3, resume=True)
    in_processes(is_refused, base, tmp_path, other, UsageError, "checkpoint_every: the log has 2, found 3", count=1)
    shutil.rmtree(tmp_path / "log")
    shutil.copytree(processes / "whole", tmp_path / "log")
    in_processes(is_refused, base, tmp_path, RESUME, ExistsError, "nothing to resume", count=1)
    with pytest.raises(UsageError, match="overwrite and resume contradict each other"):
        WatchOptions(overwrite=True, resume=True)
