"""Products with matrices that act through the logits: C = Jᵀ·B·J, where J is the logits' Jacobian.

Both terms of g - C·v go through the same Jacobian: g = Jᵀ·∂ℓ/∂z and C·v = Jᵀ·(B·J·v), so that the gradient of
ℓ - ⟨B·J·v, z⟩, with the bracket's left side held fixed, is their difference.

Axes: target = counted tokens of the microbatch, vocab = vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lmcleaner.curvature.logits import directional_logits, target_logits
from lmcleaner.training.batches import Inputs
from lmcleaner.training.losses import loss_and_logits
from lmcleaner.training.replay import ReplayModel


@dataclass(frozen=True)
class ThroughLogits:
    """An operator C = Jᵀ·B·J / D, with the loss's denominator D.

    Attributes:
        at_logits: B·t, given logits and their change t, both `[target, vocab]`, the forward arguments, and the factor
            of label smoothing; it may write into t, since logits are the largest activations.
    """

    # The directional derivative's logits come on top of a plain pass; half of the rows at once takes no more than a
    # training step.
    PARTS: ClassVar[int] = 2

    at_logits: Callable[[Tensor, Tensor, Inputs, float], Tensor]

    def gradient_minus_product(
        self, replay: ReplayModel, inputs: Inputs, vector: Sequence[Tensor], extra: Mapping[str, Any]
    ) -> None:
        """Adds g - C·v of some rows to the parameters' `grad`, by one forward derivative and one backward pass.

        Args:
            replay: the model, at the parameters that it points to.
            inputs: forward arguments, `input_ids` and `labels` int64 `[batch, seq]`.
            vector: v, one tensor for each parameter.
            extra: further forward arguments.
        """
        weights = self._output_product(replay, inputs, vector, extra)
        loss, logits = loss_and_logits(replay.manifest.model.loss, replay.module, {**inputs, **extra})
        (replay.scaled(loss) - (weights * target_logits(logits, inputs)).sum()).backward()

    def product(
        self, replay: ReplayModel, inputs: Inputs, vector: Sequence[Tensor], extra: Mapping[str, Any]
    ) -> list[Tensor]:
        """C·v of some rows; arguments as in `gradient_minus_product`.

        Returns:
            One tensor for each parameter; exact up to rounding.
        """
        weights = self._output_product(replay, inputs, vector, extra)
        logits = target_logits(replay.module(**inputs, **extra).logits, inputs)
        return list(torch.autograd.grad(logits, replay.parameters, grad_outputs=weights, materialize_grads=True))

    def _output_product(
        self, replay: ReplayModel, inputs: Inputs, vector: Sequence[Tensor], extra: Mapping[str, Any]
    ) -> Tensor:
        """B·J·v / D; `[target, vocab]`."""
        logits, tangents = directional_logits(replay, inputs, vector, extra)
        denominator = inputs["num_items_in_batch"].to(logits.dtype) * replay.manifest.loss_divisor
        loss = replay.manifest.model.loss
        return self.at_logits(logits, tangents, inputs, loss.smoothing if loss else 0.0).div_(denominator)
