"""Ranges of steps, and where parameters can be read given the updates of some."""

from collections.abc import Iterable

Ranges = tuple[tuple[int, int], ...]  # [first, stop) of each, ascending


def ranges_of(steps: Iterable[int]) -> Ranges:
    """[first, stop) of each run of neighbours.

    Args:
        steps: ascending.

    Returns:
        The ranges.
    """
    found: list[tuple[int, int]] = []
    for step in steps:
        if found and found[-1][1] == step:
            found[-1] = (found[-1][0], step + 1)
        else:
            found.append((step, step + 1))
    return tuple(found)


def steps_in(ranges: Ranges) -> list[int]:
    """The steps of ranges, ascending."""
    return [step for first, stop in ranges for step in range(first, stop)]


def readable_steps(checkpoint_steps: Iterable[int], updates: Iterable[int]) -> frozenset[int]:
    """The steps before which θ can be read: at a checkpoint, and wherever the updates lead from there.

    Args:
        checkpoint_steps: steps with a checkpoint.
        updates: steps with an update, ascending.

    Returns:
        The steps.
    """
    readable = set(checkpoint_steps)
    for step in updates:
        if step in readable:
            readable.add(step + 1)
    return frozenset(readable)
