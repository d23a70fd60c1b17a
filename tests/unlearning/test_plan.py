"""What a plan says beforehand is what a sweep then spends."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmcleaner.audit.oracle import counted_samples, steps_to_replay
from lmcleaner.choices import DEFAULT_RANK, Denominator, HessianMode, Level, Propagation, Steps
from lmcleaner.training.numerics import restored_numerics
from lmcleaner.unlearning.costs import logged_costs, measure_costs
from lmcleaner.unlearning.counting import count_sweep
from lmcleaner.unlearning.options import UnlearnOptions
from lmcleaner.unlearning.oracle_cost import oracle_seconds
from lmcleaner.unlearning.planning import plan_request
from lmcleaner.unlearning.recorded import Recorded, find_recorded
from lmcleaner.unlearning.run import resolve_request, unlearn
from lmcleaner.unlearning.shapes import Sizes, largest_steps, padded_tokens
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
            measure_costs(log, replay, windows, mode, DEFAULT_RANK, NOTHING, reads_rows=True, gradient_steps=[3])
            for mode in (HessianMode.SECANT, HessianMode.EXACT)
        )
        nothing = measure_costs(
            log, replay, windows, HessianMode.FISHER, DEFAULT_RANK, NOTHING, reads_rows=False, gradient_steps=[]
        )
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
            measure_costs(log, replay, windows, HessianMode.LOW_RANK, 2, recorded, reads_rows=True, gradient_steps=[3])
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


def test_the_oracle_is_counted_where_it_is_asked_for(run: TinyRun) -> None:
    asked = UnlearnOptions(forget="forget", output=None, dry_run=True, ledger=False)
    without, with_oracle = (unlearn(run.log, asked, oracle=oracle) for oracle in (False, True))
    assert without.plan.oracle_seconds == 0 < with_oracle.plan.oracle_seconds
    assert not any("oracle" in line for line in without.lines)
    assert any(line.startswith("the oracle: about ") for line in with_oracle.lines)
    assert all(plan.oracle_seconds > 0 for plan in plan_request(run.open(), asked).plans)


def test_a_quick_plan_counts_the_tokens_that_the_oracle_replays(run: TinyRun) -> None:
    log = run.open()
    early, late, nothing = (
        resolve_request(log, UnlearnOptions(forget=forget, output=None, level=level, dry_run=True, K=None))[0]
        for forget, level in (("steps:9", Level.SAMPLE), ("steps:25", Level.BATCH), ("steps:24-29", Level.BATCH))
    )
    assert steps_to_replay(log, early) == list(range(log.nearest_checkpoint(early.steps[0]), 30))
    assert steps_to_replay(log, late) == [24, *range(26, 30)]
    assert steps_to_replay(log, nothing) == []
    a_token = np.median(log.table("steps/seconds")) / padded_tokens(log).mean()
    replayed = padded_tokens(log)[steps_to_replay(log, late)].sum()
    found = [oracle_seconds(log, wanted, Denominator.LOGGED) for wanted in (late, nothing)]
    compared = [sum(len(row.tokens) for inside in (True, False) for row in counted_samples(log, wanted, inside=inside))
                for wanted in (late, nothing)]  # fmt: skip
    assert compared[0] == compared[1]  # all rows of the run are
    assert found[0] - found[1] == pytest.approx(a_token * replayed)
    assert found[1] == pytest.approx(3 * a_token * compared[1])


def test_tokens_are_counted_with_their_padding(run: TinyRun) -> None:
    log = run.open()
    counted = [sum(len(m.samples) * m.width for m in log.step(step).microbatches) for step in range(log.num_steps)]
    assert padded_tokens(log).tolist() == counted


def test_memory_is_measured_where_most_tokens_or_pairs_of_them_pass_at_once(run: TinyRun) -> None:
    log = run.open()
    shapes = [[(len(m.samples), m.width) for m in log.step(step).microbatches] for step in range(log.num_steps)]
    tokens = [max(rows * width for rows, width in step) for step in shapes]
    pairs = [max(rows * width**2 for rows, width in step) for step in shapes]
    found = largest_steps(log, range(log.num_steps), np.ones_like)
    assert max(tokens[step] for step in found) == max(tokens)
    assert max(pairs[step] for step in found) == max(pairs)
    assert largest_steps(log, [4], np.ones_like) == [4]
    assert largest_steps(log, [], np.ones_like) == []


def test_a_step_that_is_cut_takes_less_than_a_smaller_one_that_is_not(run: TinyRun) -> None:
    log = run.open()
    tokens = [max(len(m.samples) * m.width for m in log.step(step).microbatches) for step in range(log.num_steps)]
    largest = max(tokens)

    def cut_the_largest(sizes: Sizes) -> Sizes:
        return np.where(sizes == largest, 2, 1)

    (*_, found) = largest_steps(log, range(log.num_steps), cut_the_largest)
    assert tokens[found] == max(count for count in tokens if count < largest)


@pytest.mark.parametrize("mode", [HessianMode.SECANT, HessianMode.GGN, HessianMode.DIAG])
def test_the_papers_form_computes_few_gradients_by_themselves(mode: HessianMode, run: TinyRun) -> None:
    """So memory is measured on those alone."""
    log = run.open()
    options = UnlearnOptions(forget=log.step(9).samples[0].digest.hex(), output=None, K=4, dry_run=True)
    forget_set, windows = resolve_request(log, options)
    steps = {}
    for propagation in Propagation if mode is not HessianMode.SECANT else [Propagation.OPTIMIZER]:
        counts = count_sweep(
            log, forget_set, windows, mode, DEFAULT_RANK, NOTHING,
            propagation=propagation, oracle_sample=0.0, is_end_fixed=True,
        )  # fmt: skip
        steps[propagation] = counts.gradient_steps
    lead_in = {step for window in windows for step in range(window.start, window.first)}
    carried = {step for window in windows for step in range(window.first, window.end)}
    assert steps[Propagation.OPTIMIZER] >= lead_in | {window.first for window in windows}
    if mode is not HessianMode.GGN:
        assert steps[Propagation.OPTIMIZER] == lead_in | carried
    if mode is not HessianMode.SECANT:
        assert steps[Propagation.PAPER] & lead_in == set()
        assert set(forget_set.steps) <= steps[Propagation.PAPER] <= carried
