"""Estimates a sweep's error from some of its steps, taken a second time with true gradients."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from lmcleaner.formats.steps import StepRecord
from lmcleaner.training.state import TrainingState
from lmcleaner.training.vectors import global_norm
from lmcleaner.unlearning.setting import Setting
from lmcleaner.unlearning.windows import Window

_BLOCK_STEPS = 10


def block_steps(window: Window, percent: float) -> tuple[range, ...]:
    """The steps of a window that are taken twice, in blocks at one distance from each other.

    Args:
        window: the window, or the longest that it may be.
        percent: of its steps that lie in a block, 0 to 100.

    Returns:
        The steps of each block, all behind the first occurrence and before the end.
    """
    length = min(_BLOCK_STEPS, int(window.num_carried * percent / 100))
    if not length:
        return ()
    period = max(length, round(length * 100 / percent))
    starts = range(window.first + 1 + (period - length) // 2, window.end - length + 1, period)
    return tuple(range(start, start + length) for start in starts)


class SampledOracle:
    """Blocks of a window's steps, each taken from the sweep's own state with predicted and with true gradients.

    What both differ by at the end of a block is the error that the block has made. The sum over all blocks, as many
    times as the window is longer than they are together, estimates the error at the window's end: as in defect
    correction for differential equations, without what the steps between would make of an error. Its relative size is
    ‖E‖ / ‖δ - E‖, since θ′ + E stands for the true θ′ and so δ - E for the true deviation.

    It costs a gradient for each step of a block, and holds a second training state and E.
    """

    def __init__(self, setting: Setting, state: TrainingState, window: Window, percent: float) -> None:
        """Has sampled nothing yet.

        Args:
            setting: what every step needs; counts the gradients.
            state: (θ′, o′), which the sweep advances.
            window: the window, or the longest that it may be.
            percent: of its steps that lie in a block, 0 to 100.
        """
        self._setting, self._state = setting, state
        self._blocks = {block.start: block for block in block_steps(window, percent)}
        self._block = range(0)
        self._twin: TrainingState | None = None
        self._sampled = 0
        self._error: list[Tensor] | None = None

    def before(self, number: int) -> None:
        """Starts a block before step t, if there is one to start."""
        if number in self._blocks:
            self._block, self._twin = self._blocks[number], copy.deepcopy(self._state)

    def after(self, number: int, step: StepRecord) -> None:
        """Takes step t once more, if it lies in a block, and notes at its end what both states differ by."""
        if self._twin is None:
            return
        if number not in self._setting.forget_set.skipped:
            self._twin.apply(self._setting.gradient(step, self._twin.parameters), step.lr)
        if number == self._block[-1]:
            pairs = zip(self._twin.parameters, self._state.parameters, strict=True)
            self._add([true.detach() - own.detach() for true, own in pairs])
            self._twin = None

    def relative_error(self, deviation: Sequence[Tensor], num_carried: int) -> float | None:
        """The estimate of ‖θ̂ - θ′‖ / ‖θ - θ′‖ at the window's end.

        Args:
            deviation: δ there, as the sweep has it.
            num_carried: steps that it was carried for.

        Returns:
            The estimate; None where no block has ended.
        """
        if self._error is None:
            return None
        error = [part * ((num_carried - 1) / self._sampled) for part in self._error]
        true = global_norm([d - part.to(d.device) for d, part in zip(deviation, error, strict=True)])
        return global_norm(error) / true if true else float("inf")

    def _add(self, difference: list[Tensor]) -> None:
        self._sampled += len(self._block)
        if self._error is None:
            self._error = difference
        else:
            torch._foreach_add_(self._error, difference)
