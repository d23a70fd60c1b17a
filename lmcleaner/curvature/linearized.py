"""The gradient at θ′ as the curvature at θ predicts it: g(θ) - (C + λI)·δ."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lmcleaner.choices import Denominator, HessianMode
from lmcleaner.curvature import exact
from lmcleaner.curvature.empirical_fisher import EMPIRICAL_FISHER
from lmcleaner.curvature.ggn import GGN
from lmcleaner.formats.steps import StepRecord
from lmcleaner.training.batches import NOTHING, Digests, Inputs, row_parts
from lmcleaner.training.losses import check_curvature
from lmcleaner.training.replay import ReplayModel
from lmcleaner.training.state import Gradient

# Tokens times parameters from which on a part's operations take longer to compute than to start: below it parts cost
# time, and save memory only of models so small that nobody needs it. With 260,000 parameters and 1,100 tokens `exact`
# took 3.0 gradients at once, 3.2 in two parts, 3.9 in four and 7.8 in eight.
_PART_WORK = 1 << 27


class Operator(Protocol):
    """A curvature matrix C that is never written down; the functions of `exact`, or a `ThroughLogits`."""

    @property
    def PARTS(self) -> int:  # noqa: N802 -- a constant of each
        """Into how many parts the rows of a microbatch go, so that activations stay those of a training step."""

    def gradient_minus_product(
        self, replay: ReplayModel, inputs: Inputs, vector: Sequence[Tensor], extra: Mapping[str, Any]
    ) -> None:
        """Adds g - C·v of some rows to the parameters' `grad`."""

    def product(
        self, replay: ReplayModel, inputs: Inputs, vector: Sequence[Tensor], extra: Mapping[str, Any]
    ) -> list[Tensor]:
        """C·v of some rows."""


OPERATORS: dict[HessianMode, Operator] = {
    HessianMode.EXACT: exact,
    HessianMode.GGN: GGN,
    HessianMode.EMPIRICAL_FISHER: EMPIRICAL_FISHER,
}


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
        mode: EXACT takes the Hessian for C, GGN the generalized Gauss-Newton matrix, EMPIRICAL_FISHER the rows' Fisher.
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
    for microbatch, inputs in zip(step.microbatches, replay.inputs(step, forgotten, denominator), strict=True):
        replay.restore_rng(microbatch.rng)
        extra = replay.constants(inputs)
        for rows in _parts(replay, inputs, mode, microbatch.rng):
            OPERATORS[mode].gradient_minus_product(replay, rows, deviation, extra)
    gradient = replay.take_gradient()
    for part, direction in zip(gradient, deviation, strict=True):
        if part is not None:
            part.mul_(1 / replay.manifest.world_size).sub_(direction, alpha=damping)
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
    total = [damping * part for part in vector]
    for microbatch, inputs in zip(step.microbatches, replay.inputs(step, forgotten, denominator), strict=True):
        add_product(total, replay, mode, inputs, microbatch.rng, vector)
    return total


def add_product(
    total: Sequence[Tensor],
    replay: ReplayModel,
    mode: HessianMode,
    inputs: Inputs,
    rng: bytes,
    vector: Sequence[Tensor],
) -> None:
    """Adds C·v over the rows of one microbatch.

    Args:
        total: what to add to, one tensor for each parameter.
        replay: the model, at the parameters that it points to.
        mode: as in `predicted_gradient`.
        inputs: forward arguments of the microbatch.
        rng: state of the generators before its forward pass; empty where it drew no numbers.
        vector: v, one tensor for each parameter.
    """
    extra = replay.constants(inputs)
    replay.restore_rng(rng)
    for rows in _parts(replay, inputs, mode, rng):
        for sum_so_far, part in zip(total, OPERATORS[mode].product(replay, rows, vector, extra), strict=True):
            sum_so_far.add_(part, alpha=1 / replay.manifest.world_size)


def count_parts(mode: HessianMode, tokens: NDArray[np.int64], num_elements: int) -> NDArray[np.int64]:
    """Into how many parts of their rows microbatches go.

    Args:
        mode: as in `predicted_gradient`.
        tokens: of each microbatch, with padding.
        num_elements: of the parameters.

    Returns:
        The counts, of the shape of the tokens.
    """
    parts: NDArray[np.int64] = np.clip(tokens * num_elements // _PART_WORK, 1, OPERATORS[mode].PARTS)
    return parts


def _parts(replay: ReplayModel, inputs: Inputs, mode: HessianMode, rng: bytes) -> Iterable[Inputs]:
    """The rows of a microbatch in parts; a model that draws random numbers draws them for all rows at once.

    Raises:
        InsufficientLogError: the run's loss has no curvature.
    """
    check_curvature(replay.manifest)
    if rng:
        return [inputs]
    tokens = np.array(inputs["input_ids"].numel())
    return row_parts(inputs, int(count_parts(mode, tokens, replay.manifest.num_elements)))
