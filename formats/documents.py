"""JSON from a store that isn't trusted: limited in size and depth, canonical, and checked against its schema."""

import json
from functools import cache
from importlib.resources import files
from typing import Any

import jsonschema

from lmcleaner.formats.arrays import group_metadata
from lmcleaner.formats.layout import METADATA, damaged
from lmcleaner.formats.store import Store

Json = dict[str, Any]

# Of one zarr.json. A parameter takes about 120 bytes of the manifest, a checkpoint about 700 of the commit record.
DOCUMENT_BYTES = 1 << 22


def read_attributes(store: Store, group: str) -> Json:
    """The attributes of a group, as canonical JSON holds them.

    Args:
        store: where the log lies.
        group: path of the group in the store; "" is the root.

    Returns:
        The attributes.

    Raises:
        DamagedError: the file isn't the canonical `zarr.json` of a group.
        FileNotFoundError: there is none.
    """
    key = metadata_key(group)
    data = store.read(key, 0, DOCUMENT_BYTES + 1)
    if len(data) > DOCUMENT_BYTES:
        raise damaged(store.location, key, f"expected at most {DOCUMENT_BYTES} bytes")
    try:
        document = json.loads(data, parse_constant=_refuse)
        attributes: Json = document["attributes"]
        canonical = group_metadata(attributes)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise damaged(store.location, key, f"expected the metadata of a Zarr group ({error})") from error
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
    return jsonschema.validators.extend(base, type_checker=checker)


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
