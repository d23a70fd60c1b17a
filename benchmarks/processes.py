"""Runs a benchmark's parts in processes of their own, so that the peak memory of each is its own."""

import ctypes
import inspect
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

# Large blocks go back to the system when they are freed, so that resident memory is what is in use. It costs time.
PRECISE_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}

Measured = dict[str, Any]
_PART = "--part"
_LOOK_SECONDS = 0.0002


def peak_bytes() -> int:
    """Peak resident memory of this process since it began, or since `reset_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def reset_peak() -> int:
    """Forgets the peak so far; returns what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes()


class HeapPeak(threading.Thread):
    """Looks ever again how much the C library has handed out; resident memory tells of what it keeps besides.

    Needs glibc 2.33.

    Attributes:
        bytes: the most that was in use, over what was when this was made.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._library = ctypes.CDLL("libc.so.6")
        self._library.mallinfo2.restype = _HeapUse
        self._base, self.bytes, self._is_over = self._in_use(), 0, threading.Event()

    def __enter__(self) -> "HeapPeak":
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._is_over.set()
        self.join()

    def run(self) -> None:
        """Looks until the block ends."""
        while not self._is_over.wait(_LOOK_SECONDS):
            self.bytes = max(self.bytes, self._in_use() - self._base)

    def _in_use(self) -> int:
        found: _HeapUse = self._library.mallinfo2()
        return int(found.uordblks + found.hblkhd)


class _HeapUse(ctypes.Structure):
    """`struct mallinfo2` of glibc."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"
        )
    )  # fmt: skip


def in_own_process(
    part: Callable[..., Measured], folder: Path, *arguments: Any, environment: Mapping[str, str] | None = None
) -> Measured:
    """What a part of a script measures in a fresh process.

    Args:
        part: a function of the script, which must hand its parts to `run_part` first.
        folder: its first argument.
        arguments: the others, as JSON can hold them.
        environment: variables to set.

    Returns:
        What the part returned.
    """
    command = [sys.executable, inspect.getfile(part), _PART, json.dumps([part.__name__, str(folder), *arguments])]
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | dict(environment or {})
    )
    measured: Measured = json.loads(done.stdout.splitlines()[-1])
    return measured


def run_part(*parts: Callable[..., Measured]) -> bool:
    """Runs the part that `in_own_process` asks this process for, and prints what it measured; False if it doesn't."""
    if sys.argv[1:2] != [_PART]:
        return False
    name, folder, *arguments = json.loads(sys.argv[2])
    print(json.dumps({part.__name__: part for part in parts}[name](Path(folder), *arguments)))  # noqa: T201
    return True
