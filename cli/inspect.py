"""`lmcleaner inspect`."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lmcleaner.choices import HessianMode
from lmcleaner.cli.console import human_bytes, print_json, print_text, sparkline, spelled
from lmcleaner.cli.shared import DEFAULT_LOG, AsJson, Config, Device, Log, Model, Page, Quiet, parse_K, parse_steps
from lmcleaner.cli.unlearn import KOption, LevelOption, NoLedger, OptionalForget, RankOption
from lmcleaner.cli.verification import show_verification
from lmcleaner.formats.errors import UsageError
from lmcleaner.formats.wording import counted
from lmcleaner.unlearning.options import DEFAULT_K, UnlearnOptions

if TYPE_CHECKING:
    from lmcleaner.formats.reader import TrainingLog
    from lmcleaner.formats.steps import StepRecord
    from lmcleaner.inspection.summary import Summary


def inspect(
    log: Log = DEFAULT_LOG,
    verify: Annotated[bool, typer.Option("--verify", help="Read everything once and name what is damaged.")] = False,
    replay: Annotated[
        str | None, typer.Option(metavar="N|all", help="With --verify: replay the first N steps and compare the bits.")
    ] = None,
    sizes: Annotated[bool, typer.Option("--sizes", help="Show what each array takes.")] = False,
    step: Annotated[int | None, typer.Option(metavar="T", help="Show one step.")] = None,
    find: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="List samples that hold a text, by the digests that --forget takes; exits with 1 if none does.",
        ),
    ] = None,
    redacted: Annotated[
        bool, typer.Option("--redacted", help="List redacted samples, and look whether they have left the disk.")
    ] = False,
    requests: Annotated[
        bool, typer.Option("--requests", help="List the requests that were served, as the log's ledger holds them.")
    ] = False,
    html: Page = None,
    forget: OptionalForget = None,
    plan: Annotated[bool, typer.Option("--plan", help="What --forget would cost in each mode.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="With --plan: by the run's own step times, without loading the model.")
    ] = False,
    no_ledger: NoLedger = False,
    level: LevelOption = None,
    K: KOption = str(DEFAULT_K),  # noqa: N803 -- the paper's name
    rank: RankOption = None,
    model: Model = None,
    device: Device = None,
    config: Config = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Show and verify a log, find samples in it, plan a request.

    Example: `lmcleaner inspect my-log --forget forget.jsonl --plan`
    """
    _check_combination([
        verify,
        sizes,
        step is not None,
        find is not None,
        redacted,
        requests,
        html is not None,
        bool(forget),
    ])
    _check_companions(verify, replay, forget, plan, rank, quick)
    from lmcleaner.formats.reader import TrainingLog

    opened = TrainingLog(log)
    if verify:
        steps = parse_steps(replay) if replay is not None else 0
        show_verification(opened, steps, model, device, quiet=quiet, as_json=as_json)
    elif sizes:
        _show_sizes(opened, as_json=as_json)
    elif step is not None:
        _show_step(opened, step, as_json=as_json)
    elif find is not None:
        _find(opened, find, model, as_json=as_json)
    elif redacted:
        _list_redacted(opened, as_json=as_json)
    elif requests:
        _list_requests(opened, as_json=as_json)
    elif html is not None:
        _write_page(opened, html, as_json=as_json, quiet=quiet)
    elif forget:
        options = UnlearnOptions(
            forget=forget, output=None, dry_run=True, K=parse_K(K), level=level, model=model, device=device,
            ledger=not no_ledger,
        )  # fmt: skip
        _plan(opened, options, rank, quick=quick, as_json=as_json)
    else:
        _summarize(opened, as_json=as_json)


def _check_combination(chosen: list[bool]) -> None:
    if sum(chosen) > 1:
        raise UsageError("choose one of --verify, --sizes, --step, --find, --redacted, --requests, --html and --forget")


def _check_companions(
    verify: bool, replay: str | None, forget: list[str] | None, plan: bool, rank: int | None, quick: bool
) -> None:
    if plan != bool(forget):
        raise UsageError("--forget and --plan belong together: expected both, found one of them")
    if replay is not None and not verify:
        raise UsageError("--replay belongs to --verify: expected both, found --replay alone")
    if rank is not None and not plan:
        raise UsageError("--rank belongs to --plan: expected both, found --rank alone")
    if quick and not plan:
        raise UsageError("--quick belongs to --plan: expected both, found --quick alone")


def _summarize(log: "TrainingLog", *, as_json: bool) -> None:
    from lmcleaner.inspection.summary import summarize

    summary = summarize(log)
    if as_json:
        print_json(asdict(summary))
        return
    planned = f" of {summary.planned_steps} planned" if summary.planned_steps else ""
    state = "finished" if summary.is_finished else "interrupted"
    sizes = ", ".join(f"{name} {human_bytes(size)}" for name, size in summary.bytes_on_disk.items())
    lines = {
        "log": f"{summary.log} ({state}, recorded {summary.created})",
        "model": f"{summary.model['class_name']} from {summary.model['source']}, {summary.model['dtype']}, "
        f"{counted(summary.num_parameters, 'trainable parameter')}",
        "data": f"{summary.data.get('source', 'not told')}",
        "optimizer": f"{summary.optimizer['name']}, clipped at {summary.max_grad_norm}",
        "steps": f"{summary.num_steps}{planned}, {counted(summary.num_microbatches, 'microbatch')}, "
        f"{summary.seconds:.1f} s",
        "samples": f"{summary.num_samples} in {counted(summary.num_occurrences, 'occurrence')}",
        "checkpoints": ", ".join(map(str, summary.checkpoint_steps)),
        "curvature": f"{summary.curvature}, from steps {', '.join(map(str, summary.curvature_steps))}"
        if summary.curvature_steps
        else "",
        "on disk": f"{sizes} (updates {summary.updates})",
        "replayable": f"{summary.replayable}  {summary.replay_problem}".strip() if summary.replayable else "",
        "root": summary.root,
        "writer": summary.writer or "",
        "kept": _kept(summary),
        "since": ", ".join(f"{kind} on {time}" for kind, time in summary.history),
    }
    for name, value in lines.items():
        if value:
            print_text(f"{name:<12} {value}")
    if summary.loss:
        print_text(f"{'loss':<12} {summary.loss[0]:.3f} {sparkline(summary.loss)} {summary.loss[-1]:.3f}")


def _kept(summary: "Summary") -> str:
    """Which updates and gradients pruning has left; "" where all are there."""
    stacks = {
        "updates": (summary.updates, summary.kept_updates),
        "gradients": (summary.gradients, summary.kept_gradients),
    }
    everything = ((0, summary.num_steps),)
    parts = [
        f"{name} of steps {spelled(kept)}"
        for name, (codec, kept) in stacks.items()
        if codec != "none" and summary.num_steps and kept != everything
    ]
    return ", ".join(parts)


def _show_sizes(log: "TrainingLog", *, as_json: bool) -> None:
    from lmcleaner.inspection.sizes import sizes_of

    sizes = sizes_of(log)
    if as_json:
        print_json(asdict(sizes))
        return
    print_text(f"{'part':<30} {'files':>7} {'bytes':>10}")
    for part in sizes.parts:
        share = "" if part.bytes_per_unit is None else f"  {part.bytes_per_unit:,.3f} B a {part.unit}"
        print_text(f"{part.name:<30} {part.num_files:>7} {human_bytes(part.num_bytes):>10}{share}")
    print_text()
    print_text(f"{'array':<30} {'files':>7} {'bytes':>10}")
    for array in sizes.arrays:
        share = "" if array.bytes_per_element is None else f"  {array.bytes_per_element:.3f} B a parameter and step"
        print_text(f"{array.name or 'manifest':<30} {array.num_files:>7} {human_bytes(array.num_bytes):>10}{share}")
    for leftover in sizes.leftovers:
        print_text(f"leftover: {leftover.key} ({human_bytes(leftover.num_bytes)})")


def _show_step(log: "TrainingLog", step: int, *, as_json: bool) -> None:
    record = log.step(step)
    described: dict[str, Any] = {
        "step": step,
        "lr": record.lr,
        "loss": float(log.table("steps/loss")[step]),
        "gradient_norm": record.gradient_norm,
        "unclipped_norm": record.unclipped_norm,
        "loss_scale": record.loss_scale,
        "seconds": record.seconds,
        "has_checkpoint": step in log.checkpoint_steps,
        "parameters_blake3": log.parameters_digest(step + 1).hex(),
        "microbatches": [
            {
                "rows": microbatch.num_rows,
                "packed": microbatch.packed,
                "width": microbatch.width,
                "denominator": microbatch.denominator,
                "loss": microbatch.loss,
                "draws_random_numbers": bool(microbatch.rng),
                "samples": [sample.digest.hex() for sample in microbatch.samples],
            }
            for microbatch in record.microbatches
        ],
    }
    if as_json:
        print_json(described)
        return
    scale = f"losses scaled by {record.loss_scale:g}, " if record.loss_scale != 1 else ""
    print_text(
        f"step {step}: loss {described['loss']:.4f}, {scale}{_norms(log, record)}, {_rates(log, record.lr)}, "
        f"{record.seconds:.3f} s"
    )
    for number, microbatch in enumerate(record.microbatches):
        packed = f", packing {counted(len(microbatch.samples), 'sample')}" if microbatch.packed else ""
        print_text(
            f"microbatch {number}: {counted(microbatch.num_rows, 'row')} of {counted(microbatch.width, 'token')}"
            f"{packed}, denominator {microbatch.denominator:g}"
        )
        for place, (row, sample) in enumerate(zip(microbatch.rows, microbatch.samples, strict=True)):
            where = f"row {row}, sample {place}" if microbatch.packed else f"row {row}"
            print_text(f"  {where}: {sample.digest.hex()} ({counted(len(sample.tokens), 'token')})")


def _norms(log: "TrainingLog", record: "StepRecord") -> str:
    """The norm of the gradient as the optimizer was given it, and what clipping made it from if the log knows."""
    given = f"gradient norm {record.gradient_norm:.4g}"
    if log.manifest.max_grad_norm is None:
        return given
    before = "" if record.unclipped_norm is None else f" ({record.unclipped_norm:.4g} before)"
    return f"{given} after clipping{before}"


def _rates(log: "TrainingLog", lr: Sequence[float]) -> str:
    """The learning rate, and where there are several what each is of."""
    if len(set(lr)) == 1:
        return f"lr {lr[0]:.4g}"
    tensors = Counter(entry.group for entry in log.manifest.parameters)
    parts = [f"{rate:.4g} in group {group} ({counted(tensors[group], 'tensor')})" for group, rate in enumerate(lr)]
    return f"lr of the optimizer's parameter groups {', '.join(parts)}"


def _find(log: "TrainingLog", text: str, model: str | None, *, as_json: bool) -> None:
    from lmcleaner.inspection.find import find_text
    from lmcleaner.training.models import load_tokenizer

    matches = find_text(log, text, load_tokenizer(model or log.manifest.model.source))
    if as_json:
        print_json({"matches": [asdict(match) for match in matches]})
    else:
        for match in matches:
            uses = ", ".join(f"{use.step}.{use.microbatch}.{use.row}" for use in match.occurrences)
            print_text(f"sample {match.digest}")
            print_text(f"  {match.text}")
            print_text(f"  used in (step.microbatch.sample): {uses}")
        print_text(f"found {text!r} in {len(matches)} of {counted(len(log.table('samples/stop')), 'sample')}")
    if not matches:
        raise typer.Exit(1)


def _list_redacted(log: "TrainingLog", *, as_json: bool) -> None:
    from lmcleaner.inspection.redacted import find_redacted

    found = find_redacted(log)
    if as_json:
        print_json(asdict(found) | {"is_gone": found.is_gone})
    else:
        for sample in found.samples:
            print_text(f"sample {sample.digest}")
            size = "removed with its steps" if sample.num_tokens is None else counted(sample.num_tokens, "token")
            audit = sample.audit_sha256 or "not told"
            print_text(
                f"  {size}, {counted(sample.num_occurrences, 'occurrence')}; redacted {sample.time}, audit {audit}"
            )
        print_text(f"{counted(len(found.samples), 'sample')} redacted")
        if not found.is_gone:
            print_text(
                f"NOT GONE: {counted(found.leftovers, 'file')} ({human_bytes(found.leftover_bytes)}) left there of the "
                "log as it was before; repeat the unlearn --redact that was interrupted, which removes them"
            )
    if not found.is_gone:
        raise typer.Exit(1)


def _list_requests(log: "TrainingLog", *, as_json: bool) -> None:
    from lmcleaner.inspection.requests import PENDING, PREPARED, SETTLED, list_requests

    states = {
        SETTLED: "settled by a redaction", PENDING: "served, and again by every later run",
        PREPARED: "begun, and perhaps not served",
    }  # fmt: skip
    found = list_requests(log)
    if as_json:
        print_json({"entries": [listed.to_json() for listed in found]})
        return
    for listed in found:
        state = states[listed.state]
        print_text(f"{listed.entry.number} {listed.entry.time} {state}: audit {listed.entry.audit_sha256}")
        for request in listed.entry.requests:
            print_text(
                f"  {request.level} level, {counted(len(request.samples), 'sample')} in "
                f"{counted(len(request.steps), 'step')}, forget set {request.forget_set}"
            )
    pending = sum(listed.state != SETTLED for listed in found)
    print_text(f"{counted(len(found), 'entry')}, {pending} of which the next unlearn serves again")


def _write_page(log: "TrainingLog", html: Path, *, as_json: bool, quiet: bool) -> None:
    from lmcleaner.output import check_free, write_file
    from lmcleaner.reporting.log_page import log_page

    check_free(html, "--html")
    write_file(html, log_page(log), "--html")
    if as_json:
        print_json({"page": str(html)})
    elif not quiet:
        print_text(f"page  {html}")


def _plan(log: "TrainingLog", options: UnlearnOptions, rank: int | None, *, quick: bool, as_json: bool) -> None:
    from lmcleaner.unlearning.planning import plan_request
    from lmcleaner.unlearning.verdict import unmeasured

    found = plan_request(log, options, rank=rank, quick=quick)
    forget_set, windows, plans = found.forget_set, found.windows, found.plans
    if as_json:
        print_json({
            "samples": len(forget_set.digests),
            "occurrences": forget_set.num_occurrences,
            "steps": list(forget_set.steps),
            "requests": len(forget_set.new),
            "earlier": len(forget_set.earlier),
            "windows": [window.to_json() for window in windows],
            "plans": [asdict(plan) for plan in plans],
        })
        return
    print_text(
        f"{counted(len(forget_set.digests), 'sample')}, {counted(forget_set.num_occurrences, 'occurrence')} in "
        f"{counted(len(forget_set.steps), 'step')}"
    )
    if forget_set.earlier:
        print_text(f"with {counted(len(forget_set.earlier), 'earlier request')} that the log's ledger holds")
    for window in windows:
        print_text(
            f"window: checkpoint {window.start}, steps {window.first} to {window.end}, "
            f"{window.K_used} of them after the last occurrence"
        )
    memory = "parameter memory" if quick else "memory"
    print_text(f"{'mode':<16} {'gradients':>9} {'products':>9} {'to read':>10} {'seconds':>8} {memory:>17} {'rows':>5}")
    for plan in plans:
        rows = "no" if plan.data_free else "yes"
        print_text(
            f"{plan.mode:<16} {plan.gradients:>9} {plan.products:>9} {human_bytes(plan.bytes_to_read):>10} "
            f"{plan.seconds:>8.1f} {human_bytes(plan.memory_bytes or plan.parameter_memory_bytes):>17} {rows:>5}"
        )
    if quick:
        print_text("seconds by the run's own step times; memory comes on top of one training step's activations")
    else:
        print_text("seconds and activations as measured on this machine just now")
    print_text(f"--oracle, which replays the counterfactual: {plans[0].oracle_seconds:.1f} s more in any mode")
    if any(plan.is_upper_bound for plan in plans):
        print_text("the windows may end earlier: steps, gradients, products and seconds are the most")
    crude = ", ".join(mode for mode in HessianMode if unmeasured(mode))
    print_text(f"poor unless --oracle measures it, or --oracle-sample estimates it: {crude}")
