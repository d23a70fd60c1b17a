"""What torch's `GradScaler` does to a step: it multiplies the losses, and leaves a step out where gradients overflow.

The gradients are divided by the same factor again: by the scaler or, where the optimizer is fused, by the optimizer.
Float16 rounds and overflows otherwise with another factor, so that a replay must use the run's.
"""

from collections.abc import Callable
from typing import Any

import torch

from lmcleaner.formats.errors import UsageError

_SCALER: Any = torch.amp.GradScaler  # what torch.cuda.amp has is one, too


class Scaling:
    """Notes the factor of the losses since the last step, and tells of steps that are left out.

    Attributes:
        factor: what the last loss was multiplied by; 1 without a scaler.
        num_left_out: steps that were left out.
        was_left_out: whether the last one was.
    """

    def __init__(self) -> None:
        """Sees nothing yet."""
        self.factor, self.num_left_out, self.was_left_out = 1.0, 0, False
        self._factors: set[float] = set()
        self._is_unscaled = self._is_stepping = self._was_taken = False
        self._left_out: Callable[[], None] = lambda: None
        self._optimizer: torch.optim.Optimizer | None = None
        self._methods = _SCALER.scale, _SCALER.unscale_, _SCALER.step

    def attach(self, left_out: Callable[[], None], optimizer: torch.optim.Optimizer | None = None) -> None:
        """Sees from now on what scalers do.

        Args:
            left_out: is called when a scaler has left out a step.
            optimizer: whose steps; None is anyone's.
        """
        self._left_out, self._optimizer = left_out, optimizer
        scale, unscale, step = self._methods = _SCALER.scale, _SCALER.unscale_, _SCALER.step

        def scaled(scaler: Any, outputs: Any) -> Any:
            found = scale(scaler, outputs)
            self.factor = float(scaler.get_scale())
            self._factors.add(self.factor)
            return found

        def unscaled(scaler: Any, given: Any) -> None:
            unscale(scaler, given)
            self._is_unscaled |= not self._is_stepping

        def stepped(scaler: Any, given: Any, *args: Any, **kwargs: Any) -> Any:
            self._is_stepping, self._was_taken = True, False
            try:
                result = step(scaler, given, *args, **kwargs)
            finally:
                self._is_stepping = False
            if not self._was_taken and self._is_own(given):
                self._begin()
                self.num_left_out, self.was_left_out = self.num_left_out + 1, True
                self._left_out()
            return result

        _SCALER.scale, _SCALER.unscale_, _SCALER.step = scaled, unscaled, stepped

    def detach(self) -> None:
        """Sees it no more; what was noted since the last step stays."""
        _SCALER.scale, _SCALER.unscale_, _SCALER.step = self._methods

    def take(self, optimizer: torch.optim.Optimizer, step: int, *, is_clipped: bool) -> tuple[float, float]:
        """The optimizer takes a step, and the next one begins.

        Args:
            optimizer: whose step it is.
            step: its number, for messages.
            is_clipped: whether the loop clips the gradient.

        Returns:
            What the step's losses were multiplied by, and what the optimizer will divide the gradients by itself.

        Raises:
            UsageError: a replay couldn't take the step so.
        """
        factors, is_unscaled = sorted(self._factors or {1.0}), self._is_unscaled
        self._begin()
        self._was_taken, self.was_left_out = True, False
        if len(factors) > 1:
            raise UsageError(
                f"the losses of one step were scaled by different factors: step {step}: found {factors}",
                hint="call scaler.update() once a step, after scaler.step()",
            )
        (factor,) = factors
        if factor != 1 and not is_unscaled and (is_clipped or not self._is_stepping):
            what = "clips" if is_clipped else "takes a step by"
            raise UsageError(
                f"the loop {what} gradients that are still scaled: step {step}: found a factor of {factor:g}",
                hint="call scaler.unscale_(optimizer) before it clips, and scaler.step(optimizer) for the step",
            )
        return factor, factor if getattr(optimizer, "grad_scale", None) is not None else 1.0

    def _begin(self) -> None:
        self._factors, self._is_unscaled = set(), False

    def _is_own(self, given: Any) -> bool:
        """Whether it is the optimizer whose steps count, or Accelerate's wrapper of it."""
        return self._optimizer is None or self._optimizer in {given, getattr(given, "optimizer", None)}


def leaves_out(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a fused optimizer that is asked for a step will change nothing, since a scaler found an overflow."""
    return bool(getattr(optimizer, "found_inf", None) or 0)
