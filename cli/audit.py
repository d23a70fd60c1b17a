"""`lmcleaner audit`."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lmcleaner.choices import Rounding, choose
from lmcleaner.cli.console import Reporter, print_error, print_json, print_text
from lmcleaner.cli.evaluation import print_evaluation
from lmcleaner.cli.shared import DEFAULT_LOG, AsJson, Config, Device, Model, Page, Quiet
from lmcleaner.formats.errors import InsufficientLogError, UsageError
from lmcleaner.formats.wording import counted

if TYPE_CHECKING:
    from lmcleaner.audit.check import AuditReport


_ASKED_BY = {"oracle": "oracle", "evaluation": "evaluate"}  # measurement -> its option
_NEVER_LEARNED = (
    "hint: record a run that learns the rows, by more --epochs or a higher --lr; `lmcleaner inspect` shows its loss, "
    "docs/quickstart.md has settings for a model that has learned nothing yet"
)
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Output folder of unlearn.")]
LogOption = Annotated[
    str | None,
    typer.Option(help="The training log; by default $LMCLEANER_LOG, then where the audit document says it lay."),
]


def audit(
    folder: Folder,
    log: LogOption = None,
    oracle: Annotated[bool, typer.Option("--oracle", help="Replay the counterfactual and measure against it.")] = False,
    model: Model = None,
    device: Device = None,
    evaluate: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help="Compare the logged, the unlearned and a gold model on rows: log (the log's own), tofu:forget10 "
            "(beside the recorded data, else from the hub), or a YAML file or folder that names rows as forget, "
            "retain, holdout, real_authors, world_facts. Written into DIR.",
        ),
    ] = None,
    gold: Annotated[
        Path | None,
        typer.Option(help="A model trained without the rows, to compare with; by default the oracle."),
    ] = None,
    deploy: Annotated[
        str | None,
        typer.Option(
            metavar="bf16,int8,int4",
            help="Evaluate once more with weights rounded to these; fails if what was forgotten comes back.",
        ),
    ] = None,
    stress: Annotated[
        bool,
        typer.Option(
            "--stress",
            help="Evaluate with paraphrased questions, and train the unlearned and the gold model on half of the rows "
            "to forget; fails if gold learns them more slowly.",
        ),
    ] = False,
    relearn_lr: Annotated[
        float | None, typer.Option(help="Learning rate of that training; by default the run's largest.")
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            metavar="mmlu,arc_easy",
            help="Run all three models on these tasks of the lm-evaluation-harness, too (extra `tasks`).",
        ),
    ] = None,
    tasks_path: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder with YAML files of further tasks for --tasks.")
    ] = None,
    tasks_limit: Annotated[
        int | None, typer.Option(metavar="N", help="Take the first N rows of each task only; to try things out.")
    ] = None,
    max_relative_error: Annotated[float, typer.Option(help="From it on --oracle fails; at most 0.9.")] = 0.9,
    html: Page = None,
    show_text: Annotated[
        bool, typer.Option("--show-text", help="With --html: show the text of the rows, as far as the log holds it.")
    ] = False,
    config: Config = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Check an unlearned model and its audit document against the log; exits with 1 as well if the verdict is poor.

    Example: `lmcleaner audit my-unlearned-model --log my-log --oracle --evaluate log`
    """
    from lmcleaner.audit.inputs import check_to_audit
    from lmcleaner.audit.options import AuditOptions

    roundings = [choose(Rounding, name, "deploy") for name in deploy.split(",")] if deploy else []
    _check_page(html, show_text)
    place = log or default_log(folder)
    options = AuditOptions(
        oracle=oracle, model=model, device=device, relative_error=max_relative_error, evaluate=evaluate, gold=gold,
        deploy=roundings, stress=stress, relearn_lr=relearn_lr, tasks=tasks.split(",") if tasks else (),
        tasks_path=tasks_path, tasks_limit=tasks_limit,
    )  # fmt: skip
    check_to_audit(folder, options)
    from lmcleaner.audit.check import audit_model

    with Reporter(quiet=quiet or as_json) as reporter:
        report = audit_model(folder, place, options, reporter)
    if as_json:
        print_json(report_json(report) | {"oracle": report.oracle, "evaluation": report.evaluation})
    else:
        _print_report(report)
    if html is not None:
        _write_page(html, report, folder, place, show_text=show_text, model=model)
        if not as_json:
            print_text(f"page  {html}")
    raise typer.Exit(_exit_code(report, options.measures))


def _exit_code(report: "AuditReport", wanted: Sequence[str]) -> int:
    """0, 1 where a check failed or the result is poor, or that of a log which no longer allows what was asked for."""
    missing = [name for name in wanted if name in report.unchecked]
    if report.passed and missing:
        error = InsufficientLogError(
            f"not measured, though asked for: {' and '.join(missing)}: {report.unchecked[missing[0]]}",
            hint="what else was checked is shown; measure before a redaction, or audit without "
            f"{' and '.join(f'--{_ASKED_BY[name]}' for name in missing)}",
        )
        print_error(error, as_json=False)
        return error.exit_code
    return 0 if report.is_good else 1


def _check_page(html: Path | None, show_text: bool) -> None:
    """Before anything is computed."""
    from lmcleaner.output import check_free

    if show_text and html is None:
        raise UsageError("--show-text belongs to --html: expected both, found --show-text alone")
    if html is not None:
        check_free(html, "--html")


def _write_page(
    html: Path, report: "AuditReport", folder: Path, log: str, *, show_text: bool, model: str | None
) -> None:
    from lmcleaner.output import write_file
    from lmcleaner.reporting.audit_page import audit_page

    write_file(html, audit_page(report, folder, log, show_text=show_text, model=model), "--html")


def default_log(folder: Path) -> str:
    """Where the log of an output folder lies, if nobody says it."""
    from lmcleaner.formats.audit_document import read_audit

    recorded = read_audit(folder).get("config", {}).get("log")
    return str(os.environ.get("LMCLEANER_LOG") or recorded or DEFAULT_LOG)


def report_json(report: "AuditReport") -> dict[str, Any]:
    """What both ways to check print with --json."""
    recorded = {"verdict": report.verdict, "reasons": report.reasons}
    return {"passed": report.passed, **recorded, "checks": report.checks, "unchecked": report.unchecked}


def print_checks(report: "AuditReport") -> None:
    """A line for each check."""
    for name, problem in report.checks.items():
        print_text(f"{name:<14} {'ok' if problem is None else f'FAILED: {problem}'}")
    for name, reason in report.unchecked.items():
        print_text(f"{name:<14} not checked: {reason}")


def _print_report(report: "AuditReport") -> None:
    print_checks(report)
    oracle = report.oracle
    if oracle is not None:
        print_text(f"relative error against the oracle {oracle['relative_error']:.4f}")
        for rows in ("forgotten", "retained"):
            for model in ("trained", "unlearned", "oracle"):
                answers = oracle[model][rows]
                if answers is not None:
                    print_text(
                        f"{rows:<10} {model:<10} answer probability {answers['answer_probability']:.4f}, KL from the "
                        f"oracle {answers['kl_from_oracle']:.4f}"
                    )
    if report.evaluation is not None:
        print_evaluation(report.evaluation)
    print_text(f"verdict of the unlearning, as recorded: {report.verdict}")
    for reason in report.reasons:
        print_text(f"  {reason}")
    left_out = f"; no longer possible: {counted(len(report.unchecked), 'check')}" if report.unchecked else ""
    print_text(f"audit passed{left_out}" if report.passed else "audit FAILED")
    if report.evaluation is not None and report.evaluation["void"] is not None:
        print_text(_NEVER_LEARNED)
    if report.passed and not report.is_good:
        print_text("the document is true, and says that the result is not good")
