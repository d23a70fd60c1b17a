"""Relearning: curves against a slow loop, and when a model is ahead of gold."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lmcleaner.data.encoding import Encoding
from lmcleaner.evaluation.answers import answer_probabilities
from lmcleaner.evaluation.comparison import Finding
from lmcleaner.evaluation.relearning import MARKS, lead, relearn, split_rows
from lmcleaner.evaluation.scores import Array, Columns
from lmcleaner.formats.errors import DivergedError
from lmcleaner.formats.samples import Sample
from lmcleaner.training.models import load_model, load_tokenizer
from tiny_runs import Recording, rows

ENCODING = Encoding(template="Question: {question} Answer:", max_length=64)
LR = 1e-2


@pytest.fixture(scope="module")
def base(base_model: Path) -> Any:
    return load_model(str(base_model), torch.float32).train()


@pytest.fixture(scope="module")
def tokenizer(base_model: Path) -> Any:
    return load_tokenizer(str(base_model))


@pytest.fixture(scope="module")
def samples(tokenizer: Any) -> list[Sample]:
    return ENCODING.samples(rows(9), tokenizer, "rows")


def _relearned(model: Any, samples: list[Sample], tokenizer: Any, lr: float = LR) -> Columns:
    learned, measured = split_rows(samples)
    return relearn(
        model, learned, measured, tokenizer, lr=lr, max_new_tokens=4, progress=Recording(), what="relearning"
    )


def test_halves_hold_every_row_once_and_are_always_the_same(samples: list[Sample]) -> None:
    learned, measured = split_rows(samples)
    assert (len(learned), len(measured)) == (4, 5)
    assert {sample.digest for sample in learned + measured} == {sample.digest for sample in samples}
    assert split_rows(samples) == (learned, measured)


def test_the_curve_is_that_of_a_plain_loop(base: Any, samples: list[Sample], tokenizer: Any) -> None:
    found = _relearned(base, samples, tokenizer)
    learned, measured = split_rows(samples)
    model = copy.deepcopy(base).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0)
    expected = []
    for step in range(MARKS[-1] + 1):
        if step in MARKS:
            expected.append(answer_probabilities(model, measured))
        optimizer.zero_grad()
        for sample in learned:  # four rows are one batch, in whatever order
            tokens, labels = (torch.tensor(part.astype(np.int64))[None] for part in (sample.tokens, sample.labels))
            (model(input_ids=tokens, labels=labels).loss * sample.num_targets).backward()
        for parameter in model.parameters():
            parameter.grad /= sum(sample.num_targets for sample in learned)
        optimizer.step()
    assert found["probability"].shape == found["rougeL_recall"].shape == (len(MARKS), 5)
    assert found["probability"] == pytest.approx(np.array(expected), rel=1e-2)
    assert abs(found["probability"][-1] / found["probability"][0] - 1).max() > 0.3


def test_neither_the_model_nor_random_numbers_are_touched(base: Any, samples: list[Sample], tokenizer: Any) -> None:
    before, state, global_state = (
        copy.deepcopy(base.state_dict()),
        torch.get_rng_state(),
        np.random.get_state(legacy=False),
    )
    first = _relearned(base, samples, tokenizer)
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())
    assert base.training
    assert all(parameter.grad is None for parameter in base.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert str(np.random.get_state(legacy=False)) == str(global_state)
    again = _relearned(base, samples, tokenizer)
    assert all((again[name] == values).all() for name, values in first.items())


def test_a_rate_that_is_too_large_is_said(base: Any, samples: list[Sample], tokenizer: Any) -> None:
    with pytest.raises(DivergedError, match="relearning diverged") as caught:
        _relearned(base, samples, tokenizer, lr=1e30)
    assert caught.value.hint == "lower --relearn-lr"


def _curve(*means: float, spread: float = 0.01) -> Array:
    noise = np.random.default_rng(0).normal(0, spread, 50)
    return np.array(means)[:, None] + noise


@pytest.mark.parametrize(
    ("model", "gold", "value", "faster"),
    [
        ((0.1, 0.3, 0.5), (0.1, 0.2, 0.3), 0.15, Finding.YES),
        ((0.1, 0.2, 0.3), (0.1, 0.2, 0.3), 0.0, Finding.NO),
        ((0.3, 0.4, 0.5), (0.1, 0.2, 0.3), 0.0, Finding.NO),  # it only keeps the lead that it had
        ((0.0, 0.2, 0.3), (0.1, 0.2, 0.3), 0.0, Finding.NO),  # it was behind, and catches up
        ((0.1, 0.1, 0.1), (0.1, 0.2, 0.3), -0.15, Finding.NO),
    ],
)
def test_a_lead_is_what_was_won_beyond_gold(
    model: tuple[float, ...], gold: tuple[float, ...], value: float, faster: Finding
) -> None:
    found = lead(_curve(*model), _curve(*gold, spread=0.02))
    assert found.value == pytest.approx(value, abs=0.01)
    assert found.low <= found.value <= found.high
    assert found.faster is faster


def test_a_lead_that_other_rows_could_turn_is_unclear() -> None:
    gains = np.where(np.arange(20) % 2, 0.5, -0.4)
    found = lead(np.stack([np.zeros(20), gains]), np.zeros((2, 20)))
    assert found.value == pytest.approx(0.05)
    assert found.faster is Finding.UNCLEAR
