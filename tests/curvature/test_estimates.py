"""Estimated diagonals and eigenpairs against those of dense matrices."""

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lmcleaner.curvature.estimates import LowRank, estimate_diagonal, estimate_low_rank

SHAPES = [(3, 4), (5,), (2, 1, 2)]
SIZE = 21
LIKE = [torch.zeros(shape, dtype=torch.float64) for shape in SHAPES]


def flat(vector: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.reshape(-1) for part in vector])


def shaped(vector: Tensor) -> list[Tensor]:
    parts = vector.split([part.numel() for part in LIKE])
    return [part.view(like.shape) for part, like in zip(parts, LIKE, strict=True)]


def product_with(matrix: Tensor) -> Callable[[Sequence[Tensor]], list[Tensor]]:
    return lambda vector: shaped(matrix @ flat(vector))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def semidefinite(rank: int, seed: int = 0) -> Tensor:
    factor = torch.randn(SIZE, rank, generator=seeded(seed), dtype=torch.float64)
    return factor @ torch.diag(0.5 ** torch.arange(rank, dtype=torch.float64)) @ factor.T


def test_a_diagonal_matrix_is_found_by_one_probe() -> None:
    entries = torch.arange(SIZE, dtype=torch.float64) - 3
    found = estimate_diagonal(product_with(torch.diag(entries)), LIKE, 1, seeded())
    assert torch.allclose(flat(found.entries), entries)
    assert found.trace == pytest.approx(float(entries.sum()))
    vector = torch.randn(SIZE, generator=seeded(1), dtype=torch.float64)
    assert torch.allclose(flat(found @ shaped(vector)), entries * vector)


def test_the_error_of_a_diagonal_is_the_one_of_hutchinson() -> None:
    """Variance of an entry: the sum of the squares beside it, over the number of probes."""
    matrix, probes = semidefinite(8), 4000
    found = flat(estimate_diagonal(product_with(matrix), LIKE, probes, seeded()).entries)
    deviation = ((matrix**2).sum(dim=1) - matrix.diagonal() ** 2).div(probes).sqrt()
    in_deviations = (found - matrix.diagonal()) / deviation
    assert in_deviations.abs().max() < 4
    assert 0.5 < in_deviations.square().mean() < 2


@pytest.mark.parametrize("rank", [1, 3, 10])
def test_all_eigenpairs_of_a_matrix_of_that_rank_are_found(rank: int) -> None:
    matrix = semidefinite(rank)
    found = estimate_low_rank(product_with(matrix), LIKE, rank, 4, seeded())
    expected = torch.linalg.eigvalsh(matrix).flip(0)[:rank]
    assert torch.allclose(found.values, expected, rtol=1e-8)
    assert torch.allclose(found.vectors @ found.vectors.T, torch.eye(rank, dtype=torch.float64), atol=1e-10)
    vector = torch.randn(SIZE, generator=seeded(1), dtype=torch.float64)
    assert torch.allclose(flat(found @ shaped(vector)), matrix @ vector, rtol=1e-7, atol=1e-9)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 12), st.integers(1, SIZE), st.integers(0, 1000))
def test_ritz_values_never_exceed_the_eigenvalues(rank: int, of_matrix: int, seed: int) -> None:
    matrix = semidefinite(of_matrix, seed)
    found = estimate_low_rank(product_with(matrix), LIKE, rank, 4, seeded(seed))
    largest = torch.linalg.eigvalsh(matrix).flip(0)
    assert len(found.values) <= rank
    assert bool((found.values <= largest[: len(found.values)] + 1e-9 * largest[0]).all())
    if 2 * rank + 1 > of_matrix:  # the basis spans all that the matrix reaches
        assert float(found.values[0]) == pytest.approx(float(largest[0]))


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_the_captured_share_of_the_trace_is_that_of_the_dense_matrix(rank: int) -> None:
    """The trace is exact as soon as the basis spans the matrix, and unbiased before."""
    matrix = semidefinite(8)
    shares = [estimate_low_rank(product_with(matrix), LIKE, rank, 4, seeded(seed)).captured for seed in range(200)]
    values = torch.linalg.eigvalsh(matrix).flip(0)
    expected = float(values[:rank].sum() / values.sum())
    assert all(0 < share <= 1 + 1e-12 for share in shares)
    traces = [estimate_low_rank(product_with(matrix), LIKE, rank, 4, seeded(seed)).trace for seed in range(200)]
    spread = torch.tensor(traces, dtype=torch.float64)
    assert float(spread.mean()) == pytest.approx(float(values.sum()), abs=4 * float(spread.std()) / 200**0.5 + 1e-9)
    if 2 * rank + 1 >= 8:
        assert shares == pytest.approx([expected] * 200)


def test_a_matrix_of_zeros_has_no_curvature() -> None:
    found = estimate_low_rank(product_with(torch.zeros(SIZE, SIZE, dtype=torch.float64)), LIKE, 5, 4, seeded())
    assert bool((flat(found @ shaped(torch.ones(SIZE, dtype=torch.float64))) == 0).all())
    assert (found.trace, found.captured) == (0, 1)


def test_the_product_keeps_a_vectors_dtypes() -> None:
    estimate = LowRank(torch.ones(1), torch.ones(1, SIZE), 2.0)
    assert {part.dtype for part in estimate @ [part.bfloat16() for part in LIKE]} == {torch.bfloat16}
