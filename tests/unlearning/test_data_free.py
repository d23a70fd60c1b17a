"""With recorded gradients and curvature a sweep reads no row: the rows may be gone, and the result is the same."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from named_requests import find_forget_set
from torch import Tensor

from hostile_logs import attributes, forge
from lmcleaner.choices import Denominator, HessianMode
from lmcleaner.curvature.stored import load_estimate
from lmcleaner.formats.canonical import array_digest
from lmcleaner.formats.errors import DamagedError
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.recording.curvature import CurvatureOptions, record_curvature
from lmcleaner.recording.describe import RunDescription
from lmcleaner.recording.recorder import Recorder
from lmcleaner.training.models import load_model
from lmcleaner.training.numerics import replay_device
from lmcleaner.training.recorded import RecordedGradients, exact_steps, unclipped_steps
from lmcleaner.training.replay import ReplayModel
from lmcleaner.training.state import TrainingState
from lmcleaner.training.vectors import bits_of
from lmcleaner.unlearning.prediction import SegmentPrediction, make_prediction
from lmcleaner.unlearning.setting import Setting
from tiny_runs import TinyRun, parameters_in, record_tiny, same_bits, unlearn_tiny

ESTIMATED = [HessianMode.DIAG, HessianMode.DIAG_HESSIAN, HessianMode.LOW_RANK]
WRITTEN = [*ESTIMATED, HessianMode.FISHER]
RANK = 3


@pytest.fixture(scope="module")
def clipped_run(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """Twenty steps with AdamW and weight decay, most of them clipped, with the gradients that it was given."""
    folder = tmp_path_factory.mktemp("clipped")
    return record_tiny(base_model, folder, epochs=4, gradients="lossless", max_grad_norm=1.0, weight_decay=0.1)


@pytest.fixture(scope="module")
def logs(clipped_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> dict[HessianMode, TinyRun]:
    """The same log with the curvature that each mode takes."""
    return {mode: with_curvature(clipped_run, tmp_path_factory.mktemp(mode.value) / "log", mode) for mode in WRITTEN}


def with_curvature(run: TinyRun, log: Path, mode: HessianMode) -> TinyRun:
    shutil.copytree(run.log, log)
    if mode in ESTIMATED:
        record_curvature(log, CurvatureOptions(kind=mode.value, rank=RANK))  # type: ignore[arg-type]
    return TinyRun(run.base, run.data, log, run.trained, run.options)


def without_rows(run: TinyRun, log: Path) -> TinyRun:
    """A copy in which no token and no label of any sample is left."""
    shutil.copytree(run.log, log)
    for name in ("tokens", "labels"):
        shutil.rmtree(log / "generation-0" / "samples" / name)
    return TinyRun(run.base, run.data, log, run.trained, run.options)


def _rank_of(mode: str) -> dict[str, int]:
    return {"rank": RANK} if mode == HessianMode.LOW_RANK else {}


def unlearned(run: TinyRun, output: Path, mode: HessianMode, **options: Any) -> dict[str, Any]:
    document = unlearn_tiny(run, output, mode, **_rank_of(mode), **options).document
    assert document is not None
    return document


def flat(gradient: Sequence[Tensor | None]) -> Tensor:
    return torch.cat([part.reshape(-1) for part in gradient if part is not None])


@pytest.mark.parametrize("mode", WRITTEN)
@pytest.mark.parametrize("steps", ["steps:1", "steps:6-7,14"])  # step 6 lies behind a checkpoint
def test_steps_are_unlearned_from_a_log_whose_rows_are_gone(
    mode: HessianMode, steps: str, logs: dict[HessianMode, TinyRun], tmp_path: Path
) -> None:
    document = unlearned(without_rows(logs[mode], tmp_path / "log"), tmp_path / "out", mode, forget=steps)
    unlearned(logs[mode], tmp_path / "with-rows", mode, forget=steps)
    assert same_bits(parameters_in(tmp_path / "out"), parameters_in(tmp_path / "with-rows"))
    assert not same_bits(parameters_in(tmp_path / "out"), parameters_in(logs[mode].trained))
    window = document["windows"][0]
    assert (window["gradients"], window["hvp_calls"], window["linearization_error"]) == (0, 0, None)
    assert window["data_free"]
    assert document["plan"]["data_free"]
    assert (document["plan"]["gradients"], document["plan"]["products"]) == (0, 0)
    assert window["replay_exact"]  # the steps from the checkpoint on, taken from the recorded gradients
    assert document["result"]["verdict"] == "poor"


@pytest.mark.parametrize("mode", WRITTEN)
def test_the_papers_form_needs_no_row_either(mode: HessianMode, base_model: Path, tmp_path: Path) -> None:
    run = record_tiny(base_model, tmp_path, optimizer="sgd", lr=0.02, max_grad_norm=0.0, gradients="lossless")
    rowless = without_rows(with_curvature(run, tmp_path / "log-with", mode), tmp_path / "rowless")
    document = unlearned(rowless, tmp_path / "out", mode, forget="steps:1", propagation="paper")
    assert document["windows"][0]["data_free"]
    assert document["result"]["change_norm"] > 0


def test_the_same_log_is_no_use_to_a_mode_that_needs_rows(logs: dict[HessianMode, TinyRun], tmp_path: Path) -> None:
    rowless = without_rows(logs[HessianMode.DIAG], tmp_path / "log")
    for mode in (HessianMode.SECANT, HessianMode.GGN, HessianMode.LOW_RANK):
        with pytest.raises(DamagedError, match="samples/"):
            unlearned(rowless, tmp_path / "out", mode, forget="steps:1")
    assert not (tmp_path / "out").exists()


def test_without_updates_θ_is_replayed_from_the_gradients(base_model: Path, tmp_path: Path) -> None:
    runs = {}
    for updates in ("none", "lossless"):
        (tmp_path / updates).mkdir()
        chosen: dict[str, Any] = {"gradients": "lossless", "updates": updates, "checkpoint_every": 5}
        runs[updates] = record_tiny(base_model, tmp_path / updates, **chosen)
    run, whole = runs["none"], runs["lossless"]
    rowless = without_rows(run, tmp_path / "rowless")
    document = unlearned(rowless, tmp_path / "out", HessianMode.FISHER, forget="steps:1")
    assert document["plan"]["replayed"] > 0
    assert document["windows"][0]["gradients"] == document["plan"]["gradients"] == 0
    unlearned(whole, tmp_path / "read", HessianMode.FISHER, forget="steps:1")
    assert same_bits(parameters_in(tmp_path / "out"), parameters_in(tmp_path / "read"))


@pytest.mark.parametrize("mode", WRITTEN)
def test_at_sample_level_rows_are_read_where_a_forgotten_one_was_and_to_measure(
    mode: HessianMode, logs: dict[HessianMode, TinyRun], tmp_path: Path
) -> None:
    document = unlearned(logs[mode], tmp_path / "out", mode)
    window, plan = document["windows"][0], document["plan"]
    held = len(document["request"]["steps"])
    assert held < window["tau"] - window["tz"]
    assert not window["data_free"]
    assert window["gradients"] == held + len(window["linearization_errors"])
    assert plan["gradients"] == held + 10
    assert window["hvp_calls"] == plan["products"] == 0
    assert window["linearization_error"] > 0


def test_what_the_log_says_of_a_gradient_before_clipping_is_the_gradient(clipped_run: TinyRun) -> None:
    log, replay = clipped_run.open(), clipped_run.replay_model()
    recorded = RecordedGradients(log, replay)
    assert unclipped_steps(log) == exact_steps(log) == set(range(log.num_steps))
    scales = []
    for step in (0, 7, 19):
        true = flat(replay.gradient(log.step(step), replay.load(log.parameters(step))))
        assert float(true.norm()) == pytest.approx(float(log.table("steps/unclipped_norm")[step]), rel=1e-6)
        found = flat(recorded.unclipped(step))
        assert float((found - true).norm() / true.norm()) < 1e-6
        scales.append(float(flat(recorded.given(step)).norm() / true.norm()))
    assert min(scales) < 0.9


def test_gradients_that_are_read_ahead_are_those_that_are_asked_for(clipped_run: TinyRun) -> None:
    log, replay = clipped_run.open(), clipped_run.replay_model()
    ahead = RecordedGradients(log, replay, exact_steps(log) - {4})
    for step in (2, 3, 4, 5, 8, 9, 9, 3, 18, 19):
        found, read = ahead.given(step), RecordedGradients(log, replay).given(step)
        assert torch.equal(flat(found), flat(read)), step


def test_a_wrong_gradient_is_named_when_it_is_asked_for_and_not_when_it_is_read(clipped_run: TinyRun) -> None:
    log = clipped_run.open()
    log.table("steps/gradient_blake3")[7] ^= 1
    ahead = RecordedGradients(log, clipped_run.replay_model(), exact_steps(log))
    for step in (5, 6, 8):
        ahead.given(step)
    with pytest.raises(DamagedError, match="step 7"):
        ahead.given(7)


def test_without_the_norm_before_clipping_only_gradients_that_were_not_clipped_serve(
    clipped_run: TinyRun, tmp_path: Path
) -> None:
    """As in a log that was recorded before there was such a table."""
    path = Path(shutil.copytree(clipped_run.log, tmp_path / "log"))
    commit = attributes(path, "commit")
    del commit["tables"]["steps/unclipped_norm"]
    forge(path, commit=commit)
    log, limit = TrainingLog(path), clipped_run.options.max_grad_norm
    norms = log.table("steps/gradient_norm")
    assert 0 < sum(norms < 0.999 * limit) < log.num_steps
    assert unclipped_steps(log) == {step for step in range(log.num_steps) if norms[step] < 0.999 * limit}
    run = TinyRun(clipped_run.base, clipped_run.data, path, clipped_run.trained, clipped_run.options)
    document = unlearned(run, tmp_path / "out", HessianMode.FISHER, forget="steps:1")
    assert not document["plan"]["data_free"]
    window = document["windows"][0]
    clipped = sum(step not in unclipped_steps(log) for step in range(2, log.num_steps))
    assert window["gradients"] == clipped + len(window["linearization_errors"])
    assert document["plan"]["gradients"] == clipped + 10


@pytest.mark.parametrize("mode", ESTIMATED)
def test_a_recorded_estimate_is_the_one_that_a_sweep_would_make(
    mode: HessianMode, clipped_run: TinyRun, logs: dict[HessianMode, TinyRun]
) -> None:
    """To the last bit, where the sweep enters at a checkpoint and no row of the two steps is forgotten."""
    log = clipped_run.open()
    setting = setting_of(clipped_run, mode)
    parameters = setting.replay.load(log.parameters(8))
    vector = [torch.randn(part.shape, generator=torch.Generator().manual_seed(1)) for part in parameters]
    made = SegmentPrediction(log, setting, RANK)
    recorded = SegmentPrediction(logs[mode].open(), setting, RANK)
    for found, expected in zip(
        recorded.product(8, log.step(8), parameters, vector),
        made.product(8, log.step(8), parameters, vector),
        strict=True,
    ):
        assert torch.equal(found, expected)
    assert recorded.captured == made.captured
    assert (made.captured is not None) == (mode is HessianMode.LOW_RANK)


def setting_of(run: TinyRun, mode: HessianMode) -> Setting:
    forget_set = find_forget_set(run.open(), "steps:1", None, lambda: None)
    return Setting(run.replay_model(), forget_set, mode, Denominator.LOGGED, damping=0.0)


def test_the_prediction_is_gradient_minus_diagonal_times_deviation_in_float64(
    logs: dict[HessianMode, TinyRun],
) -> None:
    run = logs[HessianMode.DIAG]
    log, setting = run.open(), setting_of(run, HessianMode.DIAG)
    parameters = setting.replay.load(log.parameters(9))
    deviation = [0.01 * torch.randn(part.shape, generator=torch.Generator().manual_seed(2)) for part in parameters]
    found = flat(make_prediction(log, setting, RANK).gradient(9, log.step(9), parameters, deviation)).double()
    true = flat(setting.replay.gradient(log.step(9), parameters)).double()
    diagonal = torch.from_numpy(log.curvature_array(8, "diagonal")).double()
    expected = true - diagonal * flat(deviation).double()
    assert float((found - expected).norm() / expected.norm()) < 1e-5


def test_a_request_for_more_eigenpairs_than_were_recorded_makes_its_own(
    logs: dict[HessianMode, TinyRun], tmp_path: Path
) -> None:
    run = logs[HessianMode.LOW_RANK]
    document = unlearn_tiny(run, tmp_path / "more", HessianMode.LOW_RANK, forget="steps:1", rank=RANK + 1).document
    assert document is not None
    assert document["windows"][0]["hvp_calls"] == document["plan"]["products"] > 0
    fewer = load_estimate(run.open(), 8, 1, torch.device("cpu"))
    whole = load_estimate(run.open(), 8, RANK, torch.device("cpu"))
    assert fewer.captured is not None
    assert whole.captured is not None
    assert 0 < fewer.captured < whole.captured < 1


def test_an_estimate_says_how_much_of_the_trace_it_captured(logs: dict[HessianMode, TinyRun], tmp_path: Path) -> None:
    document = unlearned(logs[HessianMode.LOW_RANK], tmp_path / "out", HessianMode.LOW_RANK, forget="steps:1")
    log = logs[HessianMode.LOW_RANK].open()
    shares = [
        float(log.curvature_array(step, "values").sum(dtype=float)) / entry.trace
        for step, entry in log.commit.curvature.items()
    ]
    assert document["windows"][0]["curvature_captured"] == pytest.approx(min(shares))
    other = unlearned(logs[HessianMode.DIAG], tmp_path / "diag", HessianMode.DIAG, forget="steps:1")
    assert other["windows"][0]["curvature_captured"] is None


def test_the_plan_counts_what_is_read(logs: dict[HessianMode, TinyRun], clipped_run: TinyRun, tmp_path: Path) -> None:
    def plan_of(run: TinyRun, mode: HessianMode) -> Any:
        return unlearn_tiny(run, tmp_path / "out", mode, forget="steps:1", dry_run=True, **_rank_of(mode)).plan

    for mode in ESTIMATED:
        recorded, made = plan_of(logs[mode], mode), plan_of(clipped_run, mode)
        assert recorded.bytes_to_read > made.bytes_to_read
        assert recorded.seconds < made.seconds
    assert plan_of(logs[HessianMode.LOW_RANK], HessianMode.LOW_RANK).parameter_memory_bytes > 0
    sizes = clipped_run.open().bytes_on_disk()
    without, fisher = plan_of(clipped_run, HessianMode.GGN), plan_of(clipped_run, HessianMode.FISHER)
    read = fisher.bytes_to_read - without.bytes_to_read
    assert 0.9 * sizes["gradients"] < read + sizes["gradients"] / 20 <= 1.01 * sizes["gradients"]


def test_a_zero_gradient_of_a_parameter_that_the_loss_never_reached_is_none(base_model: Path, tmp_path: Path) -> None:
    model = load_model(str(base_model), torch.float32).train()
    model.register_parameter("unused", torch.nn.Parameter(torch.ones(3)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    description = RunDescription(model_source=str(base_model), padding_token=2, gradients="lossless")
    with Recorder(tmp_path / "log", model, optimizer, description):
        for step in range(2):
            tokens = torch.arange(3, 15).reshape(2, 6) + step
            model(input_ids=tokens, labels=tokens.clone()).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    log = TrainingLog(tmp_path / "log")
    replay = ReplayModel(model, log.manifest, replay_device(log.manifest))
    gradients, state = RecordedGradients(log, replay), TrainingState(log.manifest, log.checkpoint(0), replay.device)
    for step in range(2):
        state.apply_given(gradients.given(step), log.step(step).lr)
        assert array_digest(bits_of(state.parameters)) == log.parameters_digest(step + 1)
