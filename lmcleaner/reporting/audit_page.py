"""What an audit checked and found, as a page."""

import shlex
from collections.abc import Mapping
from pathlib import Path

from lmcleaner.audit.check import AuditReport
from lmcleaner.formats.audit_document import EVALUATION, audit_sha256, read_audit
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.wording import counted
from lmcleaner.reporting.evaluation_sections import answers, evaluated_rows, metrics, row_changes
from lmcleaner.reporting.markup import (
    MAX_ROWS,
    Html,
    bullets,
    code,
    command,
    folded,
    joined,
    pairs,
    paragraph,
    table,
    tag,
)
from lmcleaner.reporting.page import Section, make_page
from lmcleaner.reporting.request_sections import asked, covered, done
from lmcleaner.reporting.stress_sections import deployment, relearning, reworded
from lmcleaner.reporting.sweep_sections import deviation, errors, windows
from lmcleaner.reporting.task_sections import ability
from lmcleaner.reporting.texts import row_texts

_FIRST_REASONS = 5  # that are read without opening anything


def audit_page(
    report: AuditReport,
    folder: Path,
    log_path: str,
    *,
    show_text: bool = False,
    model: str | None = None,
    named: Path | None = None,
) -> str:
    """A page of an audit that was made; it names rows by their digests.

    Args:
        report: of `audit_model`.
        folder: the output folder that was audited.
        log_path: the training log.
        show_text: shows the text of the rows as well, as far as the log holds it.
        model: where the base model with its tokenizer lies now, if it moved; for the text.
        named: where the folder will lie, if it is going to move.

    Returns:
        One HTML document that needs nothing beside itself. Of a document that breaks its schema it shows nothing but
        what the checks said.

    Raises:
        NotFoundError: the tokenizer isn't there.
        DamagedError: a row of the log can't be read.
    """
    place = named or folder
    sections = [_checks(report), _commands(place, log_path)]
    if report.checks["schema"] is None:
        log = TrainingLog(log_path)
        texts = row_texts(log, report.document["request"]["samples"][:MAX_ROWS], model) if show_text else None
        sections = [*_document_sections(report, folder, log, texts), *sections]
    return make_page(f"Audit of {place.resolve().name}", [_verdict(report)], sections)


def _document_sections(
    report: AuditReport, folder: Path, log: TrainingLog, texts: Mapping[str, str] | None
) -> list[Section]:
    document = report.document
    oracle = report.oracle if report.oracle is not None else document["oracle"]
    evaluation = report.evaluation or read_audit(folder).get(EVALUATION)
    evaluated = evaluated_rows(evaluation, document, log) if evaluation is not None else []
    return [
        asked(document, texts),
        done(document),
        covered(document),
        windows(document, log.num_steps),
        deviation(document, log.num_steps),
        errors(document, oracle, log.num_steps),
        answers(oracle),
        metrics(evaluation, row_changes(folder, evaluated, texts), is_fresh=report.evaluation is not None),
        deployment(evaluation),
        relearning(evaluation),
        reworded(evaluation),
        ability(evaluation),
        _hashes(report, folder),
    ]


def _verdict(report: AuditReport) -> Html:
    """The outcome in words; colour only repeats them."""
    failed = ", ".join(name for name, problem in report.checks.items() if problem is not None)
    passed = f"✗ The audit FAILED: {failed}." if failed else "✓ The audit passed."
    result = {
        "good": "✓ The result is good, by its own measures.",
        "poor": "✗ The result is poor, as the document itself says.",
    }.get(report.verdict, "✗ The document says nothing of its result.")
    left_out = f"{counted(len(report.unchecked), 'check')} could not be made." if report.unchecked else ""
    more = len(report.reasons) - _FIRST_REASONS
    content = [
        tag("p", passed, class_="good" if report.passed else "bad"),
        tag("p", result, class_="good" if report.verdict == "good" else "bad"),
        *([paragraph(left_out)] if left_out else []),
        *([bullets(report.reasons[:_FIRST_REASONS])] if report.reasons else []),
        *([folded(f"{counted(more, 'more reason')}", bullets(report.reasons[_FIRST_REASONS:]))] if more > 0 else []),
    ]
    return tag("div", *content, class_=f"verdict {'good' if report.is_good else 'bad'}")


def _checks(report: AuditReport) -> Section:
    made = [[name, "ok" if problem is None else "FAILED", problem] for name, problem in report.checks.items()]
    left_out = [[name, "not checked", reason] for name, reason in report.unchecked.items()]
    return Section("Checks", [table("Every check and its outcome", ["Check", "Outcome", "Why"], [*made, *left_out])])


def _hashes(report: AuditReport, folder: Path) -> Section:
    document = report.document
    named = {
        "log": document["hashes"]["log_root"],
        "model before": document["hashes"]["model_before"],
        "model after": document["hashes"]["model_after"],
        "forget set": document["hashes"]["forget_set"],
        "audit.json as unlearn wrote it": audit_sha256(folder, read_audit(folder)),
        "audit before": document["previous"],
    }
    own = pairs("SHA-256 digests", {name: code(digest) for name, digest in named.items() if digest is not None})
    files = [[name, code(digest)] for name, digest in sorted(document.get("files", {}).items())]
    listed = folded(
        f"Digests of {counted(len(files), 'file')}", table("SHA-256 of each file", ["File", "SHA-256"], files)
    )
    return Section("Hashes", [own, *([listed] if files else [])])


def _commands(folder: Path, log_path: str) -> Section:
    own = f"{shlex.quote(str(folder))} --log {shlex.quote(log_path)}"
    lines = {
        "every hash and every byte, a random part of the sweep, and the evaluation measured again": (
            f"lmcleaner audit verify {own}"
        ),
        "the same with the whole sweep": f"lmcleaner audit verify {own} --steps all",
        "the counterfactual run replayed, and the models compared anew": (
            f"lmcleaner audit {own} --oracle --evaluate log"
        ),
    }
    what = "This page proves nothing by itself. Whoever has the folder and the log can check all of it."
    return Section(
        "Verify again", [paragraph(what), bullets(joined([what, command(line)]) for what, line in lines.items())]
    )
