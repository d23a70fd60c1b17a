"""What a plan says beforehand is what a sweep then spends."""

from pathlib import Path
from typing import Any

import pytest

from lmcleaner.choices import DEFAULT_RANK, HessianMode, Propagation, Steps
from lmcleaner.training.numerics import restored_numerics
from lmcleaner.unlearning.costs import logged_costs, measure_costs, padded_tokens
from lmcleaner.unlearning.options import UnlearnOptions
from lmcleaner.unlearning.planning import plan_request
from lmcleaner.unlearning.recorded import Recorded, find_recorded
from lmcleaner.unlearning.run import resolve_request, unlearn
from lmcleaner.unlearning.windows import windows_in
from tiny_runs import TinyRun, record_tiny, unlearn_tiny

NOTHING = Recorded(gradients=frozenset(), given=frozenset(), curvature=())


@pytest.fixture(scope="module")
def run(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """30 steps without a warm-up, whose first step would have a learning rate of zero and so leave no deviation."""
    return record_tiny(base_model, tmp_path_factory.mktemp("run"), epochs=6, warmup_ratio=0.0, checkpoint_every=8)


@pytest.mark.parametrize("mode", list(HessianMode))
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"forget": "steps:3,20", "K": 2},
        {"oracle_sample": 40},
        {"K": "auto", "settle_tolerance": 1e-9},
        {"forget": "steps:9", "level": "sample"},
    ],
    ids=str,
)
def test_gradients_and_products_are_foreseen(
    options: dict[str, Any], mode: HessianMode, run: TinyRun, tmp_path: Path
) -> None:
    assert_foreseen(run, tmp_path / "out", mode, options)


@pytest.mark.parametrize("mode", [mode for mode in HessianMode if mode is not HessianMode.SECANT])
@pytest.mark.parametrize("forget", ["forget", "steps:9"])
def test_those_of_the_papers_form_are_too(forget: str, mode: HessianMode, run: TinyRun, tmp_path: Path) -> None:
    options = {"forget": forget, "propagation": Propagation.PAPER, "damping": 0.1}
    assert_foreseen(run, tmp_path / "out", mode, options)


def assert_foreseen(run: TinyRun, output: Path, mode: HessianMode, options: dict[str, Any]) -> None:
    document = unlearn_tiny(run, output, mode, **options).document
    assert document is not None
    plan, windows = document["plan"], document["windows"]
    assert plan["gradients"] == sum(window["gradients"] for window in windows)
    assert plan["products"] == sum(window["hvp_calls"] for window in windows)
    assert plan["steps"] == sum(window["tau"] - window["start"] for window in windows)
    assert plan["seconds"] > 0
    assert plan["activation_bytes"] > 0


def test_a_quick_plan_loads_no_model_and_counts_the_same(run: TinyRun) -> None:
    options = UnlearnOptions(forget="forget", output=None, dry_run=True, K=None, model=str(run.base), ledger=False)
    quick, measured = (plan_request(run.open(), options, quick=quick).plans for quick in (True, False))
    assert [plan.mode for plan in quick] == list(HessianMode)
    assert [plan.gradients for plan in quick] == [plan.gradients for plan in measured]
    assert all(plan.memory_bytes is None for plan in quick)
    assert all((plan.memory_bytes or 0) > plan.parameter_memory_bytes for plan in measured)


def test_a_second_derivative_costs_more_memory_than_a_gradient(run: TinyRun) -> None:
    log, replay = run.open(), run.replay_model()
    windows = windows_in(log, [3], None)
    with restored_numerics(log.manifest.numerics):
        plain, exact = (
            measure_costs(log, replay, windows, mode, DEFAULT_RANK, NOTHING, reads_rows=True)
            for mode in (HessianMode.SECANT, HessianMode.EXACT)
        )
        nothing = measure_costs(log, replay, windows, HessianMode.FISHER, DEFAULT_RANK, NOTHING, reads_rows=False)
    assert plain.activation_bytes is not None
    assert exact.activation_bytes is not None
    assert exact.activation_bytes > plain.activation_bytes > 0
    assert nothing.activation_bytes == 0
    assert logged_costs(log, HessianMode.EXACT).activation_bytes is None


def test_what_a_written_mode_reads_is_timed_where_the_log_holds_it(base_model: Path, tmp_path: Path) -> None:
    run = record_tiny(base_model, tmp_path, gradients="lossless", curvature="low_rank", rank=2)
    log, replay = run.open(), run.replay_model()
    options = UnlearnOptions(forget=log.step(3).samples[0].digest.hex(), output=None, dry_run=True, K=None)
    forget_set, windows = resolve_request(log, options)
    found = find_recorded(log, forget_set, HessianMode.LOW_RANK, 2)
    with restored_numerics(log.manifest.numerics):
        read, made = (
            measure_costs(log, replay, windows, HessianMode.LOW_RANK, 2, recorded, reads_rows=True)
            for recorded in (found, NOTHING)
        )
    assert min(read.stored_seconds, read.written_seconds, read.load_seconds, made.written_seconds) > 0
    assert (made.stored_seconds, made.load_seconds) == (0.0, 0.0)


def test_a_plan_of_windows_that_may_end_earlier_says_that_it_is_the_most(run: TinyRun) -> None:
    expected: dict[Steps, str] = {"auto": "up to", None: "about"}
    for steps, wording in expected.items():
        found = unlearn(run.log, UnlearnOptions(forget="forget", output=None, dry_run=True, K=steps, ledger=False))
        assert found.plan.is_upper_bound is (steps == "auto")
        assert any(f"MB to read, {wording} " in line for line in found.lines)


def test_tokens_are_counted_with_their_padding(run: TinyRun) -> None:
    log = run.open()
    counted = [sum(len(m.samples) * m.width for m in log.step(step).microbatches) for step in range(log.num_steps)]
    assert padded_tokens(log).tolist() == counted
