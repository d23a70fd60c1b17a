"""Processes that are killed at a chosen moment of their writing."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from textwrap import indent

_SCRIPT = """
import os, signal, sys
from pathlib import Path
from lmcleaner.formats.local_files import LocalFiles

log, moment, *arguments = sys.argv[1:]

def die():
    os.kill(os.getpid(), signal.SIGKILL)

class Mortal(LocalFiles):
{methods}

store = Mortal(Path(log), writable=True)
{work}
"""
_UNLEARN = """
import torch
from lmcleaner.unlearning.options import UnlearnOptions
from lmcleaner.unlearning.run import unlearn

output, forget, redact = arguments
torch.set_num_threads(1)
options = UnlearnOptions(forget=forget, output=Path(output), K=None, hessian_mode="secant", redact=redact == "True")
unlearn(store, options)
"""


def killed_while(methods: str, work: str, log: Path, moment: str, *arguments: object) -> None:
    """Works on a log in a process of its own, which must be killed meanwhile.

    Args:
        methods: of `LocalFiles`, as they are for this log; they `die()` when the `moment` has come.
        work: what to do with the log, which is `store`; may use `arguments`, which are strings.
        log: where the log lies.
        moment: when to die.
        *arguments: for the work.
    """
    script = _SCRIPT.format(methods=indent(methods, "    "), work=work)
    command = [sys.executable, "-c", script, *map(str, (log, moment, *arguments))]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == -signal.SIGKILL, done.stderr


def killed_while_unlearning(
    methods: str, log: Path, moment: str, output: Path, forget: str, *, redact: bool = False
) -> None:
    """The same with `unlearn` as the work."""
    killed_while(methods, _UNLEARN, log, moment, output, forget, redact)
