"""A mixture of experts, whose router may have a loss of its own over all rows of a batch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

from lmcleaner.choices import HessianMode
from lmcleaner.formats.samples import IGNORED_LABEL
from lmcleaner.progress import Silent
from lmcleaner.unlearning.options import UnlearnOptions
from lmcleaner.unlearning.run import unlearn
from real_runs import FORGOTTEN, PADDING, RATE, SETTINGS, batches, bits, digests, on_device, record
from tiny_runs import DEVICE, same_bits

SETTING = SETTINGS["left padding"]


def _base(folder: Path, *, balances: bool) -> Path:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 40}
    config = MixtralConfig(
        **shape, num_attention_heads=2, num_key_value_heads=1, num_local_experts=4, max_position_embeddings=64,
        bos_token_id=0, eos_token_id=1, pad_token_id=2, output_router_logits=balances, router_aux_loss_coef=0.1,
    )  # fmt: skip
    MixtralForCausalLM(config).save_pretrained(folder)
    return folder


def _retrained(base: Path) -> Any:
    """With rows of padding, which have no labels, in the places of the forgotten ones."""
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    model.to(DEVICE).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    for number, whole in enumerate(on_device(batches(SETTING))):
        batch = {name: value.clone() for name, value in whole.items()}
        for row in (row for at, row in FORGOTTEN if at == number):
            batch["input_ids"][row], batch["labels"][row] = PADDING, IGNORED_LABEL
        model(**batch, num_items_in_batch=whole["attention_mask"][:, 1:].sum()).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
    return model


@pytest.mark.parametrize("balances", [False, True], ids=["loss of the tokens", "with the router's"])
def test_a_mixture_of_experts_forgets_rows_as_a_retraining_with_padding_does(balances: bool, tmp_path: Path) -> None:
    base, said = _base(tmp_path / "base", balances=balances), Lines()
    log = record(SETTING, base, tmp_path)
    request: dict[str, Any] = {"forget": digests(SETTING), "K": None}
    options = UnlearnOptions(**request, output=tmp_path / "out", hessian_mode=HessianMode.SECANT)
    assert unlearn(log, options, progress=said).is_good
    unlearned = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert same_bits(bits(unlearned), bits(_retrained(base)))
    assert any("the router's auxiliary loss" in line for line in said.lines) is balances
    assert not (tmp_path / "out" / "tokenizer.json").exists()
    assert any(line.startswith("no tokenizer beside the base model") for line in said.lines)


class Lines(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)
