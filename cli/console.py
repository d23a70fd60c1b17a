"""What goes where: data to stdout, everything for people to stderr."""

import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from lmcleaner.formats.errors import LmcleanerError

SECONDS_BETWEEN_LINES = 30.0  # where there is no bar
_WIDE = 400  # columns where no terminal limits them
_BLOCKS = "▁▂▃▄▅▆▇█"


class Reporter:
    """Shows an operation's progress: a bar on a terminal, elsewhere a line now and then, nothing if quiet."""

    def __init__(self, *, quiet: bool) -> None:
        """Prepares the bar; it appears with the first stage."""
        self._quiet = quiet
        self._console = Console(stderr=True, highlight=False)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=quiet or not self._console.is_terminal,
            transient=True,
        )
        self._task: Any = None
        self._told = time.monotonic()

    def __enter__(self) -> "Reporter":
        """Starts showing."""
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Takes the bar away."""
        self._bar.stop()

    def say(self, text: str) -> None:
        """Prints a line to stderr."""
        if not self._quiet:
            self._console.print(text, markup=False, soft_wrap=True)

    def begin(self, what: str, total: int) -> None:
        """Starts a new bar."""
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(what, total=total, rate="")

    def advance(self) -> None:
        """Moves the bar on by one."""
        if self._task is None:
            return
        self._bar.advance(self._task)
        speed = self._bar.tasks[0].speed if self._bar.tasks else None
        self._bar.update(self._task, rate=f"{speed:.1f}/s" if speed else "")
        if not self._console.is_terminal and time.monotonic() - self._told > SECONDS_BETWEEN_LINES:
            self._told = time.monotonic()
            self._say_where(self._bar.tasks[0])

    def _say_where(self, task: Task) -> None:
        left = f", about {timedelta(seconds=round(task.time_remaining))} left" if task.time_remaining else ""
        self.say(f"{task.description}: {task.completed:.0f} of {task.total:.0f}{left}")


def print_json(document: Any) -> None:
    """Prints one JSON document to stdout; what isn't finite becomes null."""
    sys.stdout.write(json.dumps(_finite(document), indent=2, default=str) + "\n")


def print_text(text: str = "") -> None:
    """Prints a line of data to stdout."""
    sys.stdout.write(text + "\n")


def print_table(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints a table to stdout; a column without any value is left out."""
    shown = [column for column in columns if any(row.get(column) is not None for row in rows)]
    table = Table(*(Column(name, overflow="fold") for name in shown), box=None)  # no digit or name is cut off
    for row in rows:
        table.add_row(*(_cell(row.get(column)) for column in shown))
    width = None if sys.stdout.isatty() else _WIDE
    Console(file=sys.stdout, highlight=False, markup=False, width=width).print(table)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def print_error(error: LmcleanerError, *, as_json: bool) -> None:
    """Prints `error: ...` and `hint: ...` to stderr, and with --json the same as a document to stdout."""
    hint = f"\n\nhint: {error.hint}" if error.hint else ""
    sys.stderr.write(f"error: {error.message}{hint}\n")
    if as_json:
        described = {"kind": error.kind, "message": error.message, "hint": error.hint, "exit_code": error.exit_code}
        print_json({"error": described})


def sparkline(values: Sequence[float], width: int = 60) -> str:
    """A row of at most `width` blocks whose heights follow the values; each block is the mean of its part."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    count = min(width, len(finite))
    parts = [finite[i * len(finite) // count : (i + 1) * len(finite) // count] for i in range(count)]
    means = [sum(part) / len(part) for part in parts]
    low, span = min(means), (max(means) - min(means)) or 1.0
    return "".join(_BLOCKS[round((mean - low) / span * (len(_BLOCKS) - 1))] for mean in means)


def human_bytes(count: float) -> str:
    """A number of bytes for people, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def spelled(ranges: Sequence[tuple[int, int]]) -> str:
    """Ranges of steps for people; each is [first, stop)."""
    return ", ".join(f"{a}-{b - 1}" if b - a > 1 else str(a) for a, b in ranges) or "none"


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return value
