"""Arguments that all commands share, and where their defaults come from."""

from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from typer.core import TyperCommand

from lmcleaner.choices import Steps

DEFAULT_LOG = "lmcleaner-log"
_SCRIPT = "lmcleaner.script"


def load_config(context: typer.Context, path: Path | None) -> Path | None:
    """Takes the options of a YAML file as defaults, so that a flag on the command line wins.

    Args:
        context: the command being parsed.
        path: the file, or None.

    Returns:
        The path as it came.

    Raises:
        BadParameter: the file isn't there, isn't a mapping, or names an option that the command hasn't.
    """
    if path is None:
        return None
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"can't read {path}: {error}") from error
    if not isinstance(values, dict):
        raise typer.BadParameter(f"{path}: expected a mapping of option names, found {type(values).__name__}")
    names = {_flag(option): parameter.name for parameter in context.command.params for option in parameter.opts}
    unknown = sorted(str(key) for key in values if _flag(str(key)) not in names)
    if unknown:
        raise typer.BadParameter(f"{path}: no such option: {unknown[0]}; expected one of {sorted(names)}")
    several = {str(parameter.name) for parameter in context.command.params if getattr(parameter, "multiple", False)}
    named = {str(names[_flag(str(key))]): value for key, value in values.items()}
    context.default_map = {
        name: [value] if name in several and not isinstance(value, list) else value for name, value in named.items()
    }
    return path


def _flag(option: str) -> str:
    return option.lstrip("-").replace("_", "-").lower()


Log = Annotated[
    str, typer.Argument(envvar="LMCLEANER_LOG", help="Folder, zip file or URL of the training log.", show_default=True)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print exactly one JSON document to stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Say nothing on stderr but errors.")]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        callback=load_config,
        is_eager=True,
        metavar="FILE.yaml",
        help="Options by their long names; a flag on the command line wins.",
    ),
]
Model = Annotated[
    str | None, typer.Option("--model", metavar="DIR_OR_NAME", help="Where the base model lies now, if it moved.")
]

Device = Annotated[
    str | None,
    typer.Option(metavar="cpu|cuda|cuda:N", help="Where to compute; as the run did, where this machine can."),
]


Page = Annotated[
    Path | None,
    typer.Option("--html", metavar="FILE", help="Write a page that is one file, for a browser or a printer."),
]


class ScriptCommand(TyperCommand):
    """A command that takes another one behind `--`, with options of its own."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keeps what stands behind `--` for `script_of`."""
        if "--" in args:
            place = args.index("--")
            ctx.meta[_SCRIPT] = args[place + 1 :]
            args = args[:place]
        return super().parse_args(ctx, args)


def script_of(context: typer.Context | None) -> list[str] | None:
    """What stands behind `--`; None without one."""
    script: list[str] | None = context.meta.get(_SCRIPT) if context is not None else None
    return script


def default_of(options: type, name: str) -> Any:
    """The default of a field, so that it is written down once."""
    found = next(field.default for field in fields(options) if field.name == name)
    assert found is not MISSING, name
    return found


def parse_K(text: str) -> Steps:  # noqa: N802 -- the paper's name
    """A number of steps, None for "all", or "auto".

    Raises:
        BadParameter: none of them.
    """
    return "auto" if text == "auto" else parse_steps(text, "--K", "a number of steps, 'all' or 'auto'")


def parse_steps(text: str, option: str = "--replay", expected: str = "a number of steps or 'all'") -> int | None:
    """A number of steps, or None for "all".

    Args:
        text: what the user wrote.
        option: for which option.
        expected: what it could have been, for the message.

    Returns:
        The number.

    Raises:
        BadParameter: neither.
    """
    if text == "all":
        return None
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"{option}: expected {expected}, found {text!r}") from None
