"""Entry point: the commands, and every error with its exit code."""

import functools
import itertools
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from lmcleaner.cli.audit import audit
from lmcleaner.cli.audit_verify import sign, verify
from lmcleaner.cli.console import print_error
from lmcleaner.cli.curvature import curvature
from lmcleaner.cli.inspect import inspect
from lmcleaner.cli.prune import prune
from lmcleaner.cli.record import record
from lmcleaner.cli.run import run
from lmcleaner.cli.shared import ScriptCommand, script_of
from lmcleaner.cli.unlearn import unlearn
from lmcleaner.formats.errors import LmcleanerError, UsageError, memory_shortage

BUG = 70
INTERRUPTED = 130
UNREAD = 141  # as a shell says of a program that SIGPIPE ended


class _Commands(TyperGroup):
    """Commands of which some have two words; a wrong command line is an error as every other one."""

    def main(self, args: Sequence[str] | None = None, *others: Any, **named: Any) -> Any:
        """Runs a command line and ends the process, see `TyperGroup.main`."""
        words = sys.argv[1:] if args is None else args
        if not words or not named.get("standalone_mode", True):  # without a word the help is shown
            return super().main(args, *others, **named)
        try:
            sys.exit(super().main(args, *others, **named | {"standalone_mode": False}))
        except Exception as error:
            if not _is_of_command_line(error):
                raise
            own = itertools.takewhile(lambda word: word != "--", words)  # behind it are a script's
            print_error(_usage_error(error), as_json="--json" in own)
            sys.exit(UsageError.exit_code)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Takes the second word for the command's where there is such a command."""
        two_words = " ".join(args[:2])
        return super().resolve_command(ctx, [two_words, *args[2:]] if two_words in self.commands else args)


app = typer.Typer(
    name="lmcleaner",
    cls=_Commands,
    help="Record fine-tuning runs, remove the influence of training samples, and prove it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _is_of_command_line(error: Exception) -> bool:
    """Whether typer raised it over a command line; its classes are private in some versions."""
    return hasattr(error, "format_message")


def _usage_error(error: Any) -> UsageError:
    """What typer has to say of a command line, as our own errors say it."""
    message = error.format_message().rstrip(".")
    command = error.ctx.command_path if error.ctx is not None else "lmcleaner"
    return UsageError(message[:1].lower() + message[1:], hint=f"`{command} --help` explains the options")


def _print_version(value: bool) -> None:
    if value:
        sys.stdout.write(f"lmcleaner {version('lmcleaner')}\n")
        raise typer.Exit


@app.callback()
def _root(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


def _with_exit_codes(command: Callable[..., None]) -> Callable[..., None]:
    """The command, with every error printed and turned into its exit code."""

    @functools.wraps(command)
    def guarded(**options: Any) -> None:
        try:
            if script_of(options.get("context")) is None:
                _quieten_libraries()
            command(**options)
            sys.stdout.flush()
        except typer.Exit:
            raise
        except BrokenPipeError as error:
            _close_stdout()
            raise typer.Exit(UNREAD) from error
        except LmcleanerError as error:
            print_error(error, as_json=options["as_json"])
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as error:
            sys.stderr.write("interrupted\n")
            raise typer.Exit(INTERRUPTED) from error
        except Exception as error:
            raise typer.Exit(_unexpected(error, as_json=options["as_json"])) from error

    return guarded


def _close_stdout() -> None:
    """Lets what is still buffered for a reader that went away, such as `head`, go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _unexpected(error: Exception, *, as_json: bool) -> int:
    """Exit code of an error that no code of ours raised on purpose."""
    shortage = memory_shortage(error)
    if shortage is not None:
        print_error(shortage, as_json=as_json)
        return shortage.exit_code
    if _is_of_command_line(error):
        raise error  # for `_Commands.main`
    traceback.print_exception(error)
    bug = LmcleanerError(
        f"a bug in lmcleaner: {type(error).__name__}: {error}", hint="please report it with the lines above"
    )
    print_error(bug, as_json=as_json)
    return BUG


def _quieten_libraries() -> None:
    """Keeps the libraries' own bars and warnings away from stderr, before any of them is imported."""
    import logging
    import warnings

    warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated", FutureWarning)  # PEFT still asks so
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # PEFT loads it; it warns of kernels of 4-bit layers
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")


app.command(cls=ScriptCommand)(_with_exit_codes(record))
for _command in (inspect, unlearn, audit, prune, curvature, run):
    app.command()(_with_exit_codes(_command))
app.command("audit verify")(_with_exit_codes(verify))
app.command("audit sign")(_with_exit_codes(sign))


def main() -> None:
    """Runs the command line."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
