"""Every error that lmcleaner raises on purpose: one class for each exit code.

A message says what is wrong, where, what was expected and what was found; `hint` says what to do about it. A class also
inherits the built-in exception that a caller would catch without knowing lmcleaner.
"""

from typing import ClassVar


class LmcleanerError(Exception):
    """Root of all errors that lmcleaner raises on purpose.

    Attributes:
        kind: stable kebab-case name of the class of error.
        exit_code: what the command line exits with.
        message: what, where, expected, found.
        hint: what the user can do about it.
    """

    kind: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 70
    usual_hint: ClassVar[str | None] = None

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        """Holds the message and the hint."""
        super().__init__(message)
        self.message = message
        self.hint = hint or self.usual_hint

    def __str__(self) -> str:
        """The message alone, whatever the built-in parent would make of it."""
        return self.message


class UsageError(LmcleanerError, ValueError):
    """A request or an option that makes no sense, whatever the log holds."""

    kind = "usage"
    exit_code = 2
    usual_hint = (
        "`lmcleaner COMMAND --help` explains the options, which have the same names in Python; "
        "docs/quickstart.md shows the common cases"
    )


class NotFoundError(LmcleanerError, FileNotFoundError):
    """A file, a log, a step or a row that is not there."""

    kind = "not-found"
    exit_code = 10
    usual_hint = "check the spelling; relative paths start where the command runs"


class ExistsError(LmcleanerError, FileExistsError):
    """An output that is there already, or a log that somebody holds."""

    kind = "exists"
    exit_code = 11


class DamagedError(LmcleanerError, ValueError):
    """A log or an audit document whose bytes are not those that were written.

    Attributes:
        problem: what was expected and found, without the place; "" where the message says it all.
    """

    problem: str = ""
    kind = "damaged"
    exit_code = 12
    usual_hint = "restore the file from a copy; it is not what lmcleaner wrote"


class VersionError(LmcleanerError, ValueError):
    """A log or an audit document of a major version that this release doesn't know."""

    kind = "unsupported-version"
    exit_code = 13


class InsufficientLogError(LmcleanerError, LookupError):
    """A log that is sound but doesn't hold what the request needs."""

    kind = "log-insufficient"
    exit_code = 14
    usual_hint = "`lmcleaner inspect` shows what the log holds"


class MismatchError(LmcleanerError, ValueError):
    """A model, or a training run, that is not the one that the log describes."""

    kind = "mismatch"
    exit_code = 20
    usual_hint = "use the log and the base model of one and the same run"


class DivergedError(LmcleanerError, ArithmeticError):
    """A value that is not finite, or a deviation that grows without bound."""

    kind = "diverged"
    exit_code = 21


class ResourceError(LmcleanerError, OSError):
    """No disk or memory left."""

    kind = "out-of-resources"
    exit_code = 30


def memory_shortage(error: BaseException) -> ResourceError | None:
    """What to raise for Python's or torch's error that memory ran out; None for any other.

    Args:
        error: what was raised.
    """
    if not isinstance(error, MemoryError) and type(error).__name__ != "OutOfMemoryError":
        return None
    return ResourceError(f"out of memory: {error}", hint="use a smaller model or batch, or another mode")
