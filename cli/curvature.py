"""`lmcleaner curvature`."""

from dataclasses import asdict
from typing import Annotated

import typer

from lmcleaner.choices import DEFAULT_RANK, CurvatureKind
from lmcleaner.cli.console import Reporter, human_bytes, print_json, print_text
from lmcleaner.cli.shared import DEFAULT_LOG, AsJson, Config, Device, Log, Model, Quiet


def curvature(
    log: Log = DEFAULT_LOG,
    kind: Annotated[
        CurvatureKind, typer.Option(help="Diagonal of the GGN or of the Hessian, or eigenpairs of the GGN.")
    ] = CurvatureKind.DIAG,
    rank: Annotated[int, typer.Option(help="Eigenpairs of low_rank.")] = DEFAULT_RANK,
    model: Model = None,
    device: Device = None,
    config: Config = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Estimate the curvature at each checkpoint of a finished log and store it, as record --curvature does.

    Example: `lmcleaner curvature my-log --kind low_rank`
    """
    from lmcleaner.recording.curvature import CurvatureOptions, record_curvature

    options = CurvatureOptions(kind=kind, rank=rank, model=model, device=device)
    with Reporter(quiet=quiet or as_json) as reporter:
        result = record_curvature(log, options, reporter)
    if as_json:
        print_json(asdict(result))
        return
    print_text(
        f"recorded {result.kind} from {len(result.steps)} checkpoints on, {human_bytes(result.num_bytes)}, "
        f"with {result.products} products"
    )
    shares = [share for share in result.captured if share is not None]
    if shares:
        print_text(f"captured {min(shares):.3f} to {max(shares):.3f} of the trace")
