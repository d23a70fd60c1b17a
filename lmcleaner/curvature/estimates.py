"""Curvature that is written down: a diagonal, or a few eigenpairs, estimated from products with the full matrix."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lmcleaner.formats.errors import UsageError
from lmcleaner.training.numerics import memory_bytes

Vector = Sequence[Tensor]
Product = Callable[[Vector], Vector]


class Estimate(ABC):
    """A symmetric matrix over the parameters; `estimate @ vector` is its product with one tensor for each parameter."""

    @property
    @abstractmethod
    def trace(self) -> float:
        """Estimated trace of the matrix that it is an estimate of."""

    @property
    def captured(self) -> float | None:
        """Which share of that trace is its own; None where that says nothing, as of a diagonal."""
        return None

    @abstractmethod
    def __matmul__(self, vector: Vector) -> list[Tensor]:
        """The product, with the shapes and dtypes of the vector."""


@dataclass(frozen=True)
class Diagonal(Estimate):
    """A matrix with nothing beside its diagonal.

    Attributes:
        entries: the diagonal, one tensor for each parameter, in float32 at least.
    """

    entries: Vector

    def __matmul__(self, vector: Vector) -> list[Tensor]:
        """O(p)."""
        return [(entry * part).to(part.dtype) for entry, part in zip(self.entries, vector, strict=True)]

    @property
    def trace(self) -> float:
        """Sum of the diagonal."""
        return sum(float(entry.sum(dtype=torch.float64)) for entry in self.entries)


@dataclass(frozen=True)
class LowRank(Estimate):
    """UᵀΛU.

    Attributes:
        values: Λ, the eigenvalues `[rank]`, largest first.
        vectors: U, orthonormal rows `[rank, p]`.
        whole_trace: estimated trace of the matrix that they are eigenpairs of.
    """

    values: Tensor
    vectors: Tensor
    whole_trace: float

    def __matmul__(self, vector: Vector) -> list[Tensor]:
        """O(rank·p)."""
        return _like(torch.mv(self.vectors.T, self.values * torch.mv(self.vectors, _flat(vector))), vector)

    @property
    def trace(self) -> float:
        """Of the whole matrix."""
        return self.whole_trace

    @property
    def captured(self) -> float:
        """Sum of the eigenvalues / trace; 1 of a matrix of zeros."""
        return float(self.values.sum(dtype=torch.float64)) / self.whole_trace if self.whole_trace else 1.0


def estimate_diagonal(product: Product, like: Vector, probes: int, generator: torch.Generator) -> Diagonal:
    """Hutchinson's estimate of a diagonal: the mean of z∘(C·z) over random signs z.

    Unbiased; an entry's variance is the sum of the squares beside it in its row, divided by the number of probes
    (Hutchinson, "A Stochastic Estimator of the Trace of the Influence Matrix", 1989; Bekas, Kokiopoulou & Saad, "An
    Estimator for the Diagonal of a Matrix", 2007).

    Args:
        product: C·v.
        like: tensors of the parameters' shapes, dtypes and device.
        probes: number of signs.
        generator: where they come from; on the CPU.

    Returns:
        The estimate.
    """
    entries = [torch.zeros_like(part, dtype=_wide(part.dtype)) for part in like]
    for _ in range(probes):
        signs = [_random(part, generator).sign_() for part in like]
        for entry, sign, image in zip(entries, signs, product(signs), strict=True):
            entry.addcmul_(sign, image, value=1 / probes)
    return Diagonal(entries)


def estimate_low_rank(
    product: Product, like: Vector, rank: int, probes: int, generator: torch.Generator, products: int | None = None
) -> LowRank:
    """The largest eigenpairs, by Lanczos' iteration with full reorthogonalization, and the trace.

    Twice as many products as pairs, and one, if no other number is given: Ritz values lie below the eigenvalues and
    come near the largest first (Golub & Van Loan, "Matrix Computations", §10.1 and §10.3). The trace within the basis
    is known then; the rest is Hutchinson's mean of z·C·z over random signs z without their part in the basis (Meyer,
    Musco, Musco & Woodruff, "Hutch++: Optimal Stochastic Trace Estimation", 2021), so that of a semidefinite C it is
    never less than the pairs'.

    Args:
        product: C·v with a symmetric C.
        like: tensors of the parameters' shapes, dtypes and device.
        rank: number of pairs; fewer come back where C has no more.
        probes: number of signs, a product each, for the trace; with none it is that within the basis.
        generator: of the first vector and the signs; on the CPU.
        products: for the pairs, at most; None takes 2·rank + 1.

    Returns:
        Ritz values and vectors, in float32 at least; a parameter vector for each product is held meanwhile.
    """
    first = _flat([_random(part, generator) for part in like])
    most = min(products or 2 * rank + 1, len(first))
    basis = first.new_empty(most, len(first))
    basis[0] = first / first.norm()
    diagonal, beside = list[float](), list[float]()
    for size in range(1, most + 1):
        image = _flat(product(_like(basis[size - 1], like)))
        diagonal.append(float(image @ basis[size - 1]))
        for _ in range(2):  # once leaves what rounding made of it
            image = image - basis[:size].T @ (basis[:size] @ image)
        beside.append(float(image.norm()))
        if size == most or beside[-1] <= torch.finfo(image.dtype).eps * max(map(abs, diagonal)):
            break  # or the basis spans all that the products reach
        basis[size] = image / beside[-1]
    off_diagonal = torch.diag(torch.tensor(beside[:-1], dtype=torch.float64), 1)
    values, small = torch.linalg.eigh(
        torch.diag(torch.tensor(diagonal, dtype=torch.float64)) + off_diagonal + off_diagonal.T
    )
    trace = sum(diagonal) + _trace_beside(product, like, basis[:size], probes, generator)
    return LowRank(values[-rank:].flip(0).to(first), small[:, -rank:].flip(1).to(first).T @ basis[:size], trace)


def _trace_beside(product: Product, like: Vector, basis: Tensor, probes: int, generator: torch.Generator) -> float:
    """Trace of (I - QᵀQ)·C·(I - QᵀQ) for orthonormal rows Q."""
    total = 0.0
    for _ in range(probes):
        signs = _flat([_random(part, generator).sign_() for part in like])
        beside = signs - basis.T @ (basis @ signs)
        total += float(beside @ _flat(product(_like(beside, like)))) / probes
    return total


def check_rank(rank: int, num_elements: int, device: torch.device, option: str = "--rank") -> None:
    """Refuses a rank that no matrix over the parameters has, or whose estimate can't fit into memory.

    Args:
        rank: number of pairs.
        num_elements: p.
        device: where the estimate shall lie.
        option: what asked for it, for messages.

    Raises:
        UsageError: the rank is out of its range.
    """
    if not 1 <= rank <= num_elements:
        raise UsageError(f"{option}: expected 1 to {num_elements}, the number of parameters, found {rank}")
    vector_bytes = 4 * num_elements  # float32
    needed, there = (3 * rank + 1) * vector_bytes, memory_bytes(device)
    if needed > there:
        raise UsageError(
            f"{option}: expected at most {max(0, (there // vector_bytes - 1) // 3)}, whose vectors fit into the "
            f"{there / 1e9:.1f} GB of memory here, found {rank}, which takes {needed / 1e9:.1f} GB"
        )


def _random(part: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(part.shape, generator=generator).to(part)


def _flat(vector: Vector) -> Tensor:
    """`[p]`, in float32 at least."""
    flat = torch.cat([part.reshape(-1) for part in vector])
    return flat.to(_wide(flat.dtype))


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype, or float32 where it is narrower."""
    return torch.promote_types(dtype, torch.float32)


def _like(flat: Tensor, vector: Vector) -> list[Tensor]:
    """One tensor for each parameter, with the shapes and dtypes of a vector."""
    parts = flat.split([part.numel() for part in vector])
    return [part.view(like.shape).to(like.dtype) for part, like in zip(parts, vector, strict=True)]
