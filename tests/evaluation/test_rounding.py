"""Rounded weights: by hand, by their bounds, and in real models."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from lmcleaner.choices import Rounding
from lmcleaner.evaluation.rounding import rounded_model, rounded_weight
from lmcleaner.training.models import load_model
from tiny_runs import write_base_model

LEVELS = st.sampled_from([127, 7])
DTYPES = st.sampled_from([torch.float32, torch.bfloat16])


def test_a_case_by_hand() -> None:
    """int4: the first channel's step is 14 / 7 = 2, the second's 0.5; 1 and 5 are halfway, and go to the even code."""
    weight = torch.tensor([[14.0, -3.2, 1.0, 5.0], [-3.5, 0.2, 0.3, 0.0]])
    expected = torch.tensor([[14.0, -4.0, 0.0, 4.0], [-3.5, 0.0, 0.5, 0.0]])
    assert torch.equal(rounded_weight(weight, 7), expected)
    assert torch.equal(rounded_weight(weight.T, 7, axis=1), expected.T)


def _weight(seed: int, dtype: torch.dtype) -> Tensor:
    """Six channels of very different size."""
    generator = torch.Generator().manual_seed(seed)
    scales = 10.0 ** torch.randint(-30, 30, (6, 1), generator=generator)
    return (torch.randn(6, 40, generator=generator) * scales).to(dtype)


@given(seed=st.integers(0, 2**31), levels=LEVELS, dtype=DTYPES)
def test_no_weight_moves_by_more_than_half_a_step(seed: int, levels: int, dtype: torch.dtype) -> None:
    weight = _weight(seed, dtype)
    rounded = rounded_weight(weight, levels)
    assert rounded.dtype is dtype
    exact, found = weight.double(), rounded.double()
    steps = exact.abs().amax(1, keepdim=True) / levels
    own = found.abs() * torch.finfo(dtype).eps  # of the dtype that holds the result
    assert bool(((found - exact).abs() <= steps / 2 * (1 + 1e-9) + own).all())
    assert all(len(channel.unique()) <= 2 * levels + 1 for channel in rounded)


@given(seed=st.integers(0, 2**31), levels=LEVELS, dtype=DTYPES)
def test_rounding_again_changes_nothing(seed: int, levels: int, dtype: torch.dtype) -> None:
    once = rounded_weight(_weight(seed, dtype), levels)
    assert torch.equal(rounded_weight(once, levels), once)


def test_int8_is_that_of_bitsandbytes() -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    codes, largest, _ = functional.int8_vectorwise_quant(weight)
    assert torch.allclose(rounded_weight(weight, 127), functional.int8_vectorwise_dequant(codes, largest), atol=1e-6)


def test_a_channel_of_zeros_stays() -> None:
    weight = torch.tensor([[0.0, 0.0], [1.0, 0.1]])
    assert torch.equal(rounded_weight(weight, 7)[0], weight[0])


@pytest.fixture(scope="module")
def llama(base_model: Path) -> Any:
    return load_model(str(base_model), torch.float32)


def _changed(model: Any, rounded: Any) -> set[str]:
    after = dict(rounded.named_parameters())
    return {name for name, parameter in model.named_parameters() if not torch.equal(parameter, after[name])}


@pytest.mark.parametrize("rounding", [Rounding.INT8, Rounding.INT4])
def test_linear_layers_are_rounded_but_neither_embeddings_nor_head(rounding: Rounding, llama: Any) -> None:
    before = copy.deepcopy(llama.state_dict())
    rounded = rounded_model(llama, rounding)
    names = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    linear = {name for name, _ in llama.named_parameters() if name.split(".")[-2] in names}
    assert len(linear) == 2 * len(names)
    assert _changed(llama, rounded) == linear
    assert all(torch.equal(tensor, before[name]) for name, tensor in llama.state_dict().items())


def test_an_output_head_of_its_own_stays(tmp_path: Path) -> None:
    model: Any = load_model(str(write_base_model(tmp_path)), torch.float32)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    assert not {"lm_head.weight", "model.embed_tokens.weight"} & _changed(model, rounded_model(model, Rounding.INT4))


def test_bf16_rounds_every_parameter(llama: Any) -> None:
    rounded = rounded_model(llama, Rounding.BF16)
    for parameter, after in zip(llama.parameters(), rounded.parameters(), strict=True):
        assert torch.equal(after, parameter.bfloat16().float())
        assert after.dtype is torch.float32


def test_layers_of_gpt2_have_their_channels_on_the_other_side() -> None:
    model: Any = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, n_inner=12, vocab_size=16, n_positions=8))
    rounded: Any = rounded_model(model, Rounding.INT4)
    weight = model.transformer.h[0].mlp.c_fc.weight
    assert weight.shape == (8, 12)
    assert torch.equal(rounded.transformer.h[0].mlp.c_fc.weight, rounded_weight(weight, 7, axis=1))
    assert torch.equal(rounded.lm_head.weight, model.lm_head.weight)


def test_an_adapter_is_merged_before_it_is_rounded(llama: Any) -> None:
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(copy.deepcopy(llama), settings)
    layer = adapted.base_model.model.model.layers[0].self_attn.q_proj
    merged = layer.base_layer.weight + layer.get_delta_weight("default")
    rounded: Any = rounded_model(adapted, Rounding.INT4)
    assert torch.equal(rounded.model.layers[0].self_attn.q_proj.weight, rounded_weight(merged, 7))
    assert layer.base_layer.weight.data_ptr() != rounded.model.layers[0].self_attn.q_proj.weight.data_ptr()
    assert all(parameter.requires_grad for parameter in rounded.parameters())
