"""Runs a user's training script as Python would, and records it."""

import runpy
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lmcleaner.formats.errors import NotFoundError, UsageError
from lmcleaner.recording.options import WatchOptions


def record_script(log: str, command: Sequence[str], options: WatchOptions | None = None) -> None:
    """Runs a script or a module in this process, with its own arguments, and records the training in it.

    What the script ends by passes through. Unless it is an exit with code 0, the log is that of an interrupted run.

    Args:
        log: folder or URL of the new log.
        command: `train.py ARGS…`, or `-m module ARGS…`.
        options: what the training can't be asked for.

    Raises:
        NotFoundError: no such script.
        UsageError: no script is named, or the training can't be recorded; see `Watch`.
    """
    check_script(command)
    from lmcleaner.recording.watch import Watch

    with _as_main(command), _interruptible(), Watch(log, options):
        if command[0] == "-m":
            runpy.run_module(command[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(command[0], run_name="__main__")


def check_script(command: Sequence[str]) -> None:
    """Checks what can be known before anything is loaded.

    Args:
        command: `train.py ARGS…`, or `-m module ARGS…`.

    Raises:
        NotFoundError: no such script.
        UsageError: no script is named.
    """
    if not command or command == ["-m"]:
        raise UsageError("no script: expected train.py or -m module after --, found nothing")
    if command[0] != "-m" and not Path(command[0]).is_file():
        raise NotFoundError(f"no such script: {command[0]}", hint="give a Python file, or -m and a module")


@contextmanager
def _as_main(command: Sequence[str]) -> Iterator[None]:
    """Arguments and module path as the script would have them by itself."""
    arguments, path = sys.argv, list(sys.path)
    is_module = command[0] == "-m"
    sys.argv = list(command[1:] if is_module else command)
    place = str(Path.cwd() if is_module else Path(command[0]).resolve().parent)
    sys.path[: 0 if sys.flags.safe_path else 1] = [place]  # where Python began with -P nobody's folder comes first
    try:
        yield
    finally:
        sys.argv, sys.path[:] = arguments, path


@contextmanager
def _interruptible() -> Iterator[None]:
    """Where a launcher ends this process because another one died, its log is closed as that of an interrupted run."""
    import torch

    if not torch.distributed.is_torchelastic_launched():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
