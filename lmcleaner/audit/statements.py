"""Holds what an audit document says against what was found."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from torch import nn

from lmcleaner.audit.requests import REQUESTS, request_documents, stated_parts
from lmcleaner.choices import Steps
from lmcleaner.formats.audit_document import Document
from lmcleaner.formats.canonical import json_digest
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.wording import counted
from lmcleaner.training.fingerprint import model_fingerprint
from lmcleaner.training.models import load_unlearned
from lmcleaner.unlearning.request import ForgetSet, Request
from lmcleaner.unlearning.windows import Window, windows_in


def unequal(what: str, stated: object, found: object) -> str | None:
    """What is wrong if both differ, else None."""
    return None if stated == found else f"{what}: the document says {stated}, found {found}"


def stated_forget_set(document: Document) -> ForgetSet:
    """What a document says was left out.

    Args:
        document: the audit document.

    Returns:
        The forget set, with the numbers of occurrences that the document states.
    """
    return ForgetSet(stated_parts(document), document["coverage"]["occurrences"])


def forget_set_problem(document: Document, forget_set: ForgetSet) -> str | None:
    """Whether the document's hashes are those of its requests, and its request is their union."""
    stated = {name: document["request"].get(name) for name in forget_set.to_json()}
    parts = (*document.get(REQUESTS, ()), *document["request"].get("earlier", ()))
    own = [_part_problem(part, request) for part, request in zip(parts, forget_set.requests, strict=False)]
    return (
        unequal("forget_set", document["hashes"]["forget_set"], forget_set.sha256)
        or unequal("request, as a digest", json_digest(stated), forget_set.sha256)
        or next((problem for problem in own if problem is not None), None)
    )


def _part_problem(part: Document, request: Request) -> str | None:
    """Whether the hash and the counts of one request are those of what it names."""
    stated, counts = part["coverage"], (len(request.digests), len(request.steps))
    return unequal("forget_set", part["forget_set"], request.sha256) or unequal(
        "samples and steps of a request", (stated["samples"], stated["steps"]), counts
    )


def documents_problem(folder: Path, document: Document, audit_sha256: str) -> str | None:
    """Whether each request's own document lies beside the run's, and says nothing else.

    Args:
        folder: the output folder.
        document: the audit document of the run.
        audit_sha256: of its file.

    Returns:
        What is wrong, or None.
    """
    expected = request_documents(document, audit_sha256)
    found = {file.relative_to(folder).as_posix() for file in (folder / REQUESTS).glob("*")}
    problem = unequal("documents of requests", sorted(expected), sorted(found))
    if problem is not None:
        return problem
    different = (place for place, own in expected.items() if _json(folder / place) != own)
    return next((f"{place}: it isn't what the document of the run says of this request" for place in different), None)


def _json(file: Path) -> object:
    """Content of a file; None where that is no JSON."""
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError):
        return None


def handled_problem(document: Document, num_occurrences: int) -> str | None:
    """Whether the windows left out as many rows as the request is about."""
    handled = sum(window.get("occurrences", 0) for window in document["windows"])
    return unequal("occurrences handled by the windows", handled, num_occurrences)


def stated_steps(document: Document) -> Steps:
    """K, the steps to carry after the last occurrence."""
    K: int | str | None = document["config"].get("K")  # noqa: N806 -- the paper's name
    return None if K == "all" else cast(Steps, K)


def stated_windows(document: Document, log: TrainingLog, occurrence_steps: Sequence[int]) -> list[Window]:
    """The windows of a request; where K is "auto" they end where the document says that δ had settled.

    Args:
        document: the audit document.
        log: the training log.
        occurrence_steps: steps that the request must cover, ascending.

    Returns:
        Windows that cover all these steps, where the document can be right.
    """
    K = stated_steps(document)  # noqa: N806 -- the paper's name
    if K != "auto":
        return [*windows_in(log, occurrence_steps, K)]
    windows, steps = list[Window](), list(occurrence_steps)
    ends = [window["tau"] for window in document["windows"]]
    while steps:
        longest = windows_in(log, steps, K)[0]
        end = ends[len(windows)] if len(windows) < len(ends) else longest.end
        is_possible = longest.first < end <= longest.end and end in log.readable_steps
        windows.append(longest.ending_at(end, occurrence_steps) if is_possible else longest)
        steps = [step for step in steps if step >= windows[-1].end]
    return windows


def windows_problem(document: Document, windows: Sequence[Window]) -> str | None:
    """Whether the stated windows are those of the request."""
    stated = [(window["tz"], window["tau"], window["K_used"]) for window in document["windows"]]
    return unequal("windows (tz, tau, K_used)", stated, [(w.first, w.end, w.K_used) for w in windows])


def edges_problem(document: Document, windows: Sequence[Window]) -> str | None:
    """Whether the stated windows begin where a sweep does, and name their last occurrence; earlier releases may not."""
    pairs = zip(document["windows"], windows, strict=True)
    own = (unequal(name, one[name], value) for one, w in pairs for name, value in w.to_json().items() if name in one)
    return next((problem for problem in own if problem is not None), None)


def verdict_problem(document: Document) -> str | None:
    """Whether the verdict goes with its reasons and with the oracle."""
    result, oracle = document["result"], document["oracle"]
    if (result["verdict"] == "poor") != bool(result["reasons"]):
        return f"the verdict is {result['verdict']} with {counted(len(result['reasons']), 'reason')}"
    if oracle is not None and oracle["relative_error"] >= 0.9 and result["verdict"] == "good":
        return f"a relative error of {oracle['relative_error']} can't be good"
    return None


def stated_model(
    document: Document, log: TrainingLog, folder: Path, source: str | None = None
) -> tuple[nn.Module, str | None]:
    """The model in a folder, and whether it is the one that the document describes."""
    model = load_unlearned(log.manifest, folder, source)
    return model, unequal("model_after", document["hashes"]["model_after"], model_fingerprint(model))
