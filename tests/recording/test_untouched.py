"""What something else than the optimizer's steps changes is refused at the next step, and the log ends before it."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from lmcleaner import Recorder, RunDescription, TrainingLog, UsageError, Watch, verify

STEPS, EVENT = 6, 4
Act = Callable[[nn.Module, torch.optim.Optimizer], None]


def _train(base: Path, log: Path, act: Act, *, watched: bool = False) -> None:
    """Something happens once before the step `EVENT`, where no self-check would look."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    description = RunDescription(model_source=str(base), checkpoint_every=STEPS)
    with Watch(log) if watched else Recorder(log, model, optimizer, description):
        for step in range(STEPS):
            if step == EVENT:
                act(model, optimizer)
            tokens = torch.randint(3, 20, (2, 6), generator=torch.Generator().manual_seed(step))
            model(input_ids=tokens, labels=tokens).loss.backward()
            optimizer.step()
            optimizer.zero_grad()


@torch.no_grad()
def _scaled(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    next(model.parameters()).mul_(0.9)


def _scaled_data(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    next(model.parameters()).data.mul_(0.9)


def _one_element(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    last = [*model.parameters()][-1].data.view(-1)
    last[-1] = torch.nextafter(last[-1], torch.tensor(2.0))


def _other_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
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


REFUSED: dict[str, tuple[Act, str]] = {
    "a parameter": (_scaled, "changed a parameter: model.embed_tokens.weight: between the steps 3 and 4"),
    "a parameter, past autograd": (_scaled_data, "changed a parameter: model.embed_tokens.weight"),
    "the last bit of one element": (_one_element, "changed a parameter"),
    "all parameters": (_other_optimizer, "changed a parameter"),
    "a state that is cleared": (_state_cleared, "changed its state: .* of model.embed_tokens.weight: between"),
    "a state that is scaled": (_state_scaled, "changed its state: exp_avg of model.embed_tokens.weight"),
    "a state that is loaded": (_state_loaded, "changed its state"),
    "a parameter that is frozen": (_frozen, "is trained no more: model.embed_tokens.weight: step 4"),
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
