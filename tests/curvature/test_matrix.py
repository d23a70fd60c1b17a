"""The public curvature matrix equals dense ones in float64, and keeps the laws of its kind."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from transformers import GPT2Config, GPT2LMHeadModel

from lmcleaner import Curvature, DivergedError, HessianMode, NotFoundError, UsageError
from lmcleaner.curvature import estimates
from lmcleaner.curvature.linearized import OPERATORS, curvature_product
from lmcleaner.formats.samples import IGNORED_LABEL
from lmcleaner.training.numerics import is_flushing_denormals, restored_numerics
from tiny_runs import TinyRun, record_tiny, write_base_model

MODES = [mode.value for mode in OPERATORS]
SEMIDEFINITE = ["GGN", "empirical_fisher"]
VOCABULARY = 9
every_mode = pytest.mark.parametrize("mode", MODES)

# Axes: batch = rows, seq = tokens of a padded row, target = counted tokens, p = parameters.


def float64_loss(logits: Tensor, labels: Tensor, vocab_size: int, num_items_in_batch: Tensor, **_: object) -> Tensor:
    """The loss of transformers, which would round logits to float32."""
    shifted = nn.functional.cross_entropy(
        logits[:, :-1].reshape(-1, vocab_size), labels[:, 1:].flatten(), reduction="sum"
    )
    return shifted / num_items_in_batch


@cache
def make_model() -> Any:
    """A GPT-2 of 378 parameters in float64, in which no weight is special."""
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=6, n_embd=6, n_layer=1, n_head=2, n_inner=6, bos_token_id=None,
        eos_token_id=None,
    )  # fmt: skip
    config._attn_implementation = "eager"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = GPT2LMHeadModel(config).double().eval()
    model.loss_function = float64_loss
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.4 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def make_batches() -> list[dict[str, Tensor]]:
    """Two batches of two rows with 3, 2, 4 and 1 targets, padded at the right."""
    tokens = torch.randint(1, VOCABULARY, (4, 6), generator=torch.Generator().manual_seed(1))
    lengths, prompts = torch.tensor([5, 4, 6, 3]), torch.tensor([2, 2, 2, 2])
    places = torch.arange(6)
    mask = places < lengths[:, None]
    counted = mask & (places >= prompts[:, None])
    labels = tokens.where(counted, torch.tensor(IGNORED_LABEL))
    inputs = {"input_ids": tokens * mask, "labels": labels, "attention_mask": mask.long()}
    return [{name: value[rows] for name, value in inputs.items()} for rows in (slice(0, 2), slice(2, 4))]


@cache
def dense(mode: str) -> Tensor:
    """The matrix, row by row of text, without padding, batches or our own code; `[p, p]`."""
    model = make_model()
    named = dict(model.named_parameters())
    sizes = [parameter.numel() for parameter in named.values()]

    def row_losses(vector: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of each row, and the logits of all targets `[target, vocab]`."""
        parts = zip(named, vector.split(sizes), strict=True)
        values = {name: part.view(named[name].shape) for name, part in parts}
        losses, logits = [], []
        for batch in make_batches():
            for tokens, labels, mask in zip(*batch.values(), strict=True):
                length = int(mask.sum())
                output = functional_call(model, values, (), {"input_ids": tokens[None, :length], "use_cache": False})
                is_target = labels[1:length] != IGNORED_LABEL
                logits.append(output.logits[0, :-1][is_target])
                losses.append(nn.functional.cross_entropy(logits[-1], labels[1:length][is_target], reduction="sum"))
        return torch.stack(losses), torch.cat(logits)

    point = torch.cat([parameter.detach().reshape(-1) for parameter in named.values()])
    outputs = row_losses(point)[1].softmax(dim=-1)
    count = len(outputs)
    if mode == "exact":
        hessian: Tensor = torch.autograd.functional.hessian(
            lambda v: row_losses(v)[0].sum() / count, point, vectorize=True
        )
        return hessian
    index = 0 if mode == "empirical_fisher" else 1
    found: Tensor = torch.autograd.functional.jacobian(lambda v: row_losses(v)[index], point, vectorize=True)
    jacobian = found.reshape(-1, len(point))
    if mode == "empirical_fisher":
        return jacobian.T @ jacobian / count
    blocks = torch.block_diag(*(torch.diag(p) - torch.outer(p, p) for p in outputs))
    ggn: Tensor = jacobian.T @ blocks @ jacobian / count
    return ggn


@cache
def operator(mode: str, damping: float = 0.0) -> Curvature:
    return Curvature.of_model(make_model(), mode, make_batches(), damping=damping)


def of_rows(tokens: Any, labels: Any) -> Curvature:
    return Curvature.of_model(
        make_model(), "GGN", [{"input_ids": torch.tensor(tokens), "labels": torch.tensor(labels)}]
    )


def vector_of(curvature: Curvature, seed: int = 0, columns: int | None = None) -> Tensor:
    shape = curvature.shape[:1] if columns is None else (curvature.shape[0], columns)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=curvature.dtype)


def assert_close(found: Tensor, expected: Tensor, tolerance: float = 1e-8) -> None:
    assert (found - expected).norm() <= tolerance * expected.norm()


@every_mode
def test_the_matrix_is_the_dense_one(mode: str) -> None:
    curvature = operator(mode)
    assert curvature.shape == dense(mode).shape
    vectors = vector_of(curvature, columns=20)
    assert_close(curvature @ vectors, dense(mode) @ vectors)


@every_mode
def test_a_vector_columns_and_a_list_of_tensors_give_the_same(mode: str) -> None:
    curvature = operator(mode)
    vectors = vector_of(curvature, columns=3)
    expected = dense(mode) @ vectors
    assert_close(curvature @ vectors, expected)
    assert torch.equal(curvature @ vectors[:, 1], (curvature @ vectors)[:, 1])
    parameters = list(make_model().parameters())
    parts = vectors[:, 0].split([parameter.numel() for parameter in parameters])
    product = curvature @ [part.view(like.shape) for part, like in zip(parts, parameters, strict=True)]
    assert [part.shape for part in product] == [parameter.shape for parameter in parameters]
    assert torch.equal(torch.cat([part.reshape(-1) for part in product]), curvature @ vectors[:, 0])
    assert (curvature @ vectors[:, :0]).shape == (curvature.shape[0], 0)


@every_mode
def test_damping_adds_itself_times_the_identity(mode: str) -> None:
    vector = vector_of(operator(mode))
    assert_close(operator(mode, 0.5) @ vector, dense(mode) @ vector + 0.5 * vector)


seeds = st.integers(0, 1000)
laws = settings(deadline=None, max_examples=15)


@every_mode
@laws
@given(seeds, st.integers(-100, 100), st.integers(-100, 100))
def test_products_are_linear(mode: str, seed: int, a: int, b: int) -> None:
    curvature = operator(mode)
    left, right = vector_of(curvature, seed), vector_of(curvature, seed + 1)
    images = curvature @ left, curvature @ right
    error = curvature @ (a * left + b * right) - (a * images[0] + b * images[1])
    assert error.norm() <= 1e-10 * (abs(a) * images[0].norm() + abs(b) * images[1].norm())


@every_mode
@laws
@given(seeds)
def test_the_matrix_is_symmetric(mode: str, seed: int) -> None:
    curvature = operator(mode)
    left, right = vector_of(curvature, seed), vector_of(curvature, seed + 1)
    assert float(left @ (curvature @ right)) == pytest.approx(float(right @ (curvature.T @ left)), rel=1e-8, abs=1e-10)


@pytest.mark.parametrize("mode", SEMIDEFINITE)
@laws
@given(seeds)
def test_the_ggn_and_the_fisher_curve_down_along_no_direction(mode: str, seed: int) -> None:
    curvature = operator(mode)
    vector = vector_of(curvature, seed)
    assert float(vector @ (curvature @ vector)) >= 0


@every_mode
def test_nothing_times_the_matrix_is_nothing(mode: str) -> None:
    assert not (operator(mode) @ torch.zeros(operator(mode).shape[0], dtype=torch.float64)).any()


@every_mode
def test_batches_are_a_mean_over_all_counted_tokens(mode: str) -> None:
    """So twice the same rows are the same matrix, and one batch's share is that of its tokens."""
    curvature, batches = operator(mode), make_batches()
    vector = vector_of(curvature)
    assert_close(Curvature.of_model(make_model(), mode, batches * 2) @ vector, curvature @ vector)
    shares = [Curvature.of_model(make_model(), mode, [batch]) @ vector for batch in batches]
    assert_close(0.5 * shares[0] + 0.5 * shares[1], curvature @ vector)  # 3 + 2 and 4 + 1 targets


@every_mode
def test_a_frozen_parameter_is_no_part_of_the_matrix(mode: str) -> None:
    model = make_model()
    frozen = model.transformer.wte.weight
    frozen.requires_grad_(False)
    try:
        curvature = Curvature.of_model(model, mode, make_batches())
        vector = vector_of(curvature)
        product = curvature @ vector
    finally:
        frozen.requires_grad_()
    assert_close(product, dense(mode)[frozen.numel() :, frozen.numel() :] @ vector)  # the first parameter


def test_a_models_operator_follows_its_parameters_and_leaves_it_as_it_was() -> None:
    curvature, model = operator("GGN"), make_model()
    vector, weight = vector_of(curvature), model.transformer.h[0].mlp.c_fc.weight
    before = curvature @ vector
    with torch.no_grad():
        weight.mul_(2)
        moved = curvature @ vector
        weight.mul_(0.5)
    assert not torch.allclose(moved, before)
    assert torch.equal(curvature @ vector, before)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.training
    assert model.config._attn_implementation == "eager"


def test_a_model_that_draws_random_numbers_is_refused_before_and_after() -> None:
    model, curvature = make_model(), operator("GGN")
    model.train()
    try:
        with pytest.raises(UsageError, match="training mode") as caught:
            Curvature.of_model(model, "GGN", make_batches())
        with pytest.raises(UsageError, match="training mode"):
            curvature @ vector_of(curvature)
    finally:
        model.eval()
    assert caught.value.hint == "call model.eval() before"


def test_a_product_that_is_not_finite_is_an_error() -> None:
    curvature, model = operator("GGN"), make_model()
    weight = model.transformer.h[0].mlp.c_fc.weight
    before = weight.detach().clone()
    with torch.no_grad():
        weight[0, 0] = torch.nan
        try:
            with pytest.raises(DivergedError, match="expected finite numbers"):
                curvature @ vector_of(curvature)
        finally:
            weight.copy_(before)


class Doubled(torch.autograd.Function):
    """A function without a forward derivative, as some models bring."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, *vectors: Tensor) -> Tensor:
        return 2 * vectors[0]


@every_mode
def test_a_function_that_cant_be_differentiated_twice_is_an_error(mode: str) -> None:
    curvature, norm = operator(mode), make_model().transformer.ln_f
    hook = norm.register_forward_hook(lambda *call: Doubled.apply(call[-1]))  # type: ignore[no-untyped-call]
    try:
        with pytest.raises(UsageError, match="GPT2LMHeadModel: You must implement the jvp function") as caught:
            curvature @ vector_of(curvature)
    finally:
        hook.remove()
    assert caught.value.hint is not None
    assert "secant" in caught.value.hint


def test_the_diagonal_is_found_within_hutchinsons_error() -> None:
    curvature, probes = operator("GGN", 0.5), 100
    matrix = dense("GGN") + 0.5 * torch.eye(curvature.shape[0], dtype=torch.float64)
    deviation = ((matrix**2).sum(dim=1) - matrix.diagonal() ** 2).div(probes).sqrt()
    found = curvature.diagonal(probes)
    assert ((found - matrix.diagonal()).abs() <= 5 * deviation + 1e-12).all()
    assert torch.equal(curvature.diagonal(2, seed=1), curvature.diagonal(2, seed=1))
    assert not torch.equal(curvature.diagonal(2, seed=1), curvature.diagonal(2, seed=2))


@pytest.mark.parametrize("mode", SEMIDEFINITE)
def test_the_largest_eigenpairs_are_the_dense_ones(mode: str) -> None:
    values, vectors = operator(mode).top_eigenpairs(4)
    assert torch.allclose(values, torch.linalg.eigvalsh(dense(mode)).flip(0)[:4], rtol=1e-3)
    assert torch.allclose(vectors.T @ vectors, torch.eye(4, dtype=torch.float64), atol=1e-10)
    assert_close(operator(mode) @ vectors[:, :1], values[:1] * vectors[:, :1], tolerance=1e-4)


def test_more_products_bring_the_pairs_of_an_indefinite_matrix_near() -> None:
    """The largest eigenvalues of a Hessian lie close together, so that 2·rank + 1 products tell the first alone."""
    curvature, rank = operator("exact"), 5
    true = torch.linalg.eigvalsh(dense("exact")).flip(0)[:rank]
    off = []
    for products in (None, 60):
        values, vectors = curvature.top_eigenpairs(rank, products=products)
        assert (values <= true + 1e-9).all()
        off.append(float((curvature @ vectors - vectors * values).norm(dim=0).max()))
    assert torch.allclose(values, true, rtol=1e-3)
    assert off[1] < 0.1 * off[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Curvature.of_model(make_model(), "secant", make_batches()), "'empirical_fisher'], found 'secant'"),
        (lambda: Curvature.of_model(make_model(), "GGN", iter(make_batches())), "found an iterator"),
        (lambda: Curvature.of_model(make_model(), "GGN", []), "tokens with a label, found none"),
        (lambda: Curvature.of_model(make_model(), "GGN", [{"input_ids": torch.ones(1, 2)}]), "found .'input_ids'"),
        (
            lambda: of_rows([[1, 2]], [[1]]),
            "expected one shape, .batch, seq., found .'input_ids': .1, 2., 'labels': .1, 1.",
        ),
        (lambda: of_rows([1, 2], [1, 2]), "expected one shape, .batch, seq., found"),
        (lambda: of_rows([[1, 2]], [[1, 999]]), "labels: expected tokens from 0 to .*, found 999"),
        (lambda: of_rows([[1, -1]], [[1, 2]]), "input_ids: expected tokens from 0 to .*, found -1"),
        (lambda: Curvature.of_model(make_model(), "GGN", make_batches(), damping=-1.0), "damping: expected at least 0"),
        (lambda: operator("GGN") @ torch.ones(3, dtype=torch.float64), "expected .* with columns, found .3"),
        (lambda: operator("GGN") @ torch.ones(operator("GGN").shape[0]), "float64 on cpu, found .* torch.float32"),
        (lambda: operator("GGN") @ list(make_model().parameters())[1:], "tensors, one for each parameter, found"),
        (lambda: operator("GGN") @ make_model().state_dict(), "one for each parameter, found a OrderedDict"),
        (lambda: operator("GGN") @ cast("Tensor", np.ones(3)), "one for each parameter, found a ndarray"),
        (lambda: operator("GGN") @ cast("list[Tensor]", [*range(16)]), "expected .* torch.float64 on cpu, found a int"),
        (lambda: operator("GGN").diagonal(0), "probes: expected at least 1"),
        (lambda: operator("GGN").top_eigenpairs(0), "rank: expected 1 to"),
        (lambda: operator("GGN").top_eigenpairs(100_000), "rank: expected 1 to"),
        (lambda: operator("GGN").top_eigenpairs(3, products=2), "products: expected at least the rank, 3, found 2"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()


def test_a_rank_whose_vectors_fit_into_no_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the memory of a machine that holds ten vectors."""
    monkeypatch.setattr(estimates, "memory_bytes", lambda device: 10 * 4 * 1000)
    estimates.check_rank(3, 1000, torch.device("cpu"))
    with pytest.raises(UsageError, match="expected at most 3, whose vectors fit"):
        estimates.check_rank(4, 1000, torch.device("cpu"))


# Of a log: the products of a step are tested against dense matrices beside this file, so here the step's own serve.


def step_product(run: TinyRun, mode: str, step: int, at: Sequence[Tensor], vector: Tensor, **options: Any) -> Tensor:
    log, replay = run.open(), run.replay_model()
    parts = vector.split([entry.num_elements for entry in log.manifest.parameters])
    shaped = [part.reshape(like.shape).clone() for part, like in zip(parts, at, strict=True)]
    with restored_numerics(log.manifest.numerics):
        product = curvature_product(replay, HessianMode(mode), log.step(step), at, shaped, 0.0, **options)
    return torch.cat([part.reshape(-1) for part in product])


@pytest.fixture(scope="module")
def accumulating_run(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """Steps of three microbatches."""
    return record_tiny(base_model, tmp_path_factory.mktemp("accumulating"), grad_accum=3, num_rows=24)


@pytest.fixture(scope="module")
def dropping_run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    folder = tmp_path_factory.mktemp("dropping")
    return record_tiny(write_base_model(folder / "base", dropout=0.4), folder)


@every_mode
def test_a_logged_steps_matrix_is_the_one_that_a_sweep_multiplies_with(mode: str, adamw_run: TinyRun) -> None:
    curvature = Curvature.of_log(adamw_run.log, mode, 5)
    vector = vector_of(curvature)
    at = adamw_run.replay_model().load(adamw_run.open().parameters(5))
    assert torch.equal(curvature @ vector, step_product(adamw_run, mode, 5, at, vector))


@every_mode
def test_several_steps_are_a_mean_at_one_place(mode: str, adamw_run: TinyRun) -> None:
    log, replay = adamw_run.open(), adamw_run.replay_model()
    for at in (None, 9):
        curvature = Curvature.of_log(log, mode, range(4, 7), at=at)
        vector, place = vector_of(curvature), replay.load(log.parameters(at or 4))
        expected = sum(step_product(adamw_run, mode, step, place, vector) for step in (4, 5, 6)) / 3
        assert_close(curvature @ vector, torch.as_tensor(expected), tolerance=1e-5)


def test_parameters_of_ones_own_are_a_place_too(adamw_run: TinyRun) -> None:
    log = adamw_run.open()
    own = adamw_run.replay_model().load(log.parameters(9))
    curvature = Curvature.of_log(log, "GGN", 4, at=own)
    vector = vector_of(curvature)
    assert torch.equal(curvature @ vector, Curvature.of_log(log, "GGN", 4, at=9) @ vector)
    with pytest.raises(UsageError, match=r"tensor 0: expected .*float32 on cpu, found .*float64 on cpu"):
        Curvature.of_log(log, "GGN", 4, at=[part.double() for part in own])


@every_mode
def test_the_microbatches_of_a_step_add_up_to_it(mode: str, accumulating_run: TinyRun) -> None:
    log = accumulating_run.open()
    whole = Curvature.of_log(log, mode, 1)
    vector = vector_of(whole)
    parts = [Curvature.of_log(log, mode, 1, microbatches=[number]) @ vector for number in range(3)]
    assert_close(sum(parts[1:], parts[0]), whole @ vector, tolerance=1e-5)
    assert all(not torch.allclose(part, other) for part, other in pairwise(parts))
    both = Curvature.of_log(log, mode, 1, microbatches=[0, 2])
    assert_close(both @ vector, parts[0] + parts[2], tolerance=1e-5)


@every_mode
def test_forgotten_samples_are_left_out_by_the_beginning_of_their_digest(mode: str, adamw_run: TinyRun) -> None:
    log = adamw_run.open()
    digest = log.step(5).samples[1].digest
    curvature = Curvature.of_log(log, mode, 5, forgotten=[digest.hex()[:8]])
    vector, at = vector_of(curvature), adamw_run.replay_model().load(log.parameters(5))
    assert torch.equal(curvature @ vector, step_product(adamw_run, mode, 5, at, vector, forgotten={digest}))
    assert not torch.allclose(curvature @ vector, Curvature.of_log(log, mode, 5) @ vector)


@every_mode
def test_a_log_with_dropout_gives_a_symmetric_matrix_and_leaves_the_generators_alone(
    mode: str, dropping_run: TinyRun
) -> None:
    curvature = Curvature.of_log(dropping_run.log, mode, 3)
    left, right = vector_of(curvature, 1), vector_of(curvature, 2)
    before = torch.get_rng_state()
    image = curvature @ right
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(curvature @ right, image)
    assert float(left @ image) == pytest.approx(float(right @ (curvature @ left)), rel=1e-3, abs=1e-3)


@pytest.fixture
def _other_numerics() -> Iterator[None]:
    """Unlike those of the run."""
    torch.set_num_threads(2)
    torch.set_flush_denormal(False)
    yield
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)


@pytest.mark.usefixtures("_other_numerics")
def test_a_product_has_the_runs_numerics_and_gives_back_those_of_the_process(
    adamw_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    curvature = Curvature.of_log(adamw_run.log, "GGN", 3)
    seen: list[tuple[int, bool]] = []
    batches = curvature._source.batches

    def watching() -> Any:
        seen.append((torch.get_num_threads(), is_flushing_denormals()))
        return batches()

    monkeypatch.setattr(curvature, "_source", replace(curvature._source, batches=watching))
    with torch.no_grad():
        _ = curvature @ vector_of(curvature)
    assert seen == [(1, True)]
    assert (torch.get_num_threads(), is_flushing_denormals()) == (2, False)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"steps": []}, UsageError, "one step and one microbatch at least"),
        ({"steps": 10}, NotFoundError, "expected 0 to 9, found 10"),
        ({"steps": 1, "microbatches": [1]}, NotFoundError, "no such microbatch: step 1: expected 0 to 0, found 1"),
        ({"steps": 1, "microbatches": []}, UsageError, "one step and one microbatch at least"),
        ({"steps": 1, "at": 11}, NotFoundError, "expected 0 to 10, found 11"),
        ({"steps": 1, "forgotten": ["abc"]}, UsageError, "not a sample digest"),
        ({"steps": 1, "forgotten": ["00000000"]}, NotFoundError, "the run never saw this: sample 00000000"),
        ({"steps": 1, "model": "/nowhere"}, NotFoundError, "no such model"),
    ],
)
def test_what_a_log_does_not_hold_is_refused(
    options: dict[str, Any], kind: type[Exception], message: str, adamw_run: TinyRun
) -> None:
    with pytest.raises(kind, match=message):
        Curvature.of_log(adamw_run.log, "GGN", **options)
