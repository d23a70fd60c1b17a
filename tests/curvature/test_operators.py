"""Curvature products equal dense matrices in float64, built row by row without padding, batches or our own code."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import transformers.models.llama.modeling_llama as llama
from torch import Tensor, nn

from dense_twin import (
    CPU,
    DENOMINATOR,
    DROPPING,
    MODES,
    ONE_LAYER,
    SMALLEST,
    SMOOTHED,
    STARTS,
    TOLERANCE,
    TWO_LAYERS,
    Size,
    assert_close,
    build_model,
    build_replay,
    describe,
    flat,
    float64_attention,
    float64_norm,
    make_sample,
    make_samples,
    make_twin,
    microbatch,
    multiply,
    parameters_of,
    random_vector,
    shaped,
    step_of,
    whole_step,
)
from lmcleaner.choices import Denominator, HessianMode
from lmcleaner.curvature import linearized
from lmcleaner.curvature.estimates import estimate_diagonal
from lmcleaner.curvature.linearized import OPERATORS, curvature_product, predicted_gradient
from lmcleaner.formats.samples import Sample
from lmcleaner.formats.steps import StepRecord
from lmcleaner.training.batches import row_parts
from lmcleaner.training.numerics import rng_state
from lmcleaner.training.replay import ReplayModel

# torch's own forward derivatives still go through torch.jit (decompositions_for_jvp.py).
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")


@pytest.fixture(autouse=True, scope="module")
def float64_throughout() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llama.LlamaRMSNorm, "forward", float64_norm)
        patch.setattr(llama, "eager_attention_forward", float64_attention)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(threads)


every_mode = pytest.mark.parametrize("mode", MODES)
every_attention = pytest.mark.parametrize("attention", ["eager", "sdpa"])
every_size = pytest.mark.parametrize(
    "size", [ONE_LAYER, TWO_LAYERS, SMOOTHED], ids=["one layer", "two tied layers", "smoothed labels"]
)


@every_size
@every_attention
@every_mode
def test_products_equal_the_dense_matrixs(size: Size, attention: str, mode: HessianMode) -> None:
    replay = build_replay(size, attention)
    for seed in range(5):
        vector = random_vector(replay, seed)
        expected = make_twin(size).matrices[mode] @ flat(vector)
        assert_close(multiply(replay, mode, whole_step(size.vocab), vector), expected, size.tolerance)


@every_size
@every_attention
def test_the_gradient_equals_the_dense_one(size: Size, attention: str) -> None:
    replay = build_replay(size, attention)
    found = flat(replay.gradient(whole_step(size.vocab), parameters_of(replay)))
    assert_close(found, make_twin(size).gradient, size.tolerance)


@every_size
@every_attention
@every_mode
def test_every_parameter_tensors_block_is_right(size: Size, attention: str, mode: HessianMode) -> None:
    replay = build_replay(size, attention)
    step, matrix = whole_step(size.vocab), make_twin(size).matrices[mode]
    for index, entry in enumerate(replay.manifest.parameters):
        vector = [part if i == index else torch.zeros_like(part) for i, part in enumerate(random_vector(replay, 1))]
        product = multiply(replay, mode, step, vector)
        block = slice(entry.offset, entry.offset + entry.num_elements)
        assert_close(product[block], matrix[block, block] @ vector[index].reshape(-1), size.tolerance)
        assert_close(product, matrix[:, block] @ vector[index].reshape(-1), size.tolerance)


def matrix_of_products(replay: ReplayModel, mode: HessianMode, step: StepRecord) -> Tensor:
    """All columns of the operator under test."""
    basis = torch.eye(replay.manifest.num_elements, dtype=torch.float64)
    return torch.stack([multiply(replay, mode, step, shaped(replay, column)) for column in basis], dim=1)


@cache
def smallest_matrix(mode: HessianMode) -> Tensor:
    return matrix_of_products(build_replay(SMALLEST, "sdpa"), mode, whole_step(SMALLEST.vocab))


@every_mode
def test_the_whole_matrix_of_products_is_the_dense_one(mode: HessianMode) -> None:
    assert_close(smallest_matrix(mode), make_twin(SMALLEST).matrices[mode])


@every_mode
def test_the_whole_matrix_of_products_is_symmetric(mode: HessianMode) -> None:
    matrix = smallest_matrix(mode)
    assert (matrix - matrix.T).abs().max() <= 1e-12 * matrix.abs().max()


@pytest.mark.parametrize("mode", [HessianMode.GGN, HessianMode.EMPIRICAL_FISHER])
def test_the_ggn_and_the_fisher_have_no_negative_eigenvalue(mode: HessianMode) -> None:
    assert torch.linalg.eigvalsh(smallest_matrix(mode)).min() >= -1e-12


def test_the_fishers_rank_is_the_number_of_rows_with_targets() -> None:
    values = torch.linalg.eigvalsh(smallest_matrix(HessianMode.EMPIRICAL_FISHER))
    assert int((values > 1e-10 * values.max()).sum()) == 3


def test_the_hessian_has_a_negative_eigenvalue_here() -> None:
    assert torch.linalg.eigvalsh(smallest_matrix(HessianMode.EXACT)).min() < -1e-2


@pytest.mark.parametrize("mode", [HessianMode.GGN, HessianMode.EXACT])
def test_an_estimated_diagonal_is_what_the_dense_matrix_gives_for_the_same_probes(mode: HessianMode) -> None:
    """And so comes near the dense diagonal, negative entries of the Hessian's included, within Hutchinson's error."""
    replay, step, matrix, probes = build_replay(SMALLEST, "sdpa"), whole_step(SMALLEST.vocab), smallest_twin(mode), 60
    point = parameters_of(replay)

    def estimate(product: Callable[[Sequence[Tensor]], list[Tensor]]) -> Tensor:
        return flat(estimate_diagonal(product, point, probes, torch.Generator().manual_seed(1)).entries)

    found = estimate(lambda vector: curvature_product(replay, mode, step, point, vector, 0.0))
    assert_close(found, estimate(lambda vector: shaped(replay, matrix @ flat(vector))))
    deviation = ((matrix**2).sum(dim=1) - matrix.diagonal() ** 2).div(probes).sqrt()
    assert bool(((found - matrix.diagonal()).abs() <= 5 * deviation + 1e-9).all())
    assert (float(matrix.diagonal().min()) < 0) == (mode is HessianMode.EXACT)


def smallest_twin(mode: HessianMode) -> Tensor:
    return make_twin(SMALLEST).matrices[mode]


def curvature_along(replay: ReplayModel, mode: HessianMode, step: StepRecord, vector: Sequence[Tensor]) -> float:
    return float(flat(vector) @ multiply(replay, mode, step, vector))


@every_attention
def test_where_the_hessian_curves_down_the_ggn_does_not(attention: str) -> None:
    replay, step = build_replay(ONE_LAYER, attention), whole_step(ONE_LAYER.vocab)
    _, directions = torch.linalg.eigh(make_twin(ONE_LAYER).matrices[HessianMode.EXACT])
    for direction in directions.T[:10]:
        vector = shaped(replay, direction.contiguous())
        assert curvature_along(replay, HessianMode.EXACT, step, vector) < 0
        assert curvature_along(replay, HessianMode.GGN, step, vector) >= -1e-12


@every_attention
def test_the_ggn_curves_down_along_no_random_direction(attention: str) -> None:
    replay, step = build_replay(TWO_LAYERS, attention), whole_step(TWO_LAYERS.vocab)
    for seed in range(20):
        assert curvature_along(replay, HessianMode.GGN, step, random_vector(replay, seed)) >= 0


@every_size
@every_attention
def test_the_hessian_product_is_the_gradients_slope(size: Size, attention: str) -> None:
    replay, step = build_replay(size, attention), whole_step(size.vocab)
    vector, here, distance = random_vector(replay, 0), parameters_of(replay), 1e-6
    ahead, behind = (
        flat(replay.gradient(step, [p + sign * distance * v for p, v in zip(here, vector, strict=True)]))
        for sign in (1, -1)
    )
    product = flat(curvature_product(replay, HessianMode.EXACT, step, here, vector, 0.0))
    assert_close(product, (ahead - behind) / (2 * distance), tolerance=1e-6)


def split_step(vocab: int) -> StepRecord:
    """The same rows in three microbatches with 4, 3 and 1 targets; the second has no mask, the third other padding."""
    a, b, c, d = make_samples(vocab)
    return step_of(
        microbatch([a], [0], 6),
        microbatch([b], [2], 6, has_mask=True),
        microbatch([c, d], [0, 1], 9),
    )


@every_attention
@every_mode
def test_microbatches_with_different_token_counts_add_up_to_the_full_batch(attention: str, mode: HessianMode) -> None:
    replay = build_replay(ONE_LAYER, attention)
    vector = random_vector(replay, 4)
    split = multiply(replay, mode, split_step(ONE_LAYER.vocab), vector)
    assert_close(split, multiply(replay, mode, whole_step(ONE_LAYER.vocab), vector))
    assert_close(split, make_twin(ONE_LAYER).matrices[mode] @ flat(vector))


@every_mode
def test_each_microbatch_is_divided_by_its_own_denominator(mode: HessianMode) -> None:
    replay = build_replay(ONE_LAYER, "sdpa")
    vector, step = random_vector(replay, 4), whole_step(ONE_LAYER.vocab)
    other = replace(step.microbatches[0], denominator=DENOMINATOR / 4)
    together = multiply(replay, mode, step_of(step.microbatches[0], other), vector)
    assert_close(together, 5 * multiply(replay, mode, step, vector))


@every_mode
def test_the_loops_own_division_of_the_loss_divides_the_curvature(mode: HessianMode) -> None:
    replay, divided = build_replay(ONE_LAYER, "sdpa"), build_replay(ONE_LAYER, "sdpa", loss_divisor=3.0)
    vector, step = random_vector(replay, 4), whole_step(ONE_LAYER.vocab)
    assert_close(3 * multiply(divided, mode, step, vector), multiply(replay, mode, step, vector))


@every_mode
@pytest.mark.parametrize("damping", [1e-4, 0.5])
def test_damping_adds_itself_times_the_identity(mode: HessianMode, damping: float) -> None:
    replay = build_replay(ONE_LAYER, "sdpa")
    vector, step = random_vector(replay, 4), split_step(ONE_LAYER.vocab)
    identity = torch.eye(replay.manifest.num_elements, dtype=torch.float64)
    expected = (make_twin(ONE_LAYER).matrices[mode] + damping * identity) @ flat(vector)
    assert_close(multiply(replay, mode, step, vector, damping=damping), expected)


@every_size
@every_attention
@every_mode
def test_the_predicted_gradient_is_the_gradient_minus_the_damped_product(
    size: Size, attention: str, mode: HessianMode
) -> None:
    replay, damping = build_replay(size, attention), 0.1
    deviation = random_vector(replay, 6)
    found = predicted_gradient(replay, mode, split_step(size.vocab), parameters_of(replay), deviation, damping)
    twin = make_twin(size)
    expected = twin.gradient - twin.matrices[mode] @ flat(deviation) - damping * flat(deviation)
    assert_close(flat(found), expected, size.tolerance)


@every_attention
@pytest.mark.parametrize("mode", MODES)
def test_a_pass_adds_gradient_minus_product_to_what_was_there(attention: str, mode: HessianMode) -> None:
    replay, step = build_replay(ONE_LAYER, attention), whole_step(ONE_LAYER.vocab)
    vector, twin = random_vector(replay, 6), make_twin(ONE_LAYER)
    for _ in range(2):
        OPERATORS[mode].gradient_minus_product(replay, replay.inputs(step)[0], vector, {})
    assert_close(flat(replay.take_gradient()), 2 * (twin.gradient - twin.matrices[mode] @ flat(vector)))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("num_rows", [1, 2, 3, 5, 9])
def test_passes_over_parts_of_the_rows_add_up_to_one_over_all(num_rows: int, mode: HessianMode) -> None:
    replay = build_replay(ONE_LAYER, "sdpa")
    samples = [make_sample(3 + row % 3, 1 + row % 2, ONE_LAYER.vocab, seed=row) for row in range(num_rows)]
    inputs = replay.inputs(step_of(microbatch(samples, [row % 2 for row in range(num_rows)], 6)))[0]
    vector = random_vector(replay, 6)
    found = []
    for count in (1, 4):
        for part in row_parts(inputs, count):
            OPERATORS[mode].gradient_minus_product(replay, part, vector, {})
        found.append(flat(replay.take_gradient()))
    assert_close(found[1], found[0])


@every_mode
def test_a_product_computes_no_more_rows_at_once_than_a_prediction(
    mode: HessianMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Activations are what parts save, so both ways to a product must cut a microbatch into the same ones."""
    replay, vocab = build_replay(ONE_LAYER, "sdpa"), ONE_LAYER.vocab
    step = step_of(microbatch([make_sample(5, 1, vocab, seed=row) for row in range(9)], [0] * 9, 6))
    monkeypatch.setattr(linearized, "_PART_WORK", 1)  # a model as small as this isn't worth cutting otherwise
    rows_at_once: list[int] = []
    forward = replay.module.forward

    def counting(*arguments: Any, **options: Any) -> Any:
        rows_at_once.append(len(options["input_ids"]))
        return forward(*arguments, **options)

    monkeypatch.setattr(replay.module, "forward", counting)
    vector = random_vector(replay, 6)
    predicted_gradient(replay, mode, step, parameters_of(replay), vector, 0.0)
    predicted = rows_at_once.copy()
    rows_at_once.clear()
    multiply(replay, mode, step, vector)
    assert rows_at_once == predicted
    assert max(predicted) < 9


def test_the_exact_predictions_error_falls_with_the_square_of_the_deviation() -> None:
    replay, step = build_replay(ONE_LAYER, "sdpa"), whole_step(ONE_LAYER.vocab)
    here, direction = parameters_of(replay), random_vector(replay, 2)

    def error(size: float) -> float:
        deviation = [size * part for part in direction]
        predicted = predicted_gradient(replay, HessianMode.EXACT, step, here, deviation, 0.0)
        true = replay.gradient(step, [p - d for p, d in zip(here, deviation, strict=True)])
        return float((flat(predicted) - flat(true)).norm())

    assert error(1e-4) / error(5e-5) == pytest.approx(4.0, rel=0.05)


FORGOTTEN_ROW = 1


def step_that_forgets(vocab: int, tokens: int = 0) -> tuple[StepRecord, set[bytes]]:
    """A step, and the digest of its second row, whose content may be changed."""
    samples = list(make_samples(vocab))
    old = samples[FORGOTTEN_ROW]
    samples[FORGOTTEN_ROW] = Sample(((old.tokens + tokens) % vocab).astype(np.int32), old.labels)
    return step_of(microbatch(samples, STARTS, 6)), {samples[FORGOTTEN_ROW].digest}


@every_attention
@every_mode
def test_forgotten_rows_contribute_nothing(attention: str, mode: HessianMode) -> None:
    replay = build_replay(ONE_LAYER, attention)
    vector = random_vector(replay, 4)
    step, forgotten = step_that_forgets(ONE_LAYER.vocab)
    retained = make_twin(ONE_LAYER, kept=(0, 2, 3))
    found = multiply(replay, mode, step, vector, forgotten=forgotten)
    assert_close(found, retained.matrices[mode] @ flat(vector))
    predicted = predicted_gradient(replay, mode, step, parameters_of(replay), vector, 0.0, forgotten)
    assert_close(flat(predicted), retained.gradient - found)


@every_mode
def test_the_content_of_a_forgotten_row_decides_no_bit(mode: HessianMode) -> None:
    replay = build_replay(ONE_LAYER, "sdpa")
    vector = random_vector(replay, 4)
    (step, forgotten), (other, others) = (step_that_forgets(ONE_LAYER.vocab, tokens) for tokens in (0, 3))
    assert forgotten != others
    found = multiply(replay, mode, step, vector, forgotten=forgotten)
    assert torch.equal(found, multiply(replay, mode, other, vector, forgotten=others))


@every_mode
def test_the_retained_rows_own_count_can_be_the_denominator(mode: HessianMode) -> None:
    replay = build_replay(ONE_LAYER, "sdpa")
    vector = random_vector(replay, 4)
    step, forgotten = step_that_forgets(ONE_LAYER.vocab)
    logged = multiply(replay, mode, step, vector, forgotten=forgotten)
    retained = multiply(replay, mode, step, vector, forgotten=forgotten, denominator=Denominator.RETAINED)
    assert_close(retained, logged * 8 / 5)  # 4 + 3 + 1 + 0 targets, of which 3 are forgotten


@every_mode
def test_a_step_whose_rows_are_all_forgotten_has_no_curvature(mode: HessianMode) -> None:
    replay = build_replay(ONE_LAYER, "sdpa")
    step = whole_step(ONE_LAYER.vocab)
    everything = {sample.digest for sample in step.samples}
    assert not multiply(replay, mode, step, random_vector(replay, 4), forgotten=everything).any()


def operator_product(
    mode: HessianMode, replay: ReplayModel, step: StepRecord, vector: Sequence[Tensor]
) -> list[Tensor]:
    """The product of one microbatch without damping, which would carry a non-finite entry by itself."""
    product = OPERATORS[mode].product
    return product(replay, replay.inputs(step)[0], vector, {})


@every_attention
@every_mode
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_vector_that_is_not_finite_never_gives_a_finite_product(
    attention: str, mode: HessianMode, value: float
) -> None:
    replay, step = build_replay(ONE_LAYER, attention), whole_step(ONE_LAYER.vocab)
    for index in range(len(replay.parameters)):
        vector = random_vector(replay, 4)
        vector[index].fill_(value)
        assert not flat(operator_product(mode, replay, step, vector)).isfinite().all()


@every_mode
def test_products_leave_no_gradient_and_no_change_behind(mode: HessianMode) -> None:
    replay, step = build_replay(ONE_LAYER, "sdpa"), whole_step(ONE_LAYER.vocab)
    before, vector = parameters_of(replay), random_vector(replay, 4)
    copies = [part.clone() for part in vector]
    curvature_product(replay, mode, step, before, vector, 0.1)
    predicted_gradient(replay, mode, step, before, vector, 0.1)
    assert all(parameter.grad is None for parameter in replay.parameters)
    assert torch.equal(flat(parameters_of(replay)), flat(before))
    assert torch.equal(flat(vector), flat(copies))


def dropping_step() -> StepRecord:
    """A step whose forward pass drew random numbers from a logged state."""
    torch.manual_seed(11)
    return whole_step(DROPPING.vocab, rng_state(CPU))


@every_attention
def test_the_hessian_drops_what_the_run_dropped(attention: str) -> None:
    replay, step = build_replay(DROPPING, attention), dropping_step()
    vector, here, distance = random_vector(replay, 0), parameters_of(replay), 1e-6
    ahead, behind = (
        flat(replay.gradient(step, [p + sign * distance * v for p, v in zip(here, vector, strict=True)]))
        for sign in (1, -1)
    )
    product = flat(curvature_product(replay, HessianMode.EXACT, step, here, vector, 0.0))
    assert_close(product, (ahead - behind) / (2 * distance), tolerance=1e-6)


@every_attention
def test_both_passes_of_the_ggn_drop_the_same(attention: str) -> None:
    replay, step = build_replay(DROPPING, attention), dropping_step()
    left, right = random_vector(replay, 1), random_vector(replay, 2)
    products = [multiply(replay, HessianMode.GGN, step, vector) for vector in (left, right)]
    assert float(flat(right) @ products[0]) == pytest.approx(float(flat(left) @ products[1]), rel=TOLERANCE)
    without = multiply(replay, HessianMode.GGN, whole_step(DROPPING.vocab, rng_state(CPU)), left)
    assert (products[0] - without).norm() > 0.1 * without.norm()


@every_mode
@every_attention
def test_prediction_without_deviation_is_the_runs_gradient_under_dropout(attention: str, mode: HessianMode) -> None:
    replay, step = build_replay(DROPPING, attention), dropping_step()
    nothing = [torch.zeros_like(parameter) for parameter in replay.parameters]
    predicted = predicted_gradient(replay, mode, step, parameters_of(replay), nothing, 0.1)
    assert_close(flat(predicted), flat(replay.gradient(step, parameters_of(replay))))


@every_mode
def test_a_parameter_that_the_loss_does_not_reach_has_no_gradient_in_any_mode(mode: HessianMode) -> None:
    model = build_model(ONE_LAYER, "sdpa")
    model.unreached = nn.Parameter(torch.ones(3, dtype=torch.float64))
    replay = ReplayModel(model, describe(model), CPU)
    step, here = whole_step(ONE_LAYER.vocab), parameters_of(replay)
    expected = [part is None for part in replay.gradient(step, here)]
    predicted = predicted_gradient(replay, mode, step, here, random_vector(replay, 1), 0.0)
    assert expected.count(True) == 1
    assert [part is None for part in predicted] == expected  # a zero would let AdamW decay what the run left alone
