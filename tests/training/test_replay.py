"""Replaying a whole log with nothing forgotten gives the run's bits."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.steps import Checkpoint
from lmcleaner.inspection.verify import verify
from lmcleaner.recording.describe import RunDescription
from lmcleaner.recording.recorder import Recorder
from lmcleaner.training.optimizers import optimizer_vectors
from lmcleaner.training.state import TrainingState
from lmcleaner.training.vectors import bits_of
from tiny_runs import SETTINGS, TinyRun, parameters_in, record_tiny, write_base_model


@pytest.mark.parametrize("setting", SETTINGS)
def test_every_step_replays_bit_for_bit(setting: str, base_model: Path, tmp_path: Path) -> None:
    run = record_tiny(base_model, tmp_path, **SETTINGS[setting])
    found = verify(run.open(), replay_steps=run.open().num_steps).replay
    assert found is not None
    assert found.num_exact == found.num_steps == run.open().num_steps > 0


def test_dropout_replays_bit_for_bit_from_logged_generator_states(tmp_path: Path) -> None:
    run = record_tiny(write_base_model(tmp_path / "base", dropout=0.1), tmp_path)
    log = run.open()
    assert all(microbatch.rng for step in range(log.num_steps) for microbatch in log.step(step).microbatches)
    found = verify(log, replay_steps=log.num_steps).replay
    assert found is not None
    assert found.is_exact


def test_a_model_without_dropout_logs_no_generator_states(adamw_run: TinyRun) -> None:
    assert len(adamw_run.open().table("rng/states")) == 0


def test_bfloat16_weights_replay_bit_for_bit(base_model: Path, tmp_path: Path) -> None:
    run = record_tiny(base_model, tmp_path, dtype="bfloat16")
    log = run.open()
    assert log.parameters(0).dtype == "uint16"
    found = verify(log, replay_steps=log.num_steps).replay
    assert found is not None
    assert found.is_exact


def test_the_replayed_state_is_that_of_every_checkpoint(adamw_run: TinyRun) -> None:
    log, replay = adamw_run.open(), adamw_run.replay_model()
    state = TrainingState(log.manifest, log.checkpoint(0), replay.device)
    for number in range(log.num_steps):
        step = log.step(number)
        state.apply(replay.gradient(step, state.parameters), step.lr)
        if number + 1 in log.checkpoint_steps:
            _assert_equal(state, log.checkpoint(number + 1))


def test_the_final_model_is_the_last_checkpoint(adamw_run: TinyRun) -> None:
    saved = parameters_in(adamw_run.trained)
    log = adamw_run.open()
    assert bits_of(saved.values()).tobytes() == log.parameters(log.num_steps).tobytes()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_loop_of_ones_own_that_averages_over_each_microbatch_replays(
    accumulate: int, base_model: Path, tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(base_model).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    description = RunDescription(model_source=str(base_model), loss_divisor=accumulate, padding_token=2)
    with Recorder(tmp_path / "log", model, optimizer, description):
        for step in range(4):
            for part in range(accumulate):
                (model(**_batch(step * accumulate + part)).loss / accumulate).backward()
            optimizer.step()
            optimizer.zero_grad()
    found = verify(TrainingLog(tmp_path / "log"), replay_steps=4)
    assert found.is_sound


def _batch(seed: int) -> dict[str, Tensor]:
    """Two rows, the second of them padded on the left."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, 20, (2, 6), generator=generator)
    labels, mask = tokens.clone(), torch.ones_like(tokens)
    tokens[1, :2], labels[1, :2], mask[1, :2] = 2, -100, 0  # the padding predicts the row's first token
    return {"input_ids": tokens, "labels": labels, "attention_mask": mask}


def _assert_equal(state: TrainingState, checkpoint: Checkpoint) -> None:
    assert bits_of(state.parameters).tobytes() == checkpoint.parameters.tobytes()
    found = optimizer_vectors(state.optimizer, state.parameters)
    assert found.vectors.keys() == checkpoint.optimizer.vectors.keys()
    for name, bits in checkpoint.optimizer.vectors.items():
        assert found.vectors[name].tobytes() == bits.tobytes(), name
    for name, values in checkpoint.optimizer.scalars.items():
        assert found.scalars[name].tolist() == values.tolist(), name
