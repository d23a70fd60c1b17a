"""What the sweep measures and how its modes relate, the ways in which the reference implementation fails included."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from named_requests import find_forget_set
from torch import Tensor

from lmcleaner.choices import HessianMode
from lmcleaner.formats.errors import DivergedError, InsufficientLogError, UsageError
from lmcleaner.recording.describe import RunDescription
from lmcleaner.recording.options import RecordOptions
from lmcleaner.recording.recorder import Recorder
from lmcleaner.training.models import load_model, load_tokenizer
from lmcleaner.unlearning.options import UnlearnOptions
from lmcleaner.unlearning.prediction import RowPrediction
from lmcleaner.unlearning.propagation import PaperCarrier
from lmcleaner.unlearning.run import unlearn
from lmcleaner.unlearning.setting import Setting
from tiny_runs import Recording, TinyRun, parameters_in, record_tiny, unlearn_tiny


def _document(run: TinyRun, output: Path, mode: str, **options: Any) -> dict[str, Any]:
    document = unlearn_tiny(run, output, mode, **options).document
    assert document is not None
    return document


def _flat(parameters: dict[str, Tensor]) -> Tensor:
    return torch.cat([parameter.reshape(-1) for parameter in parameters.values()]).double()


@pytest.fixture(scope="module")
def gentle_run(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """SGD with a small learning rate, where a linearization is close to the truth."""
    folder = tmp_path_factory.mktemp("gentle")
    return record_tiny(base_model, folder, optimizer="sgd", lr=0.02, max_grad_norm=0.0)


@pytest.mark.parametrize("mode", ["secant", "exact", "GGN"])
def test_the_written_model_is_not_the_old_one(mode: str, adamw_run: TinyRun, tmp_path: Path) -> None:
    document = _document(adamw_run, tmp_path / "out", mode)
    change = _flat(parameters_in(tmp_path / "out")) - _flat(parameters_in(adamw_run.trained))
    assert float(change.norm()) == pytest.approx(document["result"]["change_norm"], rel=1e-6)
    assert document["hashes"]["model_after"] != document["hashes"]["model_before"]
    assert float(change.norm()) > 0


@pytest.mark.parametrize("mode", ["exact", "GGN"])
def test_a_linearized_sweep_is_close_to_the_retrained_model_where_steps_are_small(
    mode: str, gentle_run: TinyRun, tmp_path: Path
) -> None:
    document = _document(gentle_run, tmp_path / "out", mode, oracle=True)
    assert document["oracle"]["relative_error"] < {"exact": 0.02, "GGN": 0.2}[mode]


@pytest.mark.parametrize("propagation", ["optimizer", "paper"])
def test_the_change_points_towards_the_retrained_model(propagation: str, gentle_run: TinyRun, tmp_path: Path) -> None:
    unlearn_tiny(gentle_run, tmp_path / "retrained", "secant")
    unlearn_tiny(gentle_run, tmp_path / "out", "exact", propagation=propagation)
    trained = _flat(parameters_in(gentle_run.trained))
    wanted = _flat(parameters_in(tmp_path / "retrained")) - trained
    got = _flat(parameters_in(tmp_path / "out")) - trained
    assert float(wanted @ got / (wanted.norm() * got.norm())) > 0.95


def test_the_papers_form_is_right_for_the_plain_sgd_that_it_assumes(gentle_run: TinyRun, tmp_path: Path) -> None:
    document = _document(gentle_run, tmp_path / "out", "exact", propagation="paper", oracle=True)
    assert document["oracle"]["relative_error"] < 0.05


def test_the_papers_form_is_poor_where_its_assumptions_fail(
    adamw_run: TinyRun, gentle_run: TinyRun, tmp_path: Path
) -> None:
    """Without an oracle nothing else would tell that the correction misses nearly all of the change."""
    result = _document(adamw_run, tmp_path / "adamw", "GGN", propagation="paper")["result"]
    assert result["verdict"] == "poor"
    assert any("assumes plain SGD, but the run used AdamW" in reason for reason in result["reasons"])
    assert _document(gentle_run, tmp_path / "sgd", "GGN", propagation="paper")["result"]["verdict"] == "good"


@pytest.mark.parametrize("mode", ["exact", "GGN"])
def test_all_forgotten_rows_share_one_pass(mode: str, adamw_run: TinyRun, tmp_path: Path) -> None:
    """At most one product a step, however many rows and steps are forgotten."""
    digests = [digest.hex() for digest in list(adamw_run.open().sample_rows)[:6]]
    document = _document(adamw_run, tmp_path / "out", mode, forget=",".join(digests))
    assert sum(window["hvp_calls"] for window in document["windows"]) <= adamw_run.open().num_steps


def test_the_forget_set_is_the_rows_of_the_file(adamw_run: TinyRun, tmp_path: Path) -> None:
    """The last rows of the data, not its first ones."""
    document = _document(adamw_run, tmp_path / "out", "secant")
    log = adamw_run.open()
    forgotten = {bytes.fromhex(digest) for digest in document["request"]["samples"]}
    used = [{s.digest for s in log.step(step).samples} & forgotten for step in range(log.num_steps)]
    assert document["request"]["steps"] == [step for step, found in enumerate(used) if found]
    assert document["coverage"] == {
        "samples": 2, "occurrences": sum(map(len, used)), "steps": sum(map(bool, used)), "missed": 0,
    }  # fmt: skip


def test_a_short_window_ends_where_it_should_and_is_judged(adamw_run: TinyRun, tmp_path: Path) -> None:
    document = _document(adamw_run, tmp_path / "out", "secant", forget="steps:1", K=3)
    window = document["windows"][0]
    assert (window["tz"], window["tau"], window["K_used"]) == (1, 5, 3)
    assert window["settled"] > 0.1
    assert document["result"]["verdict"] == "poor"
    assert "longer K" in document["result"]["reasons"][0]


def test_windows_apart_are_subtracted_from_the_final_model(adamw_run: TinyRun, tmp_path: Path) -> None:
    """θ̂ = θ[τ] - δ₁ - δ₂ with δ = θ[end] - θ′[end] of each window, from the log's own parameters."""
    document = _document(adamw_run, tmp_path / "both", "secant", forget="steps:1,6", K=1)
    assert [(w["tz"], w["tau"]) for w in document["windows"]] == [(1, 3), (6, 8)]
    trained = _flat(parameters_in(adamw_run.trained))
    changes = []
    for name, steps in {"first": "steps:1", "second": "steps:6", "both": "steps:1,6"}.items():
        if name != "both":
            unlearn_tiny(adamw_run, tmp_path / name, "secant", forget=steps, K=1)
        changes.append(_flat(parameters_in(tmp_path / name)) - trained)
    assert torch.allclose(changes[0] + changes[1], changes[2], atol=1e-6)


def test_without_updates_a_window_ends_on_a_checkpoint(base_model: Path, tmp_path: Path) -> None:
    run = record_tiny(base_model, tmp_path, updates="none")
    document = _document(run, tmp_path / "out", "secant", forget="steps:1", K=1)
    assert document["windows"][0]["tau"] == 4
    assert document["windows"][0]["K_used"] == 2


@pytest.mark.parametrize("updates", ["lossless", "none"])
def test_an_interrupted_run_is_unlearned_as_far_as_it_went(updates: Any, base_model: Path, tmp_path: Path) -> None:
    run = _interrupted_run(base_model, tmp_path, updates)
    digest = run.open().step(0).samples[0].digest.hex()
    reported = Recording()
    options = UnlearnOptions(forget=digest, output=tmp_path / "out", K=None, hessian_mode=HessianMode.SECANT)
    if updates == "none":
        with pytest.raises(InsufficientLogError, match="expected a checkpoint of step 3"):
            unlearn(run.log, options, progress=reported)
        return
    result = unlearn(run.log, options, progress=reported)
    assert result.windows[0].end == 3
    assert any("interrupted" in line for line in reported.lines)


def _interrupted_run(base: Path, folder: Path, updates: Any) -> TinyRun:
    """Three steps of two rows each, then an exception."""
    model = load_model(str(base), torch.float32).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    description = RunDescription(model_source=str(base), padding_token=2, updates=updates)
    with suppress(KeyboardInterrupt), Recorder(folder / "log", model, optimizer, description):
        for step in range(3):
            tokens = torch.arange(3, 15).reshape(2, 6) + step
            model(input_ids=tokens, labels=tokens.clone()).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        raise KeyboardInterrupt
    return TinyRun(base, folder, folder / "log", folder, RecordOptions(model="", data="", output=folder))


def test_the_recorded_update_is_the_papers_initial_deviation_at_batch_level(adamw_run: TinyRun) -> None:
    carrier = _paper_carrier(adamw_run, "steps:2")
    replay, log = adamw_run.replay_model(), adamw_run.open()
    before, after = replay.load(log.parameters(2)), replay.load(log.parameters(3))
    carrier.advance(2, log.step(2), before, measure=False)
    for v, p, q in zip(carrier.deviation(after), before, after, strict=True):
        assert torch.equal(v, q - p)


def test_the_papers_initial_deviation_of_a_sample_is_its_own_scaled_gradient(gentle_run: TinyRun) -> None:
    """-(η/B)∇ℓ by the definition: full gradient minus the retained rows'."""
    carrier = _paper_carrier(gentle_run, "forget")
    replay, log = gentle_run.replay_model(), gentle_run.open()
    forget_set = find_forget_set(log, "forget", None, lambda: _tokenizer(gentle_run))
    step = forget_set.steps[0]
    record, parameters = log.step(step), replay.load(log.parameters(step))
    carrier.advance(step, record, parameters, measure=False)
    whole = replay.gradient(record, parameters)
    retained = replay.gradient(record, parameters, forget_set.masked)
    for v, all_rows, rest in zip(carrier.deviation(parameters), whole, retained, strict=True):
        assert all_rows is not None
        assert rest is not None
        assert torch.allclose(v, -record.lr[0] * (all_rows - rest), atol=1e-8)


def test_a_deviation_that_grows_without_bound_is_an_error_and_no_model(base_model: Path, tmp_path: Path) -> None:
    run = record_tiny(base_model, tmp_path, optimizer="sgd", lr=30.0, max_grad_norm=0.01, epochs=8)
    with pytest.raises(DivergedError, match="grows without bound") as caught:
        unlearn_tiny(run, tmp_path / "out", "exact", propagation="paper")
    assert caught.value.exit_code == 21
    assert not list(tmp_path.glob("*out*"))


def test_the_papers_form_refuses_secant() -> None:
    with pytest.raises(UsageError, match="needs a Hessian"):
        UnlearnOptions(forget="x", output=Path("out"), hessian_mode=HessianMode.SECANT, propagation="paper")  # type: ignore[arg-type]


def test_an_unknown_mode_is_refused_rather_than_replaced() -> None:
    with pytest.raises(UsageError, match="found 'kfac'"):
        UnlearnOptions(forget="x", output=Path("out"), hessian_mode="kfac")  # type: ignore[arg-type]


def test_a_bfloat16_model_says_how_much_of_the_change_survives(base_model: Path, tmp_path: Path) -> None:
    run = record_tiny(base_model, tmp_path, dtype="bfloat16", lr=1e-3)
    document = _document(run, tmp_path / "out", "secant", forget="steps:3", K=1)
    surviving = document["result"]["surviving"]
    assert 0 < surviving["norm_ratio"] != 1
    assert surviving["cosine"] < 1


def test_the_linearization_error_is_that_of_the_gradient(gentle_run: TinyRun, tmp_path: Path) -> None:
    errors = {mode: _document(gentle_run, tmp_path / mode, mode)["windows"][0] for mode in ("exact", "GGN", "secant")}
    assert errors["secant"]["linearization_error"] is None
    assert 0 < errors["exact"]["linearization_error"] < errors["GGN"]["linearization_error"] < 1
    assert len(errors["exact"]["linearization_errors"]) >= 5


def test_the_input_log_and_model_stay_as_they_were(adamw_run: TinyRun, tmp_path: Path) -> None:
    before = _contents(adamw_run)
    unlearn_tiny(adamw_run, tmp_path / "out", "GGN", oracle=True)
    assert _contents(adamw_run) == before


def _contents(run: TinyRun) -> dict[str, bytes]:
    folders = (run.log, run.trained, run.base)
    return {str(file): file.read_bytes() for folder in folders for file in folder.rglob("*") if file.is_file()}


def _paper_carrier(run: TinyRun, forget: str) -> PaperCarrier:
    replay = run.replay_model()
    forget_set = find_forget_set(run.open(), forget, None, lambda: _tokenizer(run))
    options = UnlearnOptions(forget=forget, output=None, dry_run=True)
    setting = Setting(replay, forget_set, HessianMode.EXACT, options.denominator, damping=0.0)
    return PaperCarrier(setting, RowPrediction(setting), replay.parameters)


def _tokenizer(run: TinyRun) -> Any:
    return load_tokenizer(str(run.base))


def test_the_logged_learning_rate_is_the_one_that_was_used(adamw_run: TinyRun) -> None:
    """Linear warm-up over one of ten steps, then linear decay; the first step has lr 0, not the one after it."""
    log = adamw_run.open()
    rates = log.table("steps/lr")[:, 0]
    peak, steps = adamw_run.options.lr, log.num_steps
    expected = [0.0] + [peak * (steps - step) / (steps - 1) for step in range(1, steps)]
    assert rates == pytest.approx(np.array(expected))
    assert log.parameters(0).tobytes() == log.parameters(1).tobytes()


@pytest.mark.parametrize("level", ["sample", "batch"])
def test_corrections_of_separate_windows_add_up(level: str, base_model: Path, tmp_path: Path) -> None:
    """Also where a window's lead-in holds rows that an earlier window is about."""
    run = record_tiny(base_model, tmp_path, num_rows=120, epochs=1, checkpoint_every=100)
    trained = _flat(parameters_in(run.trained))

    def change(*steps: int) -> Tensor:
        digests = ",".join(run.open().step(step).samples[0].digest.hex() for step in steps)
        forget = digests if level == "sample" else "steps:" + ",".join(map(str, steps))
        output = tmp_path / f"out-{'-'.join(map(str, steps))}"
        document = _document(run, output, "secant", forget=forget, level=level, K=2)
        assert [window["start"] for window in document["windows"]] == [0] * len(steps)
        assert document["coverage"]["missed"] == 0
        return _flat(parameters_in(output)) - trained

    together, apart = change(3, 20), change(3) + change(20)
    assert float(together.norm()) > 0
    assert float((together - apart).norm()) < 1e-5 * float(apart.norm())
