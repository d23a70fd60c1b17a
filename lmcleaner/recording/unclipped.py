"""The norm of a gradient before the loop clips it, seen where autograd accumulates: the optimizer never sees it."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lmcleaner.formats.errors import UsageError
from lmcleaner.training.vectors import joined_norm

_TOLERANCE = 5e-2  # bfloat16 rounds each norm to eight bits


class UnclippedNorm:
    """Notes the norm of every parameter's gradient whenever something was added to it."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        """Attaches nothing yet."""
        self._parameters = parameters
        self._norms: dict[int, Tensor] = {}
        self._told: float | None = None

    def tell(self, norm: float) -> None:
        """Says what the current step's norm is, whose backward passes were before the hooks."""
        self._told = norm

    def attach(self) -> list[Any]:
        """Attaches a hook to each parameter.

        Returns:
            Handles that remove them.
        """
        return [
            parameter.register_post_accumulate_grad_hook(self._noting(number))
            for number, parameter in enumerate(self._parameters)
        ]

    def take(self, given: float, limit: float, step: int, scale: float = 1.0) -> float:
        """The norm before clipping, and forgets it.

        Args:
            given: norm of what the optimizer is about to use.
            limit: what the loop said to clip the norm at.
            step: number of the step, for messages.
            scale: what the losses were multiplied by, and the gradient divided by before it was clipped.

        Returns:
            The norm as `torch.nn.utils.clip_grad_norm_` computes it, up to rounding.

        Raises:
            UsageError: something else than clipping was done to the gradient.
        """
        seen = joined_norm([self._norms[number] for number in sorted(self._norms)]) / scale
        norm = seen if self._told is None else self._told
        self._norms, self._told = {}, None
        if abs(given - min(norm, limit)) > _TOLERANCE * min(norm, limit):
            raise UsageError(
                f"the loop does more to a gradient than to clip it: step {step}: expected a norm of "
                f"{min(norm, limit):.6g}, found {given:.6g}",
                hint="divide the loss, not the gradients, and say what by: RunDescription(loss_divisor=...)",
            )
        return norm

    def _noting(self, number: int) -> Callable[[Tensor], None]:
        def note(parameter: Tensor) -> None:
            assert parameter.grad is not None
            self._norms[number] = torch.linalg.vector_norm(parameter.grad)

        return note
