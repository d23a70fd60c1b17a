"""Other values in the places of those that a document states."""

import random
from pathlib import Path
from typing import Any

from lmcleaner.audit.requests import request_documents
from lmcleaner.formats.audit_document import encode_audit
from lmcleaner.formats.canonical import sha256_hex


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to all leaves of a document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, child in items for place in places(child, (*path, key))] or [path]


def changed(value: Any, draw: random.Random) -> Any:
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + draw.choice([-1, 1])
    if isinstance(value, float):
        return value * (1 + draw.choice([-1e-9, 1e-3, 0.5])) + 1e-12
    if isinstance(value, str) and value:
        place = draw.randrange(len(value))
        return value[:place] + ("0" if value[place] != "0" else "1") + value[place + 1 :]
    return {None: 0.5, "": "x"}.get(value) if not isinstance(value, dict | list) else "something"


def with_value(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy of a document with another value in a place."""
    if not path:
        return value
    copied = dict(document) if isinstance(document, dict) else list(document)
    copied[path[0]] = with_value(copied[path[0]], path[1:], value)
    return copied


def value_at(document: Any, path: tuple[Any, ...]) -> Any:
    """What stands in a place."""
    for key in path:
        document = document[key]
    return document


def write_whole(folder: Path, document: dict[str, Any]) -> None:
    """Writes a document, and those of its requests so that all digests fit."""
    content = encode_audit(document)
    (folder / "audit.json").write_bytes(content)
    for place, own in request_documents(document, sha256_hex(content)).items():
        (folder / place).write_bytes(encode_audit(own))
