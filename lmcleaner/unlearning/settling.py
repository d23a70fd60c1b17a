"""Whether a deviation still moves: at the end of a window, or to find where a window may end."""

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lmcleaner.choices import HessianMode
from lmcleaner.training.vectors import evenly_spaced
from lmcleaner.unlearning.windows import Window

# Of a window without a fixed end: its first look, and the share of its steps that each later look goes back over.
FIRST_LOOK_STEPS = 20
_TENTH = 0.1
NUM_MARKS = 10  # points of a window with a fixed end at which the prediction is held against the true gradient


class Settling:
    """How much δ moved over the last tenth of the steps for which it was carried, and what that leaves to come.

    A move m over steps whose learning rates add up to s is taken to go on as a random walk: by m·√(S / s) until the end
    of the run, where the rates still to come add up to S. Both are relative to ‖δ‖. (Short windows move little over a
    tenth, which is a step or two, and yet miss nearly all of what is to come; docs/choosing-a-mode.md measures it.)

    A window with a fixed end is looked at there. One without is looked at ever again, each time a tenth further on, and
    may end where no more than the tolerance is left to come, with no new occurrence among those steps.

    Between two looks one copy of δ is kept, on evenly spaced elements.

    Attributes:
        moved: the move at the last look; None before there are two.
        left_out: what is left to come after it; likewise, and while learning rates of zero tell nothing.
    """

    def __init__(self, window: Window, tolerance: float | None, rates: NDArray[np.float64]) -> None:
        """Has looked at nothing yet.

        Args:
            window: the window; without a fixed end, the longest that it may be.
            tolerance: what may be left to come at the end; None where the end is fixed.
            rates: learning rate of every step of the run, `[num_steps]`.
        """
        self._window, self._tolerance, self._rates = window, tolerance, rates
        self._before: Tensor | None = None
        self._taken = window.first
        self._next = window.first + FIRST_LOOK_STEPS
        self.moved: float | None = None
        self.left_out: float | None = None

    def look(self, step: int, deviation: list[Tensor], last_occurrence: int) -> bool:
        """Notes δ[step] where it is time to.

        Args:
            step: the number of the step before which δ is.
            deviation: δ[step].
            last_occurrence: the last step before it that holds a forgotten row.

        Returns:
            Whether the window may end here.
        """
        if self._tolerance is None:
            self._look_at_end(step, deviation)
            return False
        if step < self._next:
            return False
        is_quiet = last_occurrence < self._taken
        self._compare(step, deviation)
        self._before, self._taken = evenly_spaced(deviation), step
        self._next = self._window.first + _next_look(step - self._window.first)
        return is_quiet and self.left_out is not None and self.left_out <= self._tolerance

    def _look_at_end(self, step: int, deviation: list[Tensor]) -> None:
        if step <= _tenth_before_end(self._window):
            self._before, self._taken = evenly_spaced(deviation), step
        if step == self._window.end:
            self._compare(step, deviation)

    def _compare(self, step: int, deviation: list[Tensor]) -> None:
        here = evenly_spaced(deviation).double()
        norm = float(here.norm())
        if self._before is None or not norm:
            return
        self.moved = float((here - self._before).norm()) / norm
        lately, to_come = float(self._rates[self._taken : step].sum()), float(self._rates[step:].sum())
        if lately or not to_come:
            self.left_out = self.moved * math.sqrt(to_come / lately) if to_come else 0.0


def looks(window: Window, checkpoint_steps: Iterable[int], mode: HessianMode, *, is_end_fixed: bool) -> frozenset[int]:
    """Steps at which θ is read and δ looked at.

    Args:
        window: the window.
        checkpoint_steps: steps whose θ lies ready.
        mode: how gradients are found.
        is_end_fixed: whether it ends at `window.end` whatever happens.

    Returns:
        All after the first occurrence's. SECANT needs no θ, and so that few updates are read: the first of them, those
        with a checkpoint, those from which settling is judged, and the end.
    """
    if mode is not HessianMode.SECANT:
        return frozenset(range(window.first + 1, window.end + 1))
    judged = {_tenth_before_end(window)} if is_end_fixed else {step + 1 for step in marks(window, is_end_fixed=False)}
    found = {window.first + 1, *checkpoint_steps, *judged, window.end}
    return frozenset(step for step in found if window.first < step <= window.end)


def _tenth_before_end(window: Window) -> int:
    return window.end - max(1, window.num_carried // 10)


def _next_look(carried: int) -> int:
    """Steps after which those since `carried` are a tenth of all."""
    return math.ceil(carried / (1 - _TENTH))


def marks(window: Window, *, is_end_fixed: bool) -> frozenset[int]:
    """Steps at which the predicted gradient is held against the true one.

    Args:
        window: the window.
        is_end_fixed: whether it ends at `window.end` whatever happens.

    Returns:
        Up to ten, evenly spaced, the last step among them; without a fixed end, those before each look at δ.
    """
    if is_end_fixed:
        count = min(NUM_MARKS, window.num_carried)
        return frozenset(window.first + math.ceil(window.num_carried * k / count) - 1 for k in range(1, count + 1))
    found, carried = set[int](), FIRST_LOOK_STEPS
    while carried < window.num_carried:
        found.add(window.first + carried - 1)
        carried = _next_look(carried)
    return frozenset({*found, window.end - 1})
