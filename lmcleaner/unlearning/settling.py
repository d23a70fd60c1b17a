"""Whether a deviation still moves: at the end of a window, or to find where a window may end."""

import math

from torch import Tensor

from lmcleaner.training.vectors import evenly_spaced
from lmcleaner.unlearning.windows import Window

# Of a window without a fixed end: its first look, and the share of its steps that each later look goes back over.
FIRST_LOOK_STEPS = 20
_TENTH = 0.1
NUM_MARKS = 10  # points of a window with a fixed end at which the prediction is held against the true gradient


class Settling:
    """How much δ moved over the last tenth of the steps for which it was carried, relative to ‖δ‖.

    A window with a fixed end is looked at there. One without is looked at ever again, each time a tenth further on, and
    may end where δ moved by no more than the tolerance, with no new occurrence among those steps. δ that grows in
    proportion to the steps moves by 0.1, in proportion to their square root by 0.05.

    Between two looks one copy of δ is kept, on evenly spaced elements.

    Attributes:
        moved: that share at the last look; None before there are two.
    """

    def __init__(self, window: Window, tolerance: float | None) -> None:
        """Has looked at nothing yet.

        Args:
            window: the window; without a fixed end, the longest that it may be.
            tolerance: what δ may move by at the end; None where the end is fixed.
        """
        self._window, self._tolerance = window, tolerance
        self._before: Tensor | None = None
        self._taken = window.first
        self._next = window.first + FIRST_LOOK_STEPS
        self.moved: float | None = None

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
        self._compare(deviation)
        self._before, self._taken = evenly_spaced(deviation), step
        self._next = self._window.first + _next_look(step - self._window.first)
        return is_quiet and self.moved is not None and self.moved <= self._tolerance

    def _look_at_end(self, step: int, deviation: list[Tensor]) -> None:
        if step <= self._window.end - max(1, self._window.num_carried // 10):
            self._before = evenly_spaced(deviation)
        if step == self._window.end:
            self._compare(deviation)

    def _compare(self, deviation: list[Tensor]) -> None:
        if self._before is not None:
            here = evenly_spaced(deviation).double()
            norm = float(here.norm())
            self.moved = float((here - self._before).norm()) / norm if norm else self.moved


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
