"""`lmcleaner audit verify` and `lmcleaner audit sign`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from lmcleaner.cli.audit import Folder, LogOption, default_log, print_checks, report_json
from lmcleaner.cli.console import Reporter, print_json, print_text
from lmcleaner.cli.shared import AsJson, Config, Device, Model, Quiet, parse_steps
from lmcleaner.formats.wording import counted


def verify(
    folder: Folder,
    log: LogOption = None,
    steps: Annotated[
        str,
        typer.Option(metavar="N|all", help="About how many steps of the sweep to take again; one stretch at least."),
    ] = "20",
    seed: Annotated[int | None, typer.Option(help="Draws the stretches that an earlier verification told.")] = None,
    public_key: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The document must be signed, and this be the signer's key in PEM."),
    ] = None,
    no_evaluation: Annotated[
        bool,
        typer.Option("--no-evaluation", help="Don't measure the document's evaluation again; it is unchecked then."),
    ] = False,
    evaluate: Annotated[
        str | None, typer.Option(metavar="SPEC", help="Where the evaluated rows lie now, if they moved.")
    ] = None,
    gold: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the evaluation's gold model lies now, if it moved.")
    ] = None,
    tasks_path: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where the YAML files of its tasks lie; never taken from the document, since they can hold code.",
        ),
    ] = None,
    evaluation_tolerance: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="How far numbers may be from those measured again; by default 0 on the CPU and with the libraries "
            "that measured them, else 1e-3.",
        ),
    ] = None,
    oracle: Annotated[
        bool, typer.Option("--oracle", help="Replay the counterfactual, and compare what the document says of it.")
    ] = False,
    model: Model = None,
    device: Device = None,
    config: Config = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Check everything that audit checks, every byte of log and folder, a random part of the sweep, and the evaluation.

    States that `unlearn --keep-states N` kept divide a window into N stretches; without them it is taken as a whole. An
    evaluation is measured again, which takes as long as it took, and changes nothing.

    Example: `lmcleaner audit verify my-unlearned-model --log my-log`
    """
    from lmcleaner.audit.inputs import check_to_verify
    from lmcleaner.audit.options import VerifyOptions

    number = parse_steps(steps, "--steps")
    options = VerifyOptions(
        steps=number, seed=seed, public_key=public_key, model=model, device=device, evaluation=not no_evaluation,
        evaluate=evaluate, gold=gold, tasks_path=tasks_path, evaluation_tolerance=evaluation_tolerance, oracle=oracle,
    )  # fmt: skip
    check_to_verify(folder, options)
    from lmcleaner.audit.verify import verify_audit

    with Reporter(quiet=quiet or as_json) as reporter:
        report = verify_audit(folder, log or default_log(folder), options, reporter)
    if as_json:
        print_json(report_json(report) | {"sweep": report.sweep, "remeasured": report.remeasured})
    else:
        print_checks(report)
        if report.sweep is not None:
            print_text(_sweep_line(report.sweep))
        if report.remeasured is not None:
            print_text(_remeasured_line(report.remeasured))
        left_out = f"; not checked: {', '.join(report.unchecked)}" if report.unchecked else ""
        print_text(f"verified{left_out}" if report.passed else "verification FAILED")
    if not report.is_good:
        raise typer.Exit(1)


def sign(
    folder: Folder,
    key: Annotated[Path, typer.Option(metavar="FILE", help="Private ed25519 key in PEM.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a signature that lies there.")] = False,
    config: Config = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Sign an audit document; the signature lies beside it, and OpenSSL can check it as well.

    Example: `lmcleaner audit sign my-unlearned-model --key key.pem`
    """
    from lmcleaner.audit.signature import sign_audit

    path = sign_audit(folder, key, overwrite=overwrite)
    if as_json:
        print_json({"signature": str(path)})
    elif not quiet:
        print_text(f"signed   {path}")


def _sweep_line(sweep: dict[str, object]) -> str:
    error = sweep["relative_error"]
    found = "the same bits" if error == 0.0 else f"a relative error of {error:.2g}"
    return f"{sweep['steps']} of {sweep['of_steps']} steps taken again (--seed {sweep['seed']}): {found}"


def _remeasured_line(found: dict[str, Any]) -> str:
    apart = f"up to {found['largest_difference']:.1e} apart, at {found['at']}; {found['tolerance']:g} may be"
    said = apart if found["largest_difference"] else "the same to the bit"
    return f"{counted(found['values'], 'value')} measured again: {said}"
