"""The norm before clipping: what the recorder sees of it, and what it refuses."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lmcleaner.formats.errors import UsageError
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.recording.describe import RunDescription
from lmcleaner.recording.options import WatchOptions
from lmcleaner.recording.recorder import Recorder
from lmcleaner.recording.watch import Watch
from lmcleaner.training.models import load_model
from lmcleaner.training.state import clip_scale

Change = Callable[[list[Tensor]], None]


def train(
    base: Path, log: Path, limit: float | None, *, gradients: str = "lossless", change: Change | None = None
) -> list[float]:
    """Three steps of two microbatches each, clipped at a limit; gives the norms before clipping."""
    model = load_model(str(base), torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    description = RunDescription(
        model_source=str(base),
        padding_token=2,
        max_grad_norm=limit,
        loss_divisor=2.0,
        gradients=gradients,  # type: ignore[arg-type]
    )
    norms = []
    with Recorder(log, model, optimizer, description):
        for step in range(3):
            for part in range(2):
                tokens = torch.arange(3, 15).reshape(2, 6) + step + part
                (model(input_ids=tokens, labels=tokens.clone()).loss / 2).backward()
            if change is not None:
                change([p.grad for p in model.parameters() if p.grad is not None])
            norms.append(
                float(torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]))
            )
            if limit is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), limit)
            optimizer.step()
            optimizer.zero_grad()
    return norms


@pytest.mark.parametrize("limit", [0.01, 100.0])
def test_it_is_the_norm_of_what_was_accumulated(limit: float, base_model: Path, tmp_path: Path) -> None:
    norms = train(base_model, tmp_path / "log", limit)
    assert TrainingLog(tmp_path / "log").table("steps/unclipped_norm") == pytest.approx(norms, rel=1e-6)


@pytest.mark.parametrize("limit", [0.01, 100.0])
def test_a_watch_knows_that_of_the_first_step_too(limit: float, base_model: Path, tmp_path: Path) -> None:
    norms = []
    with Watch(tmp_path / "log", WatchOptions(gradients="lossless")):
        model = load_model(str(base_model), torch.float32).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        for step in range(3):
            tokens = torch.arange(3, 15).reshape(2, 6) + step
            model(input_ids=tokens, labels=tokens.clone()).loss.backward()
            norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), limit)))
            optimizer.step()
            optimizer.zero_grad()
    assert TrainingLog(tmp_path / "log").table("steps/unclipped_norm") == pytest.approx(norms, rel=1e-6)


@pytest.mark.parametrize(("limit", "gradients"), [(None, "lossless"), (0.5, "none")])
def test_a_log_that_needs_none_has_no_such_table(
    limit: float | None, gradients: str, base_model: Path, tmp_path: Path
) -> None:
    train(base_model, tmp_path / "log", limit, gradients=gradients)
    log = TrainingLog(tmp_path / "log")
    assert "steps/unclipped_norm" not in log.commit.tables
    assert log.step(0).unclipped_norm is None
    assert not list((tmp_path / "log").rglob("unclipped_norm"))


def test_a_loop_that_changes_gradients_otherwise_is_refused(base_model: Path, tmp_path: Path) -> None:
    def halve(gradients: list[Tensor]) -> None:
        for gradient in gradients:
            gradient.div_(2)

    with pytest.raises(UsageError, match="does more to a gradient than to clip it: step 0"):
        train(base_model, tmp_path / "log", 100.0, change=halve)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("norm", [0.0, 1e-7, 0.3, 0.999, 1.0, 1.7, 1e4])
def test_the_scale_is_the_one_that_torch_clips_with(norm: float, dtype: torch.dtype) -> None:
    parameter = torch.zeros(1, dtype=dtype, requires_grad=True)
    parameter.grad = torch.full((1,), norm, dtype=dtype)
    before = parameter.grad.clone()
    total = torch.nn.utils.clip_grad_norm_([parameter], 1.0)
    assert torch.equal(parameter.grad, before * torch.tensor(clip_scale(float(total), 1.0, dtype), dtype=dtype))
