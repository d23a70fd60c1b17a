"""The gradient at θ′ as the curvature at θ predicts it: g(θ) - (C + λI)·δ."""

from collections.abc import Sequence

from torch import Tensor

from lmcleaner.choices import Denominator, HessianMode
from lmcleaner.curvature import exact, ggn
from lmcleaner.formats.steps import StepRecord
from lmcleaner.training.batches import NOTHING, Digests
from lmcleaner.training.replay import ReplayModel
from lmcleaner.training.state import Gradient


def predicted_gradient(
    replay: ReplayModel,
    mode: HessianMode,
    step: StepRecord,
    parameters: Sequence[Tensor],
    deviation: Sequence[Tensor],
    damping: float,
    forgotten: Digests = NOTHING,
    denominator: Denominator = Denominator.LOGGED,
) -> Gradient:
    """The gradient of the retained rows at θ′ = θ - δ, from gradient and curvature at θ.

    Args:
        replay: the run's model.
        mode: EXACT takes the Hessian for C, GGN the generalized Gauss-Newton matrix.
        step: the logged step.
        parameters: θ, in the order of the manifest.
        deviation: δ, likewise.
        damping: λ.
        forgotten: digests of the samples to leave out.
        denominator: what to divide by where rows are left out.

    Returns:
        One tensor for each parameter, before clipping; the error is that of the linearization, and of C.
    """
    replay.point_to(parameters)
    extra = replay.manifest.model.forward_arguments
    for microbatch, inputs in zip(step.microbatches, replay.inputs(step, forgotten, denominator), strict=True):
        replay.restore_rng(microbatch.rng)
        if mode is HessianMode.GGN:
            ggn.gradient_minus_product(replay, inputs, deviation, extra)
        else:
            exact.gradient_minus_product(replay, inputs, deviation, extra, whole=bool(microbatch.rng))
    gradient = replay.take_gradient()
    for part, direction in zip(gradient, deviation, strict=True):
        if part is not None:
            part.sub_(direction, alpha=damping)
    return gradient


def curvature_product(
    replay: ReplayModel,
    mode: HessianMode,
    step: StepRecord,
    parameters: Sequence[Tensor],
    vector: Sequence[Tensor],
    damping: float,
    forgotten: Digests = NOTHING,
    denominator: Denominator = Denominator.LOGGED,
) -> list[Tensor]:
    """(C + λI)·v over the retained rows of a step, at θ; arguments as in `predicted_gradient`.

    Returns:
        One tensor for each parameter; the sum over the microbatches, each divided by its own denominator.
    """
    replay.point_to(parameters)
    extra = replay.manifest.model.forward_arguments
    total = [damping * part for part in vector]
    for microbatch, inputs in zip(step.microbatches, replay.inputs(step, forgotten, denominator), strict=True):
        replay.restore_rng(microbatch.rng)
        product = ggn.product if mode is HessianMode.GGN else exact.product
        for sum_so_far, part in zip(total, product(replay, inputs, vector, extra), strict=True):
            sum_so_far.add_(part)
    return total
