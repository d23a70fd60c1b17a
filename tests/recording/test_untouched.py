"""What something else than the optimizer's steps changes is refused at the next step, and the log ends before it."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from lmcleaner import Recorder, RunDescription, TrainingLog, UsageError, Watch, verify

STEPS, EVENT = 6, 4
EVERY = 4  # steps between checkpoints
Act = Callable[[nn.Module, torch.optim.Optimizer], object]


def _train(base: Path, log: Path, act: Act, *, event: int = EVENT, watched: bool = False) -> None:
    """Something happens once before a step, or after the last."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    description = RunDescription(model_source=str(base), checkpoint_every=EVERY)
    with Watch(log) if watched else Recorder(log, model, optimizer, description):
        for step in range(STEPS):
            if step == event:
                act(model, optimizer)
            tokens = torch.randint(3, 20, (2, 6), generator=torch.Generator().manual_seed(step))
            model(input_ids=tokens, labels=tokens).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        if event == STEPS:
            act(model, optimizer)


@torch.no_grad()
def _scaled(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    next(model.parameters()).mul_(0.9)


def _scaled_data(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    next(model.parameters()).data.mul_(0.9)


def _one_element(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    last = [*model.parameters()][-1].data.view(-1)
    last[-1] = torch.nextafter(last[-1], torch.tensor(2.0))


def _all_moved(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    torch.nn.utils.vector_to_parameters(
        torch.nn.utils.parameters_to_vector(model.parameters()) - 1e-3, model.parameters()
    )


def _state_cleared(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.state.clear()


def _state_scaled(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.state[next(model.parameters())]["exp_avg"].mul_(0.5)


def _state_loaded(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    state = deepcopy(optimizer.state_dict())
    state["state"][0]["exp_avg"].zero_()
    optimizer.load_state_dict(state)


def _frozen(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    next(model.parameters()).requires_grad_(False)


def _rate_lost(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.param_groups[0]["lr"] = float("nan")


REFUSED: dict[str, tuple[Act, str]] = {
    "a parameter": (_scaled, "changed model.embed_tokens.weight: between the steps 3 and 4"),
    "a parameter, past autograd": (_scaled_data, "changed model.embed_tokens.weight"),
    "the last bit of one element": (_one_element, "changed model.norm.weight"),
    "all parameters": (_all_moved, "changed model.embed_tokens.weight"),
    "a state that is cleared": (_state_cleared, "changed the optimizer.s .* of model.embed_tokens.weight: between"),
    "a state that is scaled": (_state_scaled, "changed the optimizer.s exp_avg of model.embed_tokens.weight"),
    "a state that is loaded": (_state_loaded, "changed the optimizer.s"),
    "a parameter that is frozen": (_frozen, "is trained no more: model.embed_tokens.weight: step 4"),
    "a learning rate that is no number": (_rate_lost, "learning rate is not finite: group 0, step 4: found nan"),
}


@pytest.mark.parametrize("watched", [False, True], ids=["recorder", "watch"])
@pytest.mark.parametrize(("act", "message"), REFUSED.values(), ids=REFUSED)
def test_what_happens_once_between_two_steps_is_refused(
    act: Act, message: str, watched: bool, base_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        _train(base_model, tmp_path / "log", act, watched=watched)
    log = TrainingLog(tmp_path / "log")
    assert log.num_steps <= EVENT
    assert verify(log, replay_steps=log.num_steps).is_sound


def _swapped_and_back(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """As an evaluation of averaged weights does."""
    kept = [parameter.detach().clone() for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.data.mul_(0.5)
    for parameter, own in zip(model.parameters(), kept, strict=True):
        parameter.data.copy_(own)


def _looked_at(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model.eval()
    optimizer.load_state_dict(optimizer.state_dict())
    model.train()


@pytest.mark.parametrize("act", [_swapped_and_back, _looked_at])
def test_what_leaves_a_run_as_it_was_may_happen(act: Act, base_model: Path, tmp_path: Path) -> None:
    _train(base_model, tmp_path / "log", act)
    log = TrainingLog(tmp_path / "log")
    assert log.num_steps == STEPS
    assert verify(log, replay_steps=STEPS).is_sound


def _halved(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model.half()


@pytest.mark.parametrize("act", [_scaled, _halved, _state_cleared])
def test_what_is_changed_after_the_last_step_is_not_taken_for_its_state(
    act: Act, base_model: Path, tmp_path: Path
) -> None:
    """As by a trainer that loads its best checkpoint in the end."""
    _train(base_model, tmp_path / "whole", _looked_at, event=STEPS)
    with pytest.warns(UserWarning, match="was changed after the last step, 5"):
        _train(base_model, tmp_path / "log", act, event=STEPS)
    whole, log = TrainingLog(tmp_path / "whole"), TrainingLog(tmp_path / "log")
    assert whole.commit.finished
    assert not log.commit.finished
    assert log.checkpoint_steps == (0, EVERY)
    assert np.array_equal(log.parameters(STEPS), whole.parameters(STEPS))
    assert verify(log, replay_steps=STEPS).is_sound


def test_a_model_that_is_frozen_after_the_last_step_ends_the_log_as_usual(base_model: Path, tmp_path: Path) -> None:
    _train(base_model, tmp_path / "log", lambda model, _: model.requires_grad_(False), event=STEPS)
    assert TrainingLog(tmp_path / "log").commit.finished
