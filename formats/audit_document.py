"""The audit document: what an unlearning run did, as JSON that anybody can check against the log."""

import json
import os
from pathlib import Path
from typing import Any

import jsonschema

from lmcleaner.formats.canonical import sha256_hex
from lmcleaner.formats.documents import load_schema
from lmcleaner.formats.errors import DamagedError, NotFoundError, VersionError

AUDIT_FILE = "audit.json"
AUDIT_SCHEMA = "lmcleaner-audit"
AUDIT_VERSION = 1
EVALUATION = "evaluation"

Document = dict[str, Any]


def schema_problems(document: Document) -> list[str]:
    """What breaks the schema, as "place: problem"; empty for a valid document."""
    validator = jsonschema.Draft202012Validator(load_schema("audit.schema.json"))
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]


def encode_audit(document: Document) -> bytes:
    """The bytes of a document's file.

    Args:
        document: a valid document; a NaN in it is a bug and raises ValueError.

    Returns:
        JSON for people and programs, the same for the same document.
    """
    problems = schema_problems(document)
    assert not problems, problems
    return (json.dumps(document, indent=2, allow_nan=False) + "\n").encode()


def write_audit(path: Path, content: bytes) -> None:
    """Writes a new file and flushes it to the disk."""
    path.parent.mkdir(exist_ok=True)
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def with_evaluation(folder: Path, evaluation: Document) -> Document:
    """Writes an evaluation into a document that is there, in place of an earlier one.

    Args:
        folder: output folder of an unlearning run.
        evaluation: what `evaluation` shall be.

    Returns:
        The document as it is then.
    """
    document = read_audit(folder) | {EVALUATION: evaluation}
    temporary = folder / f".{AUDIT_FILE}.{os.getpid()}"
    temporary.unlink(missing_ok=True)
    write_audit(temporary, encode_audit(document))
    temporary.replace(folder / AUDIT_FILE)
    return document


def as_unlearned(document: Document) -> Document:
    """What `unlearn` wrote: the document without its evaluation, which is added afterwards."""
    return {name: value for name, value in document.items() if name != EVALUATION}


def audit_sha256(folder: Path, document: Document) -> str:
    """SHA-256 of a document's file as `unlearn` wrote it.

    Args:
        folder: where the file lies.
        document: its content, which is valid.

    Returns:
        Hexadecimal digits. Of a document with an evaluation the rest is encoded again, which gives the bytes that
        `unlearn` wrote.
    """
    if EVALUATION not in document:
        return sha256_hex((folder / AUDIT_FILE).read_bytes())
    return sha256_hex(encode_audit(as_unlearned(document)))


def read_json(path: Path) -> Any:
    """Reads a file of JSON that nothing can be hidden in.

    Args:
        path: the file.

    Returns:
        Its content.

    Raises:
        FileNotFoundError: it isn't there.
        DamagedError: it isn't JSON, or says the same key twice, of which every reader takes another one.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"not JSON: {path}: {error}") from error


def _unique(pairs: list[tuple[str, Any]]) -> Document:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for place, (name, _) in enumerate(pairs) if name in dict(pairs[:place]))
        raise ValueError(f"the key {twice!r} twice in one object")
    return found


def read_audit(folder: Path) -> Document:
    """Reads a document, whatever its content is worth.

    Args:
        folder: output folder of an unlearning run.

    Returns:
        The document.

    Raises:
        NotFoundError: there is none.
        DamagedError: it isn't JSON, or not an audit document.
        VersionError: a later release wrote it.
    """
    path = folder / AUDIT_FILE
    if not path.is_file():
        raise NotFoundError(f"no audit document: {path}", hint="give the output folder of `lmcleaner unlearn`")
    document = read_json(path)
    if not isinstance(document, dict) or document.get("schema") != AUDIT_SCHEMA:
        raise DamagedError(f"not an audit document: {path}: expected schema {AUDIT_SCHEMA!r}")
    if document.get("version") != AUDIT_VERSION:
        raise VersionError(
            f"unknown version of an audit document: {path}: expected {AUDIT_VERSION}, "
            f"found {document.get('version')!r}",
            hint="a later release of lmcleaner wrote it; upgrade to check it",
        )
    return document
