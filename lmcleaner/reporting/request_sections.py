"""What was asked, what was done, and whether all of it was covered."""

from collections.abc import Mapping, Sequence
from typing import Any

from lmcleaner.formats.audit_document import Document
from lmcleaner.formats.wording import counted
from lmcleaner.reporting.markup import NOTHING, Html, code, folded, pairs, table
from lmcleaner.reporting.page import Section
from lmcleaner.reporting.values import at, shown


def asked(document: Document, texts: Mapping[str, str] | None) -> Section:
    """The requests.

    Args:
        document: a valid audit document.
        texts: text of each row by its digest; None shows digests alone.

    Returns:
        The section.
    """
    request = document["request"]
    summary = {
        "level": request["level"],
        "rows": len(request["samples"]),
        "in steps": len(request["steps"]),
        "new requests": len(document.get("requests", ())) or None,
        "requests served before": len(request.get("earlier", ())) or None,
        "digest of all of it": code(document["hashes"]["forget_set"]),
    }
    new = [_request(number, part) for number, part in enumerate(document.get("requests", ()), start=1)]
    earlier = [_request(number, part) for number, part in enumerate(request.get("earlier", ()), start=1)]
    columns = ["Number", "Level", "Rows", "Uses", "Steps", "Digest"]
    content = [
        pairs("The request as a whole", summary),
        table("Each new request", columns, new) if len(new) > 1 else NOTHING,
        table("Requests that were served before and hold on", columns, earlier),
        _rows(request["samples"], texts),
    ]
    return Section("What was asked", content)


def done(document: Document) -> Section:
    """How it was forgotten."""
    config = document["config"]
    how = {
        "mode": config.get("hessian_mode"),
        "propagation": config.get("propagation"),
        "K, steps after the last use": config.get("K"),
        "K settles at": config.get("settle_tolerance") if config.get("K") == "auto" else None,
        "denominator": config.get("denominator"),
        "damping": config.get("damping"),
        "rank": config.get("rank"),
        "log redacted": config.get("redact"),
        "entered in the log's ledger": config.get("entered"),
        "gradients computed": sum(window["gradients"] for window in document["windows"]),
        "curvature products computed": sum(window["hvp_calls"] for window in document["windows"]),
        "change of the parameters, norm": document["result"]["change_norm"],
        "device": at(document, "environment", "device"),
        "seconds": at(document, "timing", "seconds"),
    }
    return Section("What was done", [pairs("How the rows' influence was taken out", how), _tried(document)])


def covered(document: Document) -> Section:
    """Whether every use of every row was left out."""
    coverage = document["coverage"]
    counts = {
        "rows": coverage["samples"],
        "uses of them in the training": coverage["occurrences"],
        "steps with such a use": coverage["steps"],
        "uses missed": coverage["missed"],
    }
    return Section("Coverage", [pairs("What the sweep left out", counts)])


def _request(number: int, part: Document) -> list[object]:
    coverage = part["coverage"]
    counts = [len(part["samples"]), coverage["occurrences"], len(part["steps"])]
    return [number, part["level"], *counts, code(part["forget_set"])]


def _rows(digests: Sequence[str], texts: Mapping[str, str] | None) -> Html:
    rows = [[code(digest), None if texts is None else texts.get(digest)] for digest in digests]
    return folded(counted(len(digests), "row"), table("Rows by their digests", ["Row", "Text"], rows))


def _tried(document: Document) -> Html:
    """Modes that were tried before, where the mode was left open."""
    trials: Any = at(document, "result", "tried")
    rows = [[shown(at(trial, "mode")), at(trial, "error")] for trial in trials] if isinstance(trials, list) else []
    return table("Modes that were tried", ["Mode", "Estimated error"], rows)
