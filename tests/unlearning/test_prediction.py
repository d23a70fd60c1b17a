"""Modes whose curvature is written down: their sweeps, what they cost, and that the plan knew it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from named_requests import find_forget_set
from torch import Tensor

from lmcleaner.choices import Denominator, HessianMode
from lmcleaner.curvature.linearized import curvature_product
from lmcleaner.curvature.segments import PROBES
from lmcleaner.training.vectors import global_norm
from lmcleaner.unlearning.prediction import FisherPrediction, SegmentPrediction, make_prediction
from lmcleaner.unlearning.setting import Setting
from tiny_runs import TinyRun, record_tiny, unlearn_tiny

ESTIMATED = [HessianMode.DIAG, HessianMode.LOW_RANK]
WRITTEN = [*ESTIMATED, HessianMode.FISHER]


@pytest.fixture(scope="module")
def gentle_run(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """SGD with a small learning rate, and the gradients that it was given."""
    folder = tmp_path_factory.mktemp("gentle")
    return record_tiny(base_model, folder, optimizer="sgd", lr=0.02, max_grad_norm=0.0, gradients="lossless", epochs=4)


def setting_of(run: TinyRun, mode: HessianMode) -> Setting:
    """A request that leaves out no row of steps 4 to 7."""
    forget_set = find_forget_set(run.open(), "steps:1", None, lambda: None)
    return Setting(run.replay_model(), forget_set, mode, Denominator.LOGGED, damping=0.0)


def vector_like(parameters: Sequence[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(part.shape, generator=generator) for part in parameters]


def mean_ggn_product(run: TinyRun, parameters: Sequence[Tensor], vector: Sequence[Tensor]) -> list[Tensor]:
    """Of steps 4 and 6, which are those that an estimate for 4 to 7 takes."""
    products = [
        curvature_product(run.replay_model(), HessianMode.GGN, run.open().step(step), parameters, vector, 0.0)
        for step in (4, 6)
    ]
    return [(first + second) / 2 for first, second in zip(*products, strict=True)]


def relative(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    return global_norm(f - e for f, e in zip(found, expected, strict=True)) / global_norm(expected)


def test_more_eigenpairs_come_nearer_to_the_mean_ggn_of_the_segment(gentle_run: TinyRun) -> None:
    log, setting = gentle_run.open(), setting_of(gentle_run, HessianMode.LOW_RANK)
    parameters = setting.replay.load(log.parameters(4))
    gradient = [part for part in setting.gradient(log.step(4), parameters) if part is not None]
    expected = mean_ggn_product(gentle_run, parameters, gradient)
    errors = [
        relative(SegmentPrediction(log, setting, rank).product(4, log.step(4), parameters, gradient), expected)
        for rank in (1, 10, 100)
    ]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.2


def test_a_diagonal_is_that_of_the_mean_ggn_of_the_segment(gentle_run: TinyRun) -> None:
    """Found within Hutchinson's error, by the products with the unit vectors of some elements."""
    log, setting = gentle_run.open(), setting_of(gentle_run, HessianMode.DIAG)
    parameters = setting.replay.load(log.parameters(4))
    prediction = SegmentPrediction(log, setting, rank=1)
    ones = [torch.ones_like(part) for part in parameters]
    found = torch.cat([part.reshape(-1) for part in prediction.product(4, log.step(4), parameters, ones)])
    for place in range(0, len(found), len(found) // 12):
        unit = torch.zeros_like(found)
        unit[place] = 1
        parts = unit.split([part.numel() for part in parameters])
        vector = [part.view(like.shape) for part, like in zip(parts, parameters, strict=True)]
        column = torch.cat([part.reshape(-1) for part in mean_ggn_product(gentle_run, parameters, vector)])
        entry = float(column[place])
        deviation = ((float(column.square().sum()) - entry**2) / PROBES) ** 0.5
        assert abs(float(found[place]) - entry) <= 5 * deviation + 1e-9


@pytest.mark.parametrize("mode", ESTIMATED)
def test_an_estimate_serves_until_the_next_checkpoint(mode: HessianMode, gentle_run: TinyRun) -> None:
    log, setting = gentle_run.open(), setting_of(gentle_run, mode)
    prediction, parameters = SegmentPrediction(log, setting, rank=2), setting.replay.load(log.parameters(4))
    vector = vector_like(parameters)
    spent = []
    for step in (4, 5, 7, 8):
        prediction.product(step, log.step(step), parameters, vector)
        spent.append(setting.spent.products)
    assert spent[0] == spent[1] == spent[2] > 0
    assert spent[3] == 2 * spent[0]


def test_the_fishers_product_is_the_recorded_gradient_times_itself_and_reads_no_row(gentle_run: TinyRun) -> None:
    log, setting = gentle_run.open(), setting_of(gentle_run, HessianMode.FISHER)
    parameters = setting.replay.load(log.parameters(4))
    gradient = [part for part in setting.replay.gradient(log.step(4), parameters) if part is not None]
    vector = vector_like(parameters)
    slope = sum(float((g * v).sum()) for g, v in zip(gradient, vector, strict=True))
    prediction = FisherPrediction(log, setting, rank=1)
    found = prediction.product(4, log.step(4), parameters, vector)
    assert relative(found, [g * slope for g in gradient]) < 1e-6
    predicted = [part for part in prediction.gradient(4, log.step(4), parameters, vector) if part is not None]
    assert relative(predicted, [g - g * slope for g in gradient]) < 1e-6
    assert setting.spent.gradients == 0


@pytest.mark.parametrize("mode", [*WRITTEN, HessianMode.EMPIRICAL_FISHER])
def test_damping_adds_itself_times_the_deviation(mode: HessianMode, gentle_run: TinyRun) -> None:
    log, setting = gentle_run.open(), setting_of(gentle_run, mode)
    parameters = setting.replay.load(log.parameters(4))
    vector = vector_like(parameters)
    products = [
        make_prediction(log, replace(setting, damping=damping), 2).product(4, log.step(4), parameters, vector)
        for damping in (0.0, 0.5)
    ]
    assert relative([p - q for p, q in zip(products[1], products[0], strict=True)], [0.5 * v for v in vector]) < 1e-5


@pytest.mark.parametrize("mode", [*WRITTEN, HessianMode.EMPIRICAL_FISHER])
@pytest.mark.parametrize("propagation", ["optimizer", "paper"])
def test_each_mode_moves_the_model_towards_the_retrained_one(
    mode: HessianMode, propagation: str, gentle_run: TinyRun, tmp_path: Path
) -> None:
    document = unlearn_tiny(gentle_run, tmp_path / "out", mode, propagation=propagation, oracle=True).document
    assert document is not None
    assert document["oracle"]["relative_error"] < 0.3
    assert document["windows"][0]["linearization_error"] > 0


@pytest.mark.parametrize("mode", WRITTEN)
def test_the_plan_knows_the_products_of_the_estimates(mode: HessianMode, gentle_run: TinyRun, tmp_path: Path) -> None:
    rank = 3 if mode is HessianMode.LOW_RANK else None
    result = unlearn_tiny(gentle_run, tmp_path / "out", mode, forget="steps:1", rank=rank)
    assert result.document is not None
    segments, products = 5, {HessianMode.DIAG: 8, HessianMode.LOW_RANK: 7 + 4, HessianMode.FISHER: 0}[mode]
    assert result.plan.products == 2 * products * segments
    assert sum(window["hvp_calls"] for window in result.document["windows"]) == result.plan.products


@pytest.mark.parametrize("mode", [*WRITTEN, HessianMode.EMPIRICAL_FISHER])
def test_a_result_that_no_oracle_measured_is_poor(mode: HessianMode, gentle_run: TinyRun, tmp_path: Path) -> None:
    verdicts = []
    for oracle in (False, True):
        document = unlearn_tiny(gentle_run, tmp_path / f"out-{oracle}", mode, oracle=oracle).document
        assert document is not None
        verdicts.append((document["result"]["verdict"], document["result"]["reasons"]))
    assert verdicts[0][0] == "poor"
    assert "measure it with --oracle" in verdicts[0][1][-1]
    assert verdicts[1] == ("good", [])
