"""Puts the recorder between a launcher of several processes and the script that it starts in each."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lmcleaner.formats.errors import UsageError

# How a launcher is called -> what takes its arguments.
_TORCHRUN, _ACCELERATE = "torchrun", "accelerate launch"
_CALLS = {
    ("torchrun",): _TORCHRUN,
    ("-m", "torch.distributed.run"): _TORCHRUN,
    ("accelerate", "launch"): _ACCELERATE,
    ("-m", "accelerate.commands.launch"): _ACCELERATE,
}


def is_launcher(command: Sequence[str]) -> bool:
    """Whether a command is `torchrun …` or `accelerate launch …`, and not a script.

    Args:
        command: the words of the command.
    """
    return _call_of(command) is not None


def launch(command: Sequence[str], recording: Sequence[str]) -> None:
    """Lets the launcher start the recorder with the script instead of the script, and waits.

    What the launcher raises, or ends by, passes through; so does what its processes write.

    Args:
        command: the launcher with its arguments, the script and the script's.
        recording: arguments of the command line of lmcleaner that stand before `--` and the script.

    Raises:
        UsageError: the launcher isn't to start a Python script or module.
    """
    call = _call_of(command)
    assert call is not None
    parser, run = _launcher(_CALLS[call])
    arguments = parser.parse_args(list(command[len(call) :]))
    if arguments.no_python:
        raise UsageError(
            f"{_CALLS[call]} is told to start {arguments.training_script} without Python: expected a Python script"
        )
    script = [*(["-m"] if arguments.module else []), arguments.training_script, *arguments.training_script_args]
    # -P: a folder named lmcleaner where the training is started must not be taken for the package.
    recorder = [sys.executable, "-u", "-P", "-m", "lmcleaner.cli", *recording, "--", *script]
    arguments.no_python, arguments.module, arguments.run_path = True, False, False
    arguments.training_script, arguments.training_script_args = recorder[0], recorder[1:]
    run(arguments)


def _call_of(command: Sequence[str]) -> tuple[str, ...] | None:
    words = (Path(command[0]).name, *command[1:2]) if command else ()
    return next((call for call in _CALLS if call == words[: len(call)]), None)


def _launcher(name: str) -> tuple[Any, Callable[[Any], None]]:
    """The launcher's own parser, and what it does with the arguments."""
    if name == _TORCHRUN:
        from torch.distributed.run import get_args_parser, run

        return get_args_parser(), run
    from accelerate.commands.launch import launch_command, launch_command_parser  # type: ignore[import-untyped]

    return launch_command_parser(), launch_command
