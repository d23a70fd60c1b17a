"""The curvature of logged steps, or of a model's own batches, as a matrix that is never written down.

One operator multiplies flat vectors, matrices and lists of tensors alike, as those of curvlinops do (Dangel et al.,
"Position: Curvature Matrices Should Be Democratized via Linear Operators", 2025), whose interface this one follows.

Axes: p = elements of all trained parameters, one tensor after the other; columns = vectors to multiply with.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self, overload

import torch
from torch import Tensor, nn

from lmcleaner.choices import HessianMode
from lmcleaner.curvature.estimates import check_rank, estimate_diagonal, estimate_low_rank
from lmcleaner.curvature.linearized import OPERATORS, add_product
from lmcleaner.curvature.source import Batch, Source, check_like, logged_source, model_source
from lmcleaner.formats.digests import find_digests
from lmcleaner.formats.errors import DivergedError, UsageError
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.store import Store
from lmcleaner.training.numerics import restored_numerics
from lmcleaner.training.replay import open_replay


class Curvature:
    """A symmetric matrix C + λI over the trained parameters; `curvature @ vector` is its product.

    Made by `of_log` or `of_model`. A product costs one forward derivative and one backward pass over all rows, holds a
    few parameter vectors, and computes with the threads, denormals and determinism of the run; afterwards the process
    has its own again, and its random number generators as they were.

    Attributes:
        shape: `(p, p)`.
        dtype: of the parameters, and of every vector.
        device: where it computes, and where every vector must lie.
    """

    def __init__(self, source: Source, mode: HessianMode | str, damping: float) -> None:
        """Holds what a product needs.

        Args:
            source: rows, model and parameters.
            mode: as in `of_log`.
            damping: λ.

        Raises:
            UsageError: no such mode, or the damping is negative or not finite.
        """
        found = next((known for known in OPERATORS if known == mode), None)
        if found is None:
            names = [known.value for known in OPERATORS]
            raise UsageError(f"no mode with a curvature matrix: expected one of {names}, found {mode!r}")
        if not 0 <= damping < float("inf"):
            raise UsageError(f"damping: expected at least 0, found {damping}")
        self._source, self._mode, self._damping = source, found, damping
        num_elements = sum(parameter.numel() for parameter in source.parameters)
        self.shape = num_elements, num_elements
        self.dtype, self.device = source.parameters[0].dtype, source.parameters[0].device

    @classmethod
    def of_log(
        cls,
        log: TrainingLog | Store | Path | str,
        mode: HessianMode | str,
        steps: int | Iterable[int],
        *,
        microbatches: Sequence[int] | None = None,
        at: int | Sequence[Tensor] | None = None,
        forgotten: Iterable[str] = (),
        damping: float = 0.0,
        model: str | None = None,
        device: str | None = None,
    ) -> Self:
        """The mean curvature of logged steps, each that of the loss that the run took the gradient of.

        Args:
            log: the training log, or where it lies.
            mode: "exact", the Hessian; "GGN", the generalized Gauss-Newton matrix; "empirical_fisher", the rows' own
                Fisher matrix.
            steps: one step, or several, over which the mean is taken.
            microbatches: which of each step's microbatches; their curvatures add up to the step's. None takes all.
            at: where to evaluate: at θ before this step, or at one tensor for each parameter. None takes θ before the
                first of the steps.
            forgotten: digests of samples to leave out, or their first 8 digits and more. What the loss is divided by
                stays as logged.
            damping: λ.
            model: where the base model lies now, if it moved.
            device: where to compute, "cpu", "cuda" or "cuda:N"; None is the run's type of device, if it is there.

        Returns:
            The operator, with a model of its own.

        Raises:
            UsageError: no such mode, no such device, no step, a digest that isn't one, or tensors unlike the
                parameters.
            NotFoundError: the log, the base model, a step, a microbatch or a sample isn't there.
            InsufficientLogError: the log doesn't hold θ there.
            MismatchError: the base model is not the log's.
            DamagedError: the log can't be read.
        """
        opened = log if isinstance(log, TrainingLog) else TrainingLog(log)
        numbers = (steps,) if isinstance(steps, int) else tuple(steps)
        digests = find_digests(opened, forgotten)
        replay = open_replay(opened.manifest, model, device)
        return cls(logged_source(opened, replay, numbers, microbatches, at, digests), mode, damping)

    @classmethod
    def of_model(
        cls, model: nn.Module, mode: HessianMode | str, batches: Iterable[Batch], *, damping: float = 0.0
    ) -> Self:
        """The curvature of a causal language model's mean loss over the counted tokens of some batches.

        Args:
            model: a transformers model in evaluation mode. It is evaluated at the parameters that it has when a product
                is computed; those that require no gradient are no part of the matrix.
            mode: as in `of_log`.
            batches: `input_ids`, `labels` and perhaps `attention_mask`, int64 `[batch, seq]`; a list, or a loader that
                gives the same rows at every pass.
            damping: λ.

        Returns:
            The operator; it computes with the model itself, and copies no parameter.

        Raises:
            UsageError: no such mode, a model in training mode or one that a log couldn't hold, or batches that can't be
                used.
        """
        return cls(model_source(model, batches), mode, damping)

    @property
    def T(self) -> Self:  # noqa: N802 -- torch's name
        """The matrix itself: it is symmetric."""
        return self

    @overload
    def __matmul__(self, vector: Tensor) -> Tensor: ...

    @overload
    def __matmul__(self, vector: Sequence[Tensor]) -> list[Tensor]: ...

    def __matmul__(self, vector: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
        """The product.

        Args:
            vector: `[p]`, `[p, columns]`, or one tensor for each parameter, of the operator's dtype and on its device.

        Returns:
            Of the vector's own shape, without a graph.

        Raises:
            UsageError: another shape, dtype or device, or a model without such derivatives.
            DivergedError: the product is not finite.
        """
        if not isinstance(vector, Tensor):
            check_like(vector, self._source.parameters)
            return self._product([part.detach() for part in vector])
        if vector.dim() not in {1, 2} or len(vector) != self.shape[1]:
            raise UsageError(
                f"a vector's shape: expected [{self.shape[1]}] or that with columns, found {[*vector.shape]}"
            )
        if vector.dim() == 1:
            return _flat(self @ self._parts(vector))
        product = torch.empty_like(vector)
        for column in range(vector.shape[1]):
            product[:, column] = self @ vector[:, column]
        return product

    def diagonal(self, probes: int, seed: int = 0) -> Tensor:
        """Hutchinson's estimate of the diagonal, unbiased: a product a probe.

        Args:
            probes: number of random signs; the error falls with its root.
            seed: of the signs.

        Returns:
            `[p]`.

        Raises:
            UsageError: less than one probe.
        """
        if probes < 1:
            raise UsageError(f"probes: expected at least 1, found {probes}")
        generator = torch.Generator().manual_seed(seed)
        return _flat(estimate_diagonal(self._product, self._source.parameters, probes, generator).entries)

    def top_eigenpairs(self, rank: int, seed: int = 0, products: int | None = None) -> tuple[Tensor, Tensor]:
        """The largest eigenvalues and their vectors, by Lanczos' iteration.

        The values lie below the eigenvalues, and the largest come near them first. With few products the last pairs are
        far off, those of an indefinite matrix most; `(self @ vectors - vectors * values).norm(dim=0)` says how far.

        Args:
            rank: number of pairs; fewer come back where the products reach no more.
            seed: of the first vector.
            products: at most, each of which keeps a vector; None takes 2·rank + 1.

        Returns:
            Values `[rank]`, the largest first, and orthonormal vectors `[p, rank]`, in float32 at least.

        Raises:
            UsageError: the rank is out of its range, there are fewer products than pairs, or the vectors don't fit into
                memory.
        """
        check_rank(rank, self.shape[0], self.device, "rank")
        if products is not None and products < rank:
            raise UsageError(f"products: expected at least the rank, {rank}, found {products}")
        generator = torch.Generator().manual_seed(seed)
        found = estimate_low_rank(self._product, self._source.parameters, rank, 0, generator, products)
        return found.values, found.vectors.T

    def _product(self, vector: Sequence[Tensor]) -> list[Tensor]:
        replay, total = self._source.replay, [torch.zeros_like(part) for part in vector]
        own_generators = torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else [])
        with restored_numerics(replay.manifest.numerics), own_generators, torch.enable_grad():
            replay.point_to(self._source.parameters)
            for inputs, rng in self._source.batches():
                add_product(total, replay, self._mode, inputs, rng, vector)
        for part, own in zip(total, vector, strict=True):
            part.mul_(self._source.scale).add_(own, alpha=self._damping)
        if not all(bool(part.isfinite().all()) for part in total):
            raise DivergedError(
                "a product with the curvature: expected finite numbers, found others",
                hint="look whether the vector, the parameters and the loss of each batch are finite",
            )
        return total

    def _parts(self, vector: Tensor) -> list[Tensor]:
        """Each with memory of its own: a forward derivative of a view takes as much as all that it is a view of."""
        parts = vector.split([parameter.numel() for parameter in self._source.parameters])
        return [part.reshape(like.shape).clone() for part, like in zip(parts, self._source.parameters, strict=True)]


def _flat(parts: Iterable[Tensor]) -> Tensor:
    return torch.cat([part.reshape(-1) for part in parts])
