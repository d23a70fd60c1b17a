"""The steps through which a deviation is carried."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from lmcleaner.choices import Steps
from lmcleaner.formats.reader import TrainingLog


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

    def ending_at(self, end: int, occurrence_steps: Sequence[int]) -> "Window":
        """The window up to an earlier end.

        Args:
            end: where it shall end, after its first occurrence.
            occurrence_steps: all steps that hold a forgotten row, ascending.

        Returns:
            A window whose last occurrence lies before that end.
        """
        return replace(self, end=end, last=occurrence_steps[bisect_left(occurrence_steps, end) - 1])

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
    K: Steps,  # noqa: N803 -- the paper's name
    num_steps: int,
    checkpoint_steps: Sequence[int],
    known_steps: Iterable[int],
) -> tuple[Window, ...]:
    """The windows of a request; those that would touch are one.

    Args:
        occurrence_steps: steps that hold a forgotten row, ascending.
        K: steps to carry after the last occurrence; None carries to the end of the run, and so may "auto".
        num_steps: τ.
        checkpoint_steps: steps with a checkpoint, ascending; 0 is one.
        known_steps: steps before which θ is known besides; an end is moved on to the next of them, or of the
            checkpoints.

    Returns:
        Windows in order; they share no occurrence.
    """
    ends = sorted({*checkpoint_steps, *known_steps, num_steps})

    def end_of(step: int) -> int:
        return ends[bisect_left(ends, min(num_steps, step + 1 + K) if isinstance(K, int) else num_steps)]

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


def windows_in(log: TrainingLog, occurrence_steps: Sequence[int], K: Steps) -> tuple[Window, ...]:  # noqa: N803
    """The windows of a request to a log, which may hold the updates of some steps only; see `find_windows`.

    Args:
        log: the training log.
        occurrence_steps: steps that hold a forgotten row, ascending.
        K: steps to carry after the last occurrence; None carries to the end of the run, and so may "auto".

    Returns:
        Windows in order, each of which ends where θ can be read.
    """
    return find_windows(
        occurrence_steps,
        K=K,
        num_steps=log.num_steps,
        checkpoint_steps=log.checkpoint_steps,
        known_steps=log.readable_steps,
    )


def first_read(log: TrainingLog, window: Window) -> int:
    """The step from which on a sweep reads θ, where its lead-in repeats the run and so ends with θ[first].

    Args:
        log: the training log.
        window: the window.

    Returns:
        The first carried step where the log's updates lead to the run's bits there, else the window's start.
    """
    is_exact = log.manifest.updates == "lossless" and window.first in log.readable_steps
    return window.first if is_exact else window.start


def read_steps(checkpoint_steps: Sequence[int], looks: Iterable[int], start: int) -> set[int]:
    """Steps whose updates lead to θ wherever it is looked at: from the start, or from a checkpoint on the way.

    Args:
        checkpoint_steps: steps with a checkpoint, ascending; 0 is one.
        looks: steps before which θ is looked at, behind the start.
        start: where θ is known.

    Returns:
        The steps.
    """
    found, at = set[int](), start
    for step in sorted(looks):
        nearest = checkpoint_steps[bisect_right(checkpoint_steps, step) - 1]
        at = nearest if nearest - at > 1 else at
        found.update(range(at, step))
        at = step
    return found


def replayed_steps(window: Window, checkpoint_steps: Sequence[int], readable: frozenset[int]) -> int:
    """Steps to replay so that θ is known before every carried step of a window, and at its end.

    Args:
        window: the window.
        checkpoint_steps: steps with a checkpoint, ascending; 0 is one.
        readable: steps before which θ can be read.

    Returns:
        The number of steps; a replay starts at a checkpoint, ends where θ can be read again.
    """
    count, at = 0, None
    for step in range(window.first, window.end + 1):
        if step in readable:
            at = None
            continue
        at = at if at is not None else checkpoint_steps[bisect_left(checkpoint_steps, step) - 1]
        count, at = count + step - at, step
    return count
