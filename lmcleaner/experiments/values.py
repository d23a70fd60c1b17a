"""From values of a YAML file to options: the option classes say which keys there are, and check them."""

import re
from collections.abc import Collection, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from lmcleaner.experiments.marked import Marked
from lmcleaner.formats.errors import UsageError

Options = TypeVar("Options")
_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}


def check_keys(section: Mapping[str, Marked], known: Collection[str]) -> None:
    """Makes sure that all keys are known.

    Raises:
        UsageError: one isn't; with the known one that it looks like.
    """
    for key, marked in section.items():
        if key in known:
            continue
        lower = {name.lower(): name for name in known}
        close = get_close_matches(key.lower(), lower, n=1)
        hint = f"did you mean {lower[close[0]]}?" if close else None
        raise UsageError(f"{marked.place}: no such key: expected one of {sorted(known)}", hint=hint)


def keys_of(options: type, without: Collection[str] = ()) -> set[str]:
    """The fields of an option class that may be keys."""
    return {field.name for field in fields(options)} - set(without)


def values_for(options: type, section: Mapping[str, Marked]) -> dict[str, Any]:
    """Arguments of an option class.

    Args:
        options: the class.
        section: keys and their values; keys that aren't the class's are left out.

    Returns:
        Values of the types that the class expects.

    Raises:
        UsageError: a value is of another type.
    """
    hints = get_type_hints(options)
    names = keys_of(options)
    return {name: _converted(marked, hints[name]) for name, marked in section.items() if name in names}


def built(options: type[Options], section: Mapping[str, Marked], values: Mapping[str, Any], place: str) -> Options:
    """Options, with the place of what is wrong in messages.

    Args:
        options: the class.
        section: where the values stand.
        values: its arguments.
        place: of the whole section.

    Returns:
        The options.

    Raises:
        UsageError: what the class refuses.
    """
    missing = [f.name for f in fields(options) if f.name not in values and _is_required(f)]  # type: ignore[arg-type]
    if missing:
        raise UsageError(f"{place}: {missing[0]} is missing")
    try:
        return options(**values)
    except UsageError as error:
        named = [name.replace("-", "_") for name in re.findall(r"--([A-Za-z][\w-]*)", error.message)]
        where = next((section[name].place for name in named if name in section), place)
        raise UsageError(f"{where}: {error.message}", hint=error.hint) from error


def _is_required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _converted(marked: Marked, hint: Any) -> Any:
    expected: list[str] = []
    for kind in get_args(hint) if get_origin(hint) in {Union, UnionType} else (hint,):
        if is_dataclass(kind):
            return _nested(marked, kind)  # type: ignore[arg-type]
        is_one, value = _as(kind, marked.plain)
        if is_one:
            return value
        expected += [_WORDS[kind]] if kind in _WORDS else []
    raise UsageError(f"{marked.place}: expected {' or '.join(expected) or 'another value'}, found {marked.plain!r}")


def _nested(marked: Marked, kind: type) -> Any:
    section = marked.mapping()
    check_keys(section, keys_of(kind))
    return built(kind, section, values_for(kind, section), marked.place)


def _as(kind: Any, value: Any) -> tuple[bool, Any]:
    """Whether a value is of a type, and what it is then."""
    if kind is NoneType:
        return value is None, None
    if get_origin(kind) is Literal:
        return value in get_args(kind), value
    if get_origin(kind) is not None:  # a sequence of texts
        return isinstance(value, list) and all(isinstance(entry, str) for entry in value), value
    if kind is Path:
        return isinstance(value, str), Path(str(value))
    if kind is float:
        return _as_float(value)
    if issubclass(kind, StrEnum):
        return isinstance(value, str), value
    return isinstance(value, kind) and not (kind is int and isinstance(value, bool)), value


def _as_float(value: Any) -> tuple[bool, float]:
    """YAML 1.1 takes 1e-4, which lacks a point, for text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return False, 0.0
    try:
        return True, float(value)
    except ValueError:
        return False, 0.0
