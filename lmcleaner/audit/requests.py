"""What an audit document says of each request, and the document of one request alone."""

from typing import Any

from lmcleaner.choices import Level
from lmcleaner.formats.audit_document import Document
from lmcleaner.unlearning.request import Request

REQUESTS = "requests"  # folder beside the audit document


def stated_part(request: Request) -> dict[str, Any]:
    """What an audit document says of one request.

    Args:
        request: one of those that were served.

    Returns:
        Level, samples, steps, coverage and hash; where its own document lies, or, of an earlier request, the digest of
        the ledger's entry.
    """
    part = {
        **request.to_json(),
        "coverage": {
            "samples": len(request.digests),
            "occurrences": request.num_occurrences,
            "steps": len(request.steps),
            "missed": 0,
        },
        "forget_set": request.sha256,
    }
    return part | ({"entry": request.entry} if request.entry else {"document": _place(request.sha256)})


def stated_parts(document: Document) -> tuple[Request, ...]:
    """The requests of a document.

    Args:
        document: the audit document.

    Returns:
        The new ones and then the earlier ones; of a document from before there were several, the only one.
    """
    if REQUESTS not in document:
        return (_request(document["request"] | {"coverage": document["coverage"]}),)
    return tuple(_request(part) for part in (*document[REQUESTS], *document["request"].get("earlier", ())))


def request_documents(document: Document, audit_sha256: str) -> dict[str, Document]:
    """The document of each new request, which its requester can be given: it names nothing of the others.

    Args:
        document: the audit document of the whole run.
        audit_sha256: of its file.

    Returns:
        Path beside the audit document -> the run's document with the request's own samples, steps, coverage and hash.
        The hash of the union with which it was served is `union`, that of the whole run's document `audit`.
    """
    return {part["document"]: _own_document(document, part, audit_sha256) for part in document.get(REQUESTS, ())}


def _own_document(document: Document, part: dict[str, Any], audit_sha256: str) -> Document:
    hashes = document["hashes"]
    return {
        **{name: value for name, value in document.items() if name != REQUESTS},
        "request": {name: part[name] for name in ("level", "samples", "steps")},
        "coverage": part["coverage"],
        "hashes": hashes | {"forget_set": part["forget_set"], "union": hashes["forget_set"], "audit": audit_sha256},
    }


def _request(part: dict[str, Any]) -> Request:
    digests = frozenset(bytes.fromhex(digest) for digest in part["samples"])
    occurrences = part["coverage"]["occurrences"]
    return Request(Level(part["level"]), digests, tuple(part["steps"]), occurrences, entry=part.get("entry"))


def _place(forget_set: str) -> str:
    return f"{REQUESTS}/{forget_set[:16]}.json"
