"""How long operations tell a caller where they are; the core itself never prints."""

from typing import Protocol


class Progress(Protocol):
    """What an operation reports to."""

    def say(self, text: str) -> None:
        """Takes a line that a person should read, such as the plan."""

    def begin(self, what: str, total: int) -> None:
        """Takes the start of a stage of `total` units."""

    def advance(self) -> None:
        """Takes the end of one unit of the current stage."""


class Silent:
    """Reports to nobody."""

    def say(self, text: str) -> None:
        """Drops the line."""

    def begin(self, what: str, total: int) -> None:
        """Drops the stage."""

    def advance(self) -> None:
        """Drops the unit."""
