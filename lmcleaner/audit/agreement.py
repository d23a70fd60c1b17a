"""Whether values that a document states are those that were measured again."""

import math
import re
from collections.abc import Iterator
from typing import Any

# Numbers that are both smaller differ by a share of this one: what should be 0 is 1e-7 on another machine.
_LEAST = 0.01
_ROUNDING = 0.05  # what is further apart isn't so by rounding
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


class Agreement:
    """Compares values and remembers what it saw.

    Attributes:
        tolerance: the largest difference of two numbers that passes.
        num_values: how many were compared.
        largest: the largest difference of two numbers, as a share of the larger one; 0.0 while all are the same.
        at: where it is; empty while there is none.
        problems: what doesn't agree, each with its place.
    """

    def __init__(self, tolerance: float) -> None:
        """Compares nothing yet.

        Args:
            tolerance: the largest difference of two numbers that passes; with 0 they must be the same.
        """
        self.tolerance = tolerance
        self.num_values = 0
        self.largest, self.at = 0.0, ""
        self.problems: list[str] = []

    @property
    def problem(self) -> str | None:
        """The first problem, how many there are, and whether they could be rounding; None without one."""
        if not self.problems:
            return None
        more = f"; {len(self.problems)} such places in all" if len(self.problems) > 1 else ""
        hint = ": --evaluation-tolerance lets more pass" if self.tolerance < self.largest < _ROUNDING else ""
        return f"{self.problems[0]}{more}{hint}"

    def compare(self, place: str, stated: Any, found: Any) -> None:
        """Compares JSON, down to its last value.

        Args:
            place: where it stands.
            stated: what is stated.
            found: what was measured again.
        """
        if isinstance(stated, dict) and isinstance(found, dict):
            for key in {**found, **stated}:
                self._compare_part(f"{place}/{key}", key in stated, key in found, stated.get(key), found.get(key))
        elif isinstance(stated, list) and isinstance(found, list):
            for row in range(max(len(stated), len(found))):
                pair = [values[row] if row < len(values) else None for values in (stated, found)]
                self._compare_part(f"{place}/{row}", row < len(stated), row < len(found), *pair)
        else:
            self._compare_values(place, stated, found)

    def _compare_part(self, place: str, is_stated: bool, is_found: bool, stated: Any, found: Any) -> None:
        if is_stated and is_found:
            self.compare(place, stated, found)
        else:
            self.problems.append(f"{place}: {'it is missing' if is_found else 'nothing was measured that it could be'}")

    def _compare_values(self, place: str, stated: Any, found: Any) -> None:
        self.num_values += 1
        if _is_number(stated) and _is_number(found):
            difference = _difference(stated, found)
        elif _is_reason(stated) and _is_reason(found) and _words(stated) == _words(found):
            difference = max((_difference(*pair) for pair in _numbers(stated, found)), default=0.0)
        else:
            difference = 0.0 if type(stated) is type(found) and stated == found else math.inf
        if difference > self.largest and math.isfinite(difference):
            self.largest, self.at = difference, place
        if not difference <= self.tolerance:
            apart = f", {difference:.1e} apart" if math.isfinite(difference) else ""
            self.problems.append(f"{place}: stated is {stated!s:.100}, measured again it is {found!s:.100}{apart}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_reason(value: Any) -> bool:
    """Why something shows nothing, told with numbers; other texts are the same or they aren't."""
    return isinstance(value, str) and value.startswith("void:")


def _difference(stated: float, found: float) -> float:
    """As a share of the larger number; not finite where there is none, nor of a count."""
    if stated == found:
        return 0.0
    if isinstance(found, int):
        return math.inf
    try:
        return abs(stated - found) / max(abs(stated), abs(found), _LEAST)
    except OverflowError:  # an integer that no float can be
        return math.inf


def _words(text: str) -> str:
    return _NUMBER.sub("#", text)


def _numbers(stated: str, found: str) -> Iterator[tuple[float, float]]:
    pairs = zip(_NUMBER.findall(stated), _NUMBER.findall(found), strict=True)
    return ((float(one), float(other)) for one, other in pairs)
