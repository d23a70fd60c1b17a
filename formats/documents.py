"""JSON from a store that isn't trusted: limited in size and depth, canonical, and checked against its schema."""

import json
import math
import re
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import Any

import jsonschema

from lmcleaner.formats.arrays import group_metadata
from lmcleaner.formats.errors import DamagedError
from lmcleaner.formats.layout import METADATA, SCHEMA, damaged
from lmcleaner.formats.store import Store

Json = dict[str, Any]

# Of one zarr.json. A parameter takes about 120 bytes of the manifest, a checkpoint about 700 of the commit record.
DOCUMENT_BYTES = 1 << 22


def read_attributes(store: Store, group: str, limit: int = DOCUMENT_BYTES) -> Json:
    """The attributes of a group, as canonical JSON holds them.

    Args:
        store: where the log lies.
        group: path of the group in the store; "" is the root.
        limit: the most bytes that the file may have.

    Returns:
        The attributes.

    Raises:
        DamagedError: the file isn't the canonical `zarr.json` of a group.
        FileNotFoundError: there is none.
    """
    key = metadata_key(group)
    data = store.read(key, 0, limit + 1)
    if len(data) > limit:
        raise damaged(store.location, key, f"expected at most {limit} bytes")
    try:
        document = json.loads(data, parse_constant=_refuse)
        attributes: Json = document["attributes"]
        canonical = group_metadata(attributes)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise damaged(store.location, key, f"expected the metadata of a Zarr group ({error})") from error
    if not group and attributes.get("schema") != SCHEMA:
        raise DamagedError(
            f"not a training log: {store.location}: expected schema {SCHEMA!r}, found {attributes.get('schema')!r}"
        )
    if canonical != data:
        raise damaged(store.location, key, "expected the canonical metadata of a Zarr group, found another")
    return attributes


def metadata_key(path: str) -> str:
    """Where the metadata of a group or an array lies."""
    return f"{path}/{METADATA}" if path else METADATA


def problem_of(document: Json, schema: str) -> str | None:
    """The first thing that is wrong with a document.

    Args:
        document: what to check.
        schema: file name of the JSON Schema.

    Returns:
        Place and problem, or None.
    """
    problem = next(iter(_validator()(load_schema(schema)).iter_errors(document)), None)
    return None if problem is None else f"{problem.json_path}: {problem.message[:200]}"


@cache
def _validator() -> Any:
    """Draft 2020-12, but 5.0 is no integer: it would be a float in Python."""
    base = jsonschema.Draft202012Validator
    checker = base.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int)
    return jsonschema.validators.extend(  # type: ignore[no-untyped-call]
        base, {"items": _items}, type_checker=checker
    )


def _items(validator: Any, items: Json, instance: Any, _: Json) -> Iterator[Any]:
    """The keyword `items`, fast: a record may hold half a million numbers, or tens of thousands of parameters.

    Yields:
        What is wrong with an item.
    """
    for number, item in enumerate(instance if type(instance) is list else ()):
        if not _fits(item, items):
            yield from validator.descend(item, items, path=number)


def _fits(value: Any, schema: Json) -> bool:
    """Whether a value is right for sure; where it isn't, the validator decides."""
    kind = type(value)
    if kind is not _SIMPLE.get(schema.get("type", "")) or not schema.keys() <= _UNDERSTOOD:
        return False
    if kind is int:
        return bool(schema.get("minimum", -math.inf) <= value <= schema.get("maximum", math.inf))
    if kind is str and "pattern" in schema and re.search(schema["pattern"], value) is None:
        return False
    if kind is not dict:
        is_short = len(value) <= schema.get("maxLength" if kind is str else "maxItems", math.inf)
        return is_short and (kind is str or all(_fits(item, schema.get("items", {})) for item in value))
    return all(name in value for name in schema.get("required", ())) and all(
        _fits(value[name], inner) for name, inner in schema.get("properties", {}).items() if name in value
    )


_SIMPLE: dict[str, type] = {"object": dict, "array": list, "string": str, "integer": int}
_UNDERSTOOD = {"type", "required", "properties", "items", "maxItems", "minimum", "maximum", "maxLength", "pattern"}


@cache
def load_schema(name: str) -> Json:
    """A JSON Schema that ships with the package.

    Args:
        name: file name, such as "manifest.schema.json".

    Returns:
        The schema.
    """
    schema: Json = json.loads(files("lmcleaner.formats").joinpath(name).read_text(encoding="utf-8"))
    return schema


def _refuse(constant: str) -> float:
    raise ValueError(f"found {constant}, which JSON has no word for")
