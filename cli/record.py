"""`lmcleaner record`."""

import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lmcleaner.choices import Codec, CurvatureKind, ModelDtype, OptimizerName, Scheduler
from lmcleaner.cli.console import Reporter, human_bytes, print_json, print_text
from lmcleaner.cli.shared import DEFAULT_LOG, AsJson, Config, Log, Quiet, default_of, script_of
from lmcleaner.formats.errors import LmcleanerError, NotFoundError, UsageError
from lmcleaner.formats.ledger import read_ledger
from lmcleaner.formats.places import check_place
from lmcleaner.formats.wording import counted
from lmcleaner.recording.launcher import is_launcher, launch
from lmcleaner.recording.options import RecordOptions, WatchOptions
from lmcleaner.recording.script import check_script, record_script

if TYPE_CHECKING:
    from lmcleaner.formats.reader import TrainingLog

# Options that a script can be recorded with -> what they set.
_OF_SCRIPTS = {
    "model": "model_source", "checkpoint_every": "checkpoint_every", "updates": "updates", "gradients": "gradients",
    "overwrite": "overwrite", "resume": "resume",
}  # fmt: skip


def _d(name: str) -> Any:
    return default_of(RecordOptions, name)


def record(
    context: typer.Context,
    log: Log = DEFAULT_LOG,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for the final model; must not exist.")
    ] = None,
    model: Annotated[str, typer.Option(metavar="DIR_OR_NAME", help="Base model.")] = "",
    data: Annotated[str, typer.Option(metavar="FILE|DIR[:NAME]|HUB_NAME[:NAME]", help="Rows to train on.")] = "",
    epochs: Annotated[float, typer.Option(help="Passes over the rows.")] = _d("epochs"),
    batch_size: Annotated[int, typer.Option(help="Rows of a microbatch.")] = _d("batch_size"),
    grad_accum: Annotated[int, typer.Option(help="Microbatches of a step.")] = _d("grad_accum"),
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = _d("lr"),
    optimizer: Annotated[OptimizerName, typer.Option(help="Optimizer.")] = _d("optimizer"),
    momentum: Annotated[float, typer.Option(help="Momentum of sgd.")] = _d("momentum"),
    nesterov: Annotated[bool, typer.Option("--nesterov", help="Nesterov's form of it.")] = _d("nesterov"),
    weight_decay: Annotated[float, typer.Option(help="Of all but biases and norms.")] = _d("weight_decay"),
    scheduler: Annotated[Scheduler, typer.Option(help="Learning-rate schedule.")] = _d("scheduler"),
    warmup_ratio: Annotated[float, typer.Option(help="Share of the steps to warm up over.")] = _d("warmup_ratio"),
    max_grad_norm: Annotated[float, typer.Option(help="Clip threshold; 0 doesn't clip.")] = _d("max_grad_norm"),
    template: Annotated[str, typer.Option(help="Prompt of question/answer rows.")] = _d("template"),
    max_length: Annotated[int, typer.Option(help="Tokens kept of a row.")] = _d("max_length"),
    max_steps: Annotated[int | None, typer.Option(help="Stop after so many steps.")] = None,
    seed: Annotated[int, typer.Option(help="Of row order and dropout.")] = _d("seed"),
    dtype: Annotated[ModelDtype, typer.Option(help="Dtype of the weights.")] = _d("dtype"),
    threads: Annotated[
        int | None, typer.Option(help="Threads of torch; by default 1 for models under ten million parameters.")
    ] = None,
    deterministic: Annotated[
        bool | None,
        typer.Option(help="Deterministic kernels, with which a replay gives the run's own bits; by default on a GPU."),
    ] = None,
    checkpoint_every: Annotated[int, typer.Option(metavar="C", help="Steps between checkpoints.")] = _d(
        "checkpoint_every"
    ),
    updates: Annotated[Codec, typer.Option(help="How θ after every step is stored.")] = _d("updates"),
    gradients: Annotated[Codec, typer.Option(help="How the clipped gradients are stored.")] = _d("gradients"),
    curvature: Annotated[
        CurvatureKind, typer.Option(help="Curvature to estimate and store at each checkpoint after the training.")
    ] = _d("curvature"),
    rank: Annotated[int, typer.Option(help="Eigenpairs of --curvature low_rank.")] = _d("rank"),
    lora_rank: Annotated[
        int | None, typer.Option(metavar="R", help="Train a LoRA adapter of this rank instead of the model.")
    ] = None,
    lora_alpha: Annotated[
        int | None, typer.Option(metavar="A", help="Scale the adapter by A / R; by default A is R.")
    ] = None,
    lora_targets: Annotated[
        str | None,
        typer.Option(metavar="NAME,...", help="Modules with an adapter; by default all linear ones but the last."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove a log that lies there.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run; its log knows all options but --output.")
    ] = False,
    config: Config = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Fine-tune a model and record the run step by step.

    Example: `lmcleaner record my-log --model my-base --data train.jsonl --output my-model --epochs 3`

    After an interruption: `lmcleaner record my-log --resume --output my-model`

    A training script of your own, as it is: `lmcleaner record my-log -- train.py --its-own options`; after an
    interruption, if it goes on from a checkpoint of its own: `lmcleaner record my-log --resume -- train.py ...`

    In several processes: `lmcleaner record my-log -- torchrun --nproc-per-node 2 train.py`, or `accelerate launch`
    """
    script = script_of(context)
    if script is not None:
        _record_script(context, log, script, quiet=quiet, as_json=as_json)
        return
    chosen: dict[str, Any] = dict(  # noqa: C408 -- a third of a literal's length
        model=model, data=data, output=output, epochs=epochs, batch_size=batch_size, grad_accum=grad_accum, lr=lr,
        optimizer=optimizer, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay, scheduler=scheduler,
        warmup_ratio=warmup_ratio, max_grad_norm=max_grad_norm, template=template, max_length=max_length,
        max_steps=max_steps, seed=seed, dtype=dtype, deterministic=deterministic, threads=threads,
        checkpoint_every=checkpoint_every, updates=updates, gradients=gradients, curvature=curvature, rank=rank,
        lora_rank=lora_rank, lora_alpha=lora_alpha, lora_targets=lora_targets, overwrite=overwrite, resume=resume,
    )  # fmt: skip
    options = _resumed(context, log, chosen) if resume else _new(chosen)
    from lmcleaner.recording.inputs import check_inputs

    check_inputs(log, options)
    from lmcleaner.recording.training import record as run

    with Reporter(quiet=quiet or as_json) as reporter, _telling_what_is_kept(log):
        result = run(log, options, reporter)
    if as_json:
        print_json(asdict(result))
        return
    parts = ", ".join(f"{name} {human_bytes(size)}" for name, size in result.log_bytes.items())
    trained = f"{counted(result.num_steps, 'step')} on {counted(result.num_samples, 'sample')}"
    print_text(f"recorded {trained}; final loss {result.final_loss:.4f}")
    print_text(f"log      {result.log} ({parts})")
    print_text(f"model    {result.output}")
    checked = result.self_check
    if checked is not None:
        print_text(
            f"replay   {checked.state}, as {counted(checked.steps, 'step')} taken again tell {checked.why}".rstrip()
        )


def _record_script(context: typer.Context, log: str, script: list[str], *, quiet: bool, as_json: bool) -> None:
    """Records the user's own script; stdout is the script's, but with --json."""
    from lmcleaner.formats.reader import TrainingLog
    from lmcleaner.recording.unfinished import open_unfinished

    given = {name for name in context.params if _is_given(context, name)}
    refused = sorted(given - {"log", "config", "as_json", "quiet"} - set(_OF_SCRIPTS))
    if refused:
        raise UsageError(
            f"--{refused[0].replace('_', '-')} is for lmcleaner's own training: found a script behind --",
            hint="give the script its own options behind its name",
        )
    chosen = {name: context.params[name] for name in sorted(given & set(_OF_SCRIPTS))}
    if not is_launcher(script):
        check_script(script)
    if context.params["resume"]:  # before the script does anything
        _tell_of_requests(open_unfinished(log), quiet=quiet)
    elif _is_first_process():
        check_place(log, context.params["overwrite"])
    options = WatchOptions(**{_OF_SCRIPTS[name]: value for name, value in chosen.items()})
    with _stdout_as_stderr() if as_json else nullcontext(), _telling_what_is_kept(log):
        code = _exit_code(log, script, options, _words_of(chosen))
    if not _is_first_process():
        raise typer.Exit(code)
    try:
        written = TrainingLog(log)
    except NotFoundError:
        if code:  # it failed before its first step, and has said why
            raise typer.Exit(code) from None
        raise
    checked = written.commit.self_check
    if as_json:
        print_json({
            "log": log,
            "exit_code": code,
            "num_steps": written.num_steps,
            "finished": written.commit.finished,
            "replayable": checked.state if checked is not None else None,
        })
    with Reporter(quiet=quiet or as_json) as reporter:
        state = f"; replay {checked.state} {checked.why}".rstrip() if checked is not None else ""
        reporter.say(f"recorded {counted(written.num_steps, 'step')} in {log}{state}")
    if code:
        raise typer.Exit(code)


def _is_first_process() -> bool:
    """As launchers number them; the first one writes the log."""
    return os.environ.get("RANK", "0") == "0"


def _tell_of_requests(log: "TrainingLog", *, quiet: bool) -> None:
    """Says before a run goes on that it does so with rows that it was asked to forget."""
    served = sum(len(entry.requests) for entry in read_ledger(log).pending)
    if served and not quiet and _is_first_process():
        sys.stderr.write(
            f"the log's ledger holds {counted(served, 'request')}: the run goes on with all rows, so that its model "
            "must be unlearned anew; the next `lmcleaner unlearn` leaves out what these name, too\n"
        )


@contextmanager
def _telling_what_is_kept(log: str) -> Iterator[None]:
    """Says on an interruption what a log holds by then, if it can be gone on with."""
    from lmcleaner.recording.unfinished import open_unfinished

    try:
        yield
    except KeyboardInterrupt:
        with suppress(LmcleanerError):
            steps = counted(open_unfinished(log).num_steps, "step")
            sys.stderr.write(f"{log} holds {steps}; go on from there with --resume\n")
        raise


@contextmanager
def _stdout_as_stderr() -> Iterator[None]:
    """Of this process, and of those that it starts."""
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)


def _exit_code(log: str, script: list[str], options: WatchOptions, given: Sequence[str]) -> int:
    """Runs the script, or its launcher; what it ends by is its own, and shown as Python would show it."""
    try:
        if is_launcher(script):
            launch(script, ["record", log, "--quiet", *given])
        else:
            record_script(log, script, options)
    except SystemExit as stop:
        if stop.code is not None and not isinstance(stop.code, int):
            sys.stderr.write(f"{stop.code}\n")
            return 1
        return stop.code or 0
    except LmcleanerError:
        raise
    except Exception as error:  # of the user's code, whatever it is
        traceback.print_exception(error)
        return 1
    return 0


def _words_of(chosen: dict[str, Any]) -> list[str]:
    """Options as they stand on a command line."""
    words = {f"--{name.replace('_', '-')}": value for name, value in chosen.items() if value is not False}
    return [word for name, value in words.items() for word in (name, *([] if value is True else [str(value)]))]


def _new(chosen: dict[str, Any]) -> RecordOptions:
    missing = [f"--{name}" for name in ("model", "data", "output") if not chosen[name]]
    if missing:
        hint = "a folder for the trained model" if missing == ["--output"] else "only --resume takes them from the log"
        raise UsageError(f"missing: {' and '.join(missing)}", hint=hint)
    return RecordOptions(**chosen)


def _resumed(context: typer.Context, log: str, chosen: dict[str, Any]) -> RecordOptions:
    """The log's options, with those that the user gave."""
    given = {name: value for name, value in chosen.items() if _is_given(context, name)}
    if "output" not in given:
        raise UsageError("missing: --output: expected a folder for the final model")
    from lmcleaner.output import check_free
    from lmcleaner.recording.unfinished import open_committed, resumed_options

    check_free(given["output"])
    options = resumed_options(log, **given)
    _tell_of_requests(open_committed(log), quiet=context.params["quiet"])
    return options


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"
