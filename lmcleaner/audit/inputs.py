"""What can be known to be wrong before a model is loaded, or torch."""

from pathlib import Path

from lmcleaner.audit.options import AuditOptions, VerifyOptions
from lmcleaner.audit.signature import check_public_key, check_unsigned
from lmcleaner.evaluation.spec import check_spec
from lmcleaner.formats.audit_document import AUDIT_FILE, EVALUATION, read_audit
from lmcleaner.formats.errors import NotFoundError, UsageError
from lmcleaner.training.sources import check_model


def check_to_audit(folder: Path, options: AuditOptions) -> None:
    """Makes sure that there is what an audit was asked to read.

    Args:
        folder: the output folder of `unlearn`.
        options: what to do.

    Raises:
        NotFoundError: the audit document, a model or rows to evaluate on aren't there.
        DamagedError: the audit document can't be read.
        UsageError: what names rows to evaluate on makes no sense.
        ExistsError: there is something to evaluate, and the document is signed.
    """
    read_audit(folder)
    for source in (options.model, options.gold):
        if source is not None:
            check_model(str(source))
    if options.evaluate is not None:
        check_spec(options.evaluate)
        check_unsigned(folder)


def check_to_verify(folder: Path, options: VerifyOptions) -> None:
    """Makes sure that there is what a verification was asked to read.

    Args:
        folder: the output folder of `unlearn`.
        options: what to do.

    Raises:
        NotFoundError: the audit document, a model, the rows, the folder of tasks or the key isn't there.
        DamagedError: the audit document can't be read.
        UsageError: the key is none to verify with, or what is said of an evaluation doesn't go with the document.
    """
    evaluation = read_audit(folder).get(EVALUATION)
    for source in (options.model, options.gold):
        if source is not None:
            check_model(str(source))
    for option in options.serving if evaluation is None else ():
        raise UsageError(f"{option} serves an evaluation, and the document holds none: {folder / AUDIT_FILE}")
    if options.evaluate is not None:
        check_spec(options.evaluate)
    if options.gold is not None and isinstance(evaluation, dict) and evaluation.get("gold") != "model":
        raise UsageError("--gold: the document says that its evaluation was against the oracle, which is replayed")
    if options.tasks_path is not None and not options.tasks_path.is_dir():
        raise NotFoundError(f"no such folder of tasks: {options.tasks_path}")
    if options.public_key is not None:
        check_public_key(options.public_key)
