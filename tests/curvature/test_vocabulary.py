"""A product for a large vocabulary needs little more memory than a training step."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lmcleaner.choices import HessianMode
from lmcleaner.curvature.linearized import OPERATORS, add_product
from lmcleaner.training.batches import Inputs
from lmcleaner.training.memory import peak_of
from lmcleaner.training.replay import ReplayModel
from tiny_runs import DEVICE

VOCABULARY = 128 * 1024
WHERE = torch.device(DEVICE)


@pytest.fixture(scope="module")
def replay() -> ReplayModel:
    """A model that is nearly all vocabulary, with as much of a replay model as an operator asks for."""
    shape: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    config = LlamaConfig(vocab_size=VOCABULARY, num_attention_heads=2, tie_word_embeddings=True, **shape)
    module: Any = LlamaForCausalLM(config).train()
    module.to(WHERE)
    named = dict(module.named_parameters())
    manifest = SimpleNamespace(
        parameters=[SimpleNamespace(name=name) for name in named],
        num_elements=module.num_parameters(),
        loss_divisor=1.0,
        world_size=1,
        model=SimpleNamespace(forward_arguments={}, loss=None),
    )
    parts = {"module": module, "parameters": [*named.values()], "manifest": manifest, "device": WHERE}
    return cast(
        ReplayModel,
        SimpleNamespace(**parts, scaled=lambda loss: loss, restore_rng=lambda _: None, constants=lambda _: {}),
    )


@pytest.fixture(scope="module")
def inputs() -> Inputs:
    """2 rows of 512 tokens, all of which count."""
    tokens = torch.randint(VOCABULARY, (2, 512), generator=torch.Generator().manual_seed(0)).to(WHERE)
    return {"input_ids": tokens, "labels": tokens.clone(), "num_items_in_batch": torch.tensor(1022.0, device=WHERE)}


@pytest.mark.slow
@pytest.mark.parametrize("mode", [HessianMode.GGN, HessianMode.EXACT])
def test_a_product_stays_below_twice_a_training_steps_memory(
    mode: HessianMode, replay: ReplayModel, inputs: Inputs
) -> None:
    def step() -> None:
        replay.module(**inputs).loss.backward()
        replay.module.zero_grad()

    def multiply() -> None:
        total = [torch.zeros_like(parameter) for parameter in replay.parameters]
        add_product(total, replay, mode, inputs, b"", total)

    def predict() -> None:
        OPERATORS[mode].gradient_minus_product(replay, inputs, [torch.zeros_like(p) for p in replay.parameters], {})
        replay.module.zero_grad()

    plain = peak_of(step, WHERE)
    assert plain > 2 * 1022 * VOCABULARY * 4  # the logits and their gradient
    assert peak_of(multiply, WHERE) < 2 * plain
    if mode is HessianMode.GGN:
        assert peak_of(predict, WHERE) < 3 * plain  # all rows at once
