"""`lmcleaner unlearn`."""

from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lmcleaner.choices import DEFAULT_RANK, Denominator, HessianMode, Level, Propagation
from lmcleaner.cli.console import Reporter, print_json, print_text
from lmcleaner.cli.shared import DEFAULT_LOG, AsJson, Config, Device, Log, Model, Quiet, default_of, parse_K
from lmcleaner.formats.wording import counted
from lmcleaner.unlearning.options import (
    AUTO,
    DEFAULT_DAMPING,
    DEFAULT_K,
    DEFAULT_SETTLE_TOLERANCE,
    DEFAULT_TOLERANCE,
    Thresholds,
    UnlearnOptions,
    mode_options,
)

if TYPE_CHECKING:
    from lmcleaner.unlearning.run import UnlearnResult

_FORGET = typer.Option(
    metavar="NAME|FILE|DIGESTS|steps:A,B-C",
    help="What to forget: a split of the recorded data set by its name, rows as --data names them, digests of samples "
    "(8 digits of each or more), or steps. Once for each request.",
)
Forget = Annotated[list[str], _FORGET]
OptionalForget = Annotated[list[str] | None, _FORGET]
NoLedger = Annotated[
    bool,
    typer.Option(
        "--no-ledger", help="For experiments: neither forget what earlier requests named, nor enter this one."
    ),
]
LevelOption = Annotated[
    Level | None,
    typer.Option(help="Leave rows out (sample) or skip their steps (batch); batch for steps:, else sample."),
]
KOption = Annotated[
    str,
    typer.Option(
        "--K",
        metavar="N|all|auto",
        help="Steps to carry the deviation after its last occurrence; auto until it settled.",
    ),
]
RankOption = Annotated[
    int | None, typer.Option(help=f"Eigenpairs that --hessian-mode low_rank keeps; {DEFAULT_RANK} by default.")
]


def _t(name: str) -> float:
    return float(default_of(Thresholds, name))


def unlearn(
    forget: Forget,
    log: Log = DEFAULT_LOG,
    output: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder to make; must not exist.")] = None,
    model: Model = None,
    device: Device = None,
    offload: Annotated[
        bool,
        typer.Option(
            "--offload", help="Keep the sweep's state in host memory; on an accelerator that has no room for it."
        ),
    ] = False,
    level: LevelOption = None,
    K: KOption = str(DEFAULT_K),  # noqa: N803 -- the paper's name
    settle_tolerance: Annotated[
        float, typer.Option(help="With --K auto: what the deviation may have left to move when a window ends.")
    ] = DEFAULT_SETTLE_TOLERANCE,
    hessian_mode: Annotated[
        str,
        typer.Option(
            metavar="|".join([*HessianMode, AUTO]),
            help="How the gradient without the rows is found. Take secant, with --K all, if the retained rows may be "
            "read: it is exact and costs least; if not, low_rank, diag or fisher. secant: computed, without error. "
            "exact, GGN, empirical_fisher: predicted by the Hessian, the Gauss-Newton matrix, or the rows' Fisher "
            "matrix of every step. diag, diag_hessian, low_rank: by an estimate of the GGN, or of the Hessian, between "
            "checkpoints. fisher: by the step's gradient times itself. auto: the cheapest with an estimated error "
            "within --tolerance, else secant. docs/choosing-a-mode.md compares them.",
        ),
    ] = HessianMode.GGN,
    tolerance: Annotated[
        float | None,
        typer.Option(help=f"Relative error that --hessian-mode auto lets a mode have; {DEFAULT_TOLERANCE} by default."),
    ] = None,
    propagation: Annotated[
        Propagation, typer.Option(help="Through the real optimizer, or the paper's form.")
    ] = Propagation.OPTIMIZER,
    denominator: Annotated[
        Denominator, typer.Option(help="Divide by all rows as logged, or by the retained ones.")
    ] = Denominator.LOGGED,
    damping: Annotated[float, typer.Option(help="λ in C + λI.")] = DEFAULT_DAMPING,
    rank: RankOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    oracle_sample: Annotated[
        float,
        typer.Option(
            metavar="PERCENT", help="Estimate the relative error from these per cent of the steps, taken twice."
        ),
    ] = 0.0,
    oracle: Annotated[bool, typer.Option("--oracle", help="Replay the counterfactual and measure against it.")] = False,
    redact: Annotated[
        bool,
        typer.Option(
            "--redact",
            help="Rewrite the log as that of the run without it, and delete what it was; with --hessian-mode secant "
            "--K all.",
        ),
    ] = False,
    keep_states: Annotated[
        int,
        typer.Option(
            metavar="N", help="States of the sweep to keep beside the model, so that audit verify need not begin anew."
        ),
    ] = 0,
    no_ledger: NoLedger = False,
    max_linearization_error: Annotated[float, typer.Option(help="With a median above it the verdict is poor.")] = _t(
        "linearization_error"
    ),
    max_settled: Annotated[
        float, typer.Option(help="With more left to move after a window that was cut, the verdict is poor.")
    ] = _t("settled"),
    min_surviving: Annotated[float, typer.Option(help="Below it the verdict is poor.")] = _t("surviving"),
    max_relative_error: Annotated[float, typer.Option(help="From it on the verdict is poor; at most 0.9.")] = _t(
        "relative_error"
    ),
    config: Config = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Remove the influence of samples or steps from the trained model.

    Example: `lmcleaner unlearn my-log --forget forget.jsonl --output my-unlearned-model --hessian-mode secant --K all`
    """
    options = UnlearnOptions(
        forget=forget, output=output, model=model, device=device, offload=offload, level=level, K=parse_K(K),
        settle_tolerance=settle_tolerance, **mode_options(hessian_mode, tolerance), propagation=propagation,
        denominator=denominator, damping=damping, rank=rank, dry_run=dry_run, oracle=oracle,
        oracle_sample=oracle_sample, redact=redact, keep_states=keep_states, ledger=not no_ledger,
        thresholds=Thresholds(
            linearization_error=max_linearization_error, settled=max_settled, surviving=min_surviving,
            relative_error=max_relative_error,
        ),
    )  # fmt: skip
    _check_inputs(log, options)
    from lmcleaner.unlearning.run import unlearn as run

    with Reporter(quiet=quiet or as_json) as reporter:
        result = run(log, options, progress=reporter)
    if as_json:
        print_json(result.document if result.document is not None else _dry_run_json(result))
    elif result.document is not None:
        _print_document(result.document, output)
    else:
        for line in (*result.lines, "dry run: nothing was changed"):
            print_text(line)
    if not result.is_good:
        raise typer.Exit(1)


def _check_inputs(log: str, options: UnlearnOptions) -> None:
    """What can be known to be wrong before torch is loaded."""
    from lmcleaner.formats.reader import TrainingLog
    from lmcleaner.output import check_free
    from lmcleaner.training.sources import check_model

    if options.output is not None:
        check_free(options.output)
    TrainingLog(log)
    if options.model is not None:
        check_model(options.model)


def _dry_run_json(result: "UnlearnResult") -> dict[str, Any]:
    return {
        "coverage": {
            "samples": len(result.forget_set.digests),
            "occurrences": result.forget_set.num_occurrences,
            "steps": len(result.forget_set.steps),
        },
        "requests": len(result.forget_set.new),
        "earlier": len(result.forget_set.earlier),
        "windows": [window.to_json() for window in result.windows],
        "plan": asdict(result.plan),
        "warnings": result.warnings,
    }


def _print_document(document: dict[str, Any], output: Path | None) -> None:
    coverage, result = document["coverage"], document["result"]
    handled = "skipped " if document["request"]["level"] == "batch" else "forgot  "
    print_text(f"{handled} {_uses(coverage)}, {coverage['missed']} missed")
    for part in document["requests"]:
        print_text(f"request  {_part_line(part)}; its own document: {part['document']}")
    for part in document["request"].get("earlier", ()):
        print_text(f"earlier  {_part_line(part)}")
    for window in document["windows"]:
        print_text(f"window   {_window_line(window)}")
    surviving = result["surviving"]
    print_text(
        f"change   norm {result['change_norm']:.4g}; after rounding {surviving['norm_ratio']:.3f} of it, cosine "
        f"{surviving['cosine']:.4f}"
    )
    if document["oracle"] is not None:
        print_text(f"oracle   relative error {document['oracle']['relative_error']:.4f}")
    print_text(f"verdict  {result['verdict']}")
    for reason in result["reasons"]:
        print_text(f"         {reason}")
    print_text(f"model    {output}")
    if document["config"]["redact"]:
        print_text("log      redacted: it is now that of the run without them")
    if document["config"]["ledger"]:
        print_text(
            f"ledger   {'entered' if document['config']['entered'] else 'NOT ENTERED: the log cannot be written'}"
        )


def _uses(coverage: dict[str, Any]) -> str:
    return (
        f"{counted(coverage['occurrences'], 'occurrence')} of {counted(coverage['samples'], 'sample')} in "
        f"{counted(coverage['steps'], 'step')}"
    )


def _part_line(part: dict[str, Any]) -> str:
    return f"{_uses(part['coverage'])} ({part['level']} level)"


def _window_line(window: dict[str, Any]) -> str:
    settled = window["settled"]
    return (
        f"steps {window['tz']} to {window['tau']}, {window['K_used']} of them after the last occurrence; "
        f"deviation {window['v_norm']:.4g}; "
        f"{counted(window['gradients'], 'gradient')}, {counted(window['hvp_calls'], 'product')}; linearization error "
        f"{_linearization(window)}; moved over the last tenth "
        f"{'unknown' if settled is None else f'{settled:.3f}'}{_extras(window)}"
    )


def _linearization(window: dict[str, Any]) -> str:
    """The median decides the verdict; the last one tells where the sweep ended."""
    errors = window["linearization_errors"].values()
    return f"{median(errors):.3f} in the median, {window['linearization_error']:.3f} at the end" if errors else "none"


def _extras(window: dict[str, Any]) -> str:
    captured = window["curvature_captured"]
    share = "" if captured is None else f"; curvature captured {captured:.3f}"
    return share + ("; no row was read" if window["data_free"] else "")
