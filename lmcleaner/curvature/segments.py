"""Estimates of the mean curvature of a segment: the steps from one checkpoint to the next."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from lmcleaner.choices import HessianMode
from lmcleaner.curvature.estimates import Estimate, Vector, estimate_diagonal, estimate_low_rank
from lmcleaner.formats.errors import DivergedError
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.steps import StepRecord

ESTIMATE_STEPS = 2  # of a segment, whose mean curvature is estimated
PROBES = 8  # of a diagonal
TRACE_PROBES = 4  # of the trace beside the eigenpairs' basis

# Mode whose estimate it is -> mode whose operator the products are with.
ESTIMATED: Mapping[HessianMode, HessianMode] = MappingProxyType({
    HessianMode.DIAG: HessianMode.GGN,
    HessianMode.DIAG_HESSIAN: HessianMode.EXACT,
    HessianMode.LOW_RANK: HessianMode.GGN,
})

StepProduct = Callable[[HessianMode, StepRecord, Vector], list[Tensor]]


def num_products(mode: HessianMode, rank: int, num_elements: int, num_steps: int) -> int:
    """Products that an estimate takes at most, each with the curvature of one step.

    Args:
        mode: one of `ESTIMATED`.
        rank: eigenpairs of LOW_RANK.
        num_elements: length of a parameter vector.
        num_steps: of the segment.

    Returns:
        The number.
    """
    each = min(2 * rank + 1, num_elements) + TRACE_PROBES if mode is HessianMode.LOW_RANK else PROBES
    return each * min(ESTIMATE_STEPS, num_steps)


def estimate_segment(
    log: TrainingLog, mode: HessianMode, start: int, stop: int, parameters: Vector, rank: int, product: StepProduct
) -> Estimate:
    """Estimates from evenly spaced steps of a segment, all at the same θ.

    Args:
        log: the training log.
        mode: one of `ESTIMATED`.
        start: first step; also the seed.
        stop: one after the last step.
        parameters: θ[start].
        rank: eigenpairs of LOW_RANK.
        product: C·v of a step at θ[start], with the operator of a mode.

    Returns:
        The estimate of the mean over the chosen steps.

    Raises:
        DivergedError: a product isn't finite.
    """
    count = min(ESTIMATE_STEPS, stop - start)
    steps = [log.step(start + (stop - start) * k // count) for k in range(count)]

    def mean_product(vector: Vector) -> list[Tensor]:
        total = [torch.zeros_like(part) for part in vector]
        for step in steps:
            for part, image in zip(total, product(ESTIMATED[mode], step, vector), strict=True):
                part.add_(image, alpha=1 / count)
        if not all(bool(part.isfinite().all()) for part in total):
            raise DivergedError(
                f"the curvature is not finite: {log.location}: steps {start} to {stop - 1}",
                hint="the run itself is about to diverge here; --hessian-mode secant needs no curvature",
            )
        return total

    generator = torch.Generator().manual_seed(start)
    if mode is HessianMode.LOW_RANK:
        return estimate_low_rank(mean_product, parameters, rank, TRACE_PROBES, generator)
    return estimate_diagonal(mean_product, parameters, PROBES, generator)
