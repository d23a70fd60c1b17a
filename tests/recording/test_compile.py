"""A compiled training is recorded by its own hooks, through which Dynamo traces, and replayed without the compiler."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from lmcleaner.choices import HessianMode
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.recording.watch import Watch
from lmcleaner.unlearning.options import UnlearnOptions
from lmcleaner.unlearning.run import unlearn
from tiny_runs import parameters_in, same_bits, write_base_model

TOKENS = [torch.randint(3, 20, (4, 6), generator=torch.Generator().manual_seed(step)) for step in range(2)]


def loop(base: Path, *, backend: str | None, num_masked: int = 0) -> Any:
    """Takes two steps; the first rows of the first have no labels."""
    model = AutoModelForCausalLM.from_pretrained(base).train()
    if backend is not None:
        model.compile(backend=backend)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step, tokens in enumerate(TOKENS):
        labels = tokens.clone()
        labels[: num_masked if step == 0 else 0] = -100
        model(input_ids=tokens, labels=labels, num_items_in_batch=torch.tensor(20)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Dynamo, which traces the hooks
def test_a_compiled_training_is_recorded_and_forgets_as_a_retraining_does(tmp_path: Path) -> None:
    """By the back end whose kernels are the ordinary ones, so that the bits are; others come close."""
    base = write_base_model(tmp_path / "base", num_hidden_layers=1)
    with Watch(tmp_path / "log"):
        loop(base, backend="aot_eager")
    log = TrainingLog(tmp_path / "log")
    assert log.num_steps == len(TOKENS)
    assert log.commit.self_check is not None
    assert log.commit.self_check.state == "exact"
    digests = ",".join(sample.digest.hex() for sample in log.step(0).samples)
    request = UnlearnOptions(forget=digests, output=tmp_path / "out", K=None, hessian_mode=HessianMode.SECANT)
    unlearn(log.store, request)
    retrained = loop(base, backend=None, num_masked=4)
    assert same_bits(parameters_in(tmp_path / "out"), dict(retrained.named_parameters()))
