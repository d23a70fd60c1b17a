"""Reads a whole log once and lists what is damaged; changes nothing."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["damaged", "unreachable", "leftover"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One part of a log that isn't as it should be.

    Attributes:
        kind: "damaged"; "unreachable", where the part itself is sound and one before it is damaged; "leftover", for an
            object that the commit record doesn't count, such as a killed writer leaves.
        array: path of the array or the object in the log.
        step: the step that it belongs to, or None for what spans steps.
        message: what was expected and found.
    """

    kind: Kind
    array: str
    step: int | None
    message: str
