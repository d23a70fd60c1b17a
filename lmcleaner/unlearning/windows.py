"""The steps through which a deviation is carried."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """One stretch of the run that a sweep goes through.

    Attributes:
        start: checkpoint to start from, at or before `first`.
        first: step of the first occurrence.
        last: step of the last occurrence that the window covers.
        end: the window ends with θ[end].
    """

    start: int
    first: int
    last: int
    end: int

    @property
    def K_used(self) -> int:  # noqa: N802 -- the paper's name, and the audit document's
        """Steps for which the last occurrence's deviation is carried."""
        return self.end - self.last - 1

    @property
    def num_lead_in(self) -> int:
        """Steps from the checkpoint to the first occurrence, in which nothing deviates."""
        return self.first - self.start

    @property
    def num_carried(self) -> int:
        """Steps from the first occurrence to the end."""
        return self.end - self.first

    def to_json(self) -> dict[str, int]:
        """The window by the names that the audit document uses."""
        return {
            "start": self.start,
            "tz": self.first,
            "last_occurrence": self.last,
            "tau": self.end,
            "K_used": self.K_used,
        }


def find_windows(
    occurrence_steps: Sequence[int],
    *,
    K: int | None,  # noqa: N803 -- the paper's name
    num_steps: int,
    checkpoint_steps: Sequence[int],
    ends_anywhere: bool,
) -> tuple[Window, ...]:
    """The windows of a request; those that would touch are one.

    Args:
        occurrence_steps: steps that hold a forgotten row, ascending.
        K: steps to carry after the last occurrence; None carries to the end of the run.
        num_steps: τ.
        checkpoint_steps: steps with a checkpoint, ascending; 0 is one.
        ends_anywhere: whether θ is known after every step; else an end is moved on to the next checkpoint.

    Returns:
        Windows in order; they share no occurrence.
    """

    def end_of(step: int) -> int:
        end = num_steps if K is None else min(num_steps, step + 1 + K)
        return end if ends_anywhere else next(c for c in (*checkpoint_steps, num_steps) if c >= end)

    spans: list[tuple[int, int, int]] = []  # first, last, end
    for step in occurrence_steps:
        if spans and step <= spans[-1][2]:
            spans[-1] = spans[-1][0], step, end_of(step)
        else:
            spans.append((step, step, end_of(step)))
    return tuple(
        Window(start=max(c for c in checkpoint_steps if c <= first), first=first, last=last, end=end)
        for first, last, end in spans
    )
