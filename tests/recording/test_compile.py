"""A compiled training is recorded; a replay computes without the compiler, and the log says how close it comes."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from lmcleaner.choices import HessianMode
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.recording.watch import Watch
from lmcleaner.unlearning.options import UnlearnOptions
from lmcleaner.unlearning.run import unlearn
from tiny_runs import parameters_in, write_base_model

TOKENS = [torch.randint(3, 20, (4, 6), generator=torch.Generator().manual_seed(step)) for step in range(2)]


def compiled_loop(base: Path, *, num_masked: int = 0) -> torch.nn.Module:
    """Takes two steps; the first rows of the first have no labels."""
    model = AutoModelForCausalLM.from_pretrained(base).train()
    model.compile()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step, tokens in enumerate(TOKENS):
        labels = tokens.clone()
        labels[: num_masked if step == 0 else 0] = -100
        model(input_ids=tokens, labels=labels, num_items_in_batch=torch.tensor(20)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # of Dynamo, which traces the hooks
def test_a_compiled_training_is_recorded_and_replayed_closely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")
    base = write_base_model(tmp_path / "base", num_hidden_layers=1)
    with Watch(tmp_path / "log"):
        compiled_loop(base)
    log = TrainingLog(tmp_path / "log")
    found = log.commit.self_check
    assert found is not None
    assert found.state in {"exact", "close"}
    assert found.error is not None
    assert found.error < 1e-4
    digests = ",".join(sample.digest.hex() for sample in log.step(0).samples[:2])
    unlearn(
        log.store,
        UnlearnOptions(forget=digests, output=tmp_path / "out", K=None, hessian_mode=HessianMode.SECANT),
    )
    retrained = dict(compiled_loop(base, num_masked=2).named_parameters())
    start = dict(AutoModelForCausalLM.from_pretrained(base).named_parameters())
    for name, parameter in parameters_in(tmp_path / "out").items():
        moved = (retrained[name] - start[name]).norm()
        assert (parameter - retrained[name]).norm() <= 1e-3 * moved
