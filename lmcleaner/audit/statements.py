"""Holds what an audit document says against what was found."""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from lmcleaner.choices import Level
from lmcleaner.formats.audit_document import Document
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.wording import counted
from lmcleaner.training.fingerprint import model_fingerprint
from lmcleaner.training.models import load_model
from lmcleaner.training.vectors import torch_dtype
from lmcleaner.unlearning.request import ForgetSet
from lmcleaner.unlearning.windows import Window


def unequal(what: str, stated: object, found: object) -> str | None:
    """What is wrong if both differ, else None."""
    return None if stated == found else f"{what}: the document says {stated}, found {found}"


def stated_request(document: Document, num_occurrences: int) -> ForgetSet:
    """The request of a document.

    Args:
        document: the audit document.
        num_occurrences: of what it names.

    Returns:
        The forget set.
    """
    request = document["request"]
    digests = frozenset(bytes.fromhex(digest) for digest in request["samples"])
    return ForgetSet(Level(request["level"]), digests, tuple(request["steps"]), num_occurrences)


def forget_set_problem(document: Document, forget_set: ForgetSet) -> str | None:
    """Whether the document's hash is that of its request."""
    return unequal("forget_set", document["hashes"]["forget_set"], forget_set.sha256)


def handled_problem(document: Document, num_occurrences: int) -> str | None:
    """Whether the windows left out as many rows as the request is about."""
    handled = sum(window.get("occurrences", 0) for window in document["windows"])
    return unequal("occurrences handled by the windows", handled, num_occurrences)


def stated_steps(document: Document) -> int | None:
    """K, the steps to carry after the last occurrence; None carries to the end of the run."""
    K = document["config"].get("K")  # noqa: N806 -- the paper's name
    return None if K == "all" else K


def windows_problem(document: Document, windows: Sequence[Window]) -> str | None:
    """Whether the stated windows are those of the request."""
    stated = [(window["tz"], window["tau"], window["K_used"]) for window in document["windows"]]
    return unequal("windows (tz, tau, K_used)", stated, [(w.first, w.end, w.K_used) for w in windows])


def verdict_problem(document: Document) -> str | None:
    """Whether the verdict goes with its reasons and with the oracle."""
    result, oracle = document["result"], document["oracle"]
    if (result["verdict"] == "poor") != bool(result["reasons"]):
        return f"the verdict is {result['verdict']} with {counted(len(result['reasons']), 'reason')}"
    if oracle is not None and oracle["relative_error"] >= 0.9 and result["verdict"] == "good":
        return f"a relative error of {oracle['relative_error']} can't be good"
    return None


def stated_model(document: Document, log: TrainingLog, folder: Path) -> tuple[nn.Module, str | None]:
    """The model in a folder, and whether it is the one that the document describes."""
    model: nn.Module = load_model(str(folder), torch_dtype(log.manifest.model.dtype), log.manifest.numerics.attention)
    return model, unequal("model_after", document["hashes"]["model_after"], model_fingerprint(model))
