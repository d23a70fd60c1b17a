"""The files of an output folder, by their digests."""

import hashlib
from collections.abc import Set
from pathlib import Path

from lmcleaner.audit.requests import REQUESTS
from lmcleaner.formats.audit_document import AUDIT_FILE, Document

FILES = "files"


def file_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file that an unlearning run has written before its documents.

    Args:
        folder: the output folder.

    Returns:
        Path in the folder -> 64 hexadecimal digits.
    """
    return {path: _sha256(folder / path) for path in _paths(folder)}


def files_problem(document: Document, folder: Path) -> str | None:
    """What is wrong with the files that a document names; those that came later, such as a report, don't count.

    Args:
        document: the audit document.
        folder: the output folder.

    Returns:
        The problem, or None.
    """
    stated: dict[str, str] = document[FILES]
    there = set(_paths(folder))
    missing = sorted(stated.keys() - there)
    if missing:
        return f"{missing[0]}: it is missing"
    changed = (path for path in sorted(stated) if _sha256(folder / path) != stated[path])
    return next((f"{path}: it isn't the file that the run wrote" for path in changed), None)


def other_files(document: Document, folder: Path, known: Set[str]) -> list[str]:
    """Files that came later, such as a report, or one that whoever loads the model takes for a part of it.

    Args:
        document: the audit document, with `files`.
        folder: the output folder.
        known: what an audit writes and checks otherwise.

    Returns:
        Their paths in the folder, sorted.
    """
    return sorted({*_paths(folder)} - document[FILES].keys() - known)


def _paths(folder: Path) -> list[str]:
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in paths if path != Path(AUDIT_FILE) and path.parts[0] != REQUESTS)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
