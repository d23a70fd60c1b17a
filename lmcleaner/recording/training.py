"""`record`: fine-tunes with Hugging Face `Trainer` and records the run."""

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from lmcleaner.choices import CurvatureKind
from lmcleaner.data.encoding import Encoding
from lmcleaner.data.rows import read_rows
from lmcleaner.formats.commit import SelfCheck
from lmcleaner.formats.errors import UsageError
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.samples import IGNORED_LABEL, Sample
from lmcleaner.output import atomic_folder
from lmcleaner.progress import Progress, Silent
from lmcleaner.recording.curvature import CurvatureOptions, record_curvature
from lmcleaner.recording.inputs import check_inputs
from lmcleaner.recording.optimizer import optimizer_class
from lmcleaner.recording.options import RecordOptions
from lmcleaner.recording.plan import describe, expected_storage, plan_line, planned_steps
from lmcleaner.recording.recorder import Recorder
from lmcleaner.recording.resume import open_to_resume, restore
from lmcleaner.recording.storage import StorageEstimate, check_room
from lmcleaner.recording.trainer_checkpoint import write_trainer_checkpoint
from lmcleaner.training.adapters import new_lora
from lmcleaner.training.models import load_base_model, load_model, load_tokenizer, padding_token
from lmcleaner.training.numerics import CUBLAS_WORKSPACE, computing_with, default_threads, restored_numerics
from lmcleaner.training.vectors import torch_dtype

_DETERMINISTIC_WORKSPACE = ":4096:8"  # with which cuBLAS is deterministic; as torch.use_deterministic_algorithms says


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordResult:
    """What a recorded run gave.

    Attributes:
        log: where the log lies.
        output: folder of the final model.
        num_steps: steps taken.
        num_samples: distinct samples.
        final_loss: loss of the last step, nats per token.
        log_bytes: bytes of the log by part.
        estimate: what was expected before the start.
        log_root: digest of the log's whole content.
        self_check: whether the run can be replayed.
    """

    log: str
    output: Path
    num_steps: int
    num_samples: int
    final_loss: float
    log_bytes: dict[str, int]
    estimate: StorageEstimate
    log_root: str
    self_check: SelfCheck | None


def record(log: Path | str, options: RecordOptions, progress: Progress | None = None) -> RecordResult:
    """Fine-tunes a model, records the run and writes the final model.

    A run that was interrupted goes on from the last checkpoint in its log. The steps that the log holds beyond it are
    taken again and compared, so that the log and the model become those of a run that was never interrupted.

    Args:
        log: folder or URL to create, or of the log to resume.
        options: what to train and how; `resumed_options` takes them from a log.
        progress: whom to tell how far it is.

    Returns:
        What the run gave.

    Raises:
        ExistsError: the output or the log exists, somebody writes the log, or there is nothing to resume.
        NotFoundError: no such model or data, or no log to resume.
        InsufficientLogError: the log to resume isn't one of `record`, or was changed since.
        UsageError: an option contradicts the log to resume.
        MismatchError: the model, the data or a repeated step is not that of the log to resume.
        ResourceError: no room on the disk.
        DivergedError: a gradient, or a product of the curvature, was not finite.
    """
    progress = progress or Silent()
    estimate = _train(log, options, progress)
    if options.curvature is not CurvatureKind.NONE:
        chosen = CurvatureOptions(kind=options.curvature, rank=options.rank, model=options.model)
        record_curvature(log, chosen, progress)
    return _result(log, options, estimate)


def _train(log: Path | str, options: RecordOptions, progress: Progress) -> StorageEstimate:
    """Trains and records; what the log was expected to take."""
    check_inputs(log, options)
    past = open_to_resume(log, options, progress) if options.resume else None
    source = read_rows(options.data)
    tokenizer = load_tokenizer(options.model)
    encoding = Encoding(template=options.template, max_length=options.max_length)
    samples = encoding.samples(source.rows, tokenizer, source.source)
    model: Any = load_base_model(past.manifest, options.model) if past else _load_model(options)
    num_steps = planned_steps(len(samples), options)
    description = describe(options, encoding, source, tokenizer, num_steps)
    estimate = expected_storage(model, num_steps, options)
    progress.say(plan_line(model, source, num_steps, estimate))
    check_room(log, estimate.total - (sum(past.bytes_on_disk().values()) if past else 0))
    with _numerics(past, options, model), TemporaryDirectory() as scratch:
        trainer = make_trainer(model, tokenizer, samples, options, Path(scratch), progress)
        start = _prepare_start(past, trainer, num_steps)
        with Recorder(
            log,
            model,
            trainer.optimizer,
            description,
            overwrite=options.overwrite,
            resume=options.resume,
            step=start if past else None,
        ):
            progress.begin("recording", num_steps - start)
            if start < num_steps:
                with explained_kernels():
                    trainer.train(resume_from_checkpoint=str(_checkpoint(trainer)) if start else None)
            # Before the log says that the run is finished, so that a run without a model can be resumed to get it.
            _save(model, options)
    return estimate


@contextmanager
def explained_kernels() -> Iterator[None]:
    """Says what to do where a model has an operation without a deterministic kernel.

    Yields:
        Nothing.

    Raises:
        UsageError: it has one.
    """
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        raise UsageError(
            f"the model can't be trained with deterministic kernels: {error}",
            hint="--no-deterministic takes others; a replay then comes close to the run, but hasn't its bits",
        ) from error


def _load_model(options: RecordOptions) -> Any:
    model = load_model(options.model, torch_dtype(options.dtype))
    if options.lora_rank is None:
        return model
    torch.manual_seed(options.seed)  # draws the adapter
    return new_lora(model, options.lora_rank, options.lora_alpha or options.lora_rank, options.lora_targets)


def _numerics(past: TrainingLog | None, options: RecordOptions, model: Any) -> AbstractContextManager[None]:
    if past is not None:
        return restored_numerics(past.manifest.numerics)
    threads = options.threads or default_threads(model.num_parameters())
    has_gpu = torch.cuda.is_available()
    chosen = options.deterministic
    deterministic = chosen if chosen is not None else has_gpu or torch.are_deterministic_algorithms_enabled()
    workspace = os.environ.get(CUBLAS_WORKSPACE, _DETERMINISTIC_WORKSPACE) if deterministic and has_gpu else None
    # Flushed, because tiny deviations become denormal later and slow a step down tenfold.
    return computing_with(threads, True, deterministic, cublas_workspace=workspace)


def _prepare_start(past: TrainingLog | None, trainer: Any, num_steps: int) -> int:
    """The step to start at; the model is at it, and `Trainer` finds a checkpoint of it where it needs one."""
    if past is None:
        return 0
    start = restore(past, trainer.model, trainer.optimizer)
    if 0 < start < num_steps:
        write_trainer_checkpoint(_checkpoint(trainer), trainer, start, num_steps)
    return start


def _checkpoint(trainer: Any) -> Path:
    return Path(trainer.args.output_dir) / "checkpoint"


def _save(model: Any, options: RecordOptions) -> None:
    with atomic_folder(options.output) as folder:
        model.save_pretrained(folder)
        load_tokenizer(options.model).save_pretrained(folder)


def make_trainer(
    model: Any,
    tokenizer: Any,
    samples: Sequence[Sample],
    options: RecordOptions,
    scratch: Path,
    progress: Progress | None = None,
) -> Any:
    """The `Trainer` that runs the fine-tuning, with its optimizer.

    Args:
        model: the model to train.
        tokenizer: its tokenizer.
        samples: one for each row of the data, in order.
        options: what to train and how.
        scratch: folder that `Trainer` may write to.
        progress: is told of every step.

    Returns:
        A `transformers.Trainer` whose `optimizer` exists and whose schedule doesn't yet.
    """
    from transformers import DataCollatorForSeq2Seq, PrinterCallback, Trainer, TrainingArguments

    if tokenizer.pad_token_id is None:
        tokenizer.pad_token_id = padding_token(tokenizer)
    arguments = TrainingArguments(
        output_dir=str(scratch),
        num_train_epochs=options.epochs,
        max_steps=options.max_steps or -1,
        per_device_train_batch_size=options.batch_size,
        gradient_accumulation_steps=options.grad_accum,
        learning_rate=options.lr,
        lr_scheduler_type=options.scheduler.value,
        warmup_steps=options.warmup_ratio,
        weight_decay=options.weight_decay,
        max_grad_norm=options.max_grad_norm,
        seed=options.seed,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=False,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=[{"input_ids": s.tokens.tolist(), "labels": s.labels.tolist()} for s in samples],
        data_collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED_LABEL),
        optimizer_cls_and_kwargs=optimizer_class(options),
        callbacks=[_progress_callback(progress)] if progress is not None else None,
    )
    trainer.remove_callback(PrinterCallback)  # it prints to stdout, which is for data
    trainer.create_optimizer()
    return trainer


def _progress_callback(progress: Progress) -> Any:
    from transformers import TrainerCallback

    class Advance(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            progress.advance()

    return Advance()


def _result(log: Path | str, options: RecordOptions, estimate: StorageEstimate) -> RecordResult:
    written = TrainingLog(log)
    return RecordResult(
        log=str(log),
        output=options.output,
        num_steps=written.num_steps,
        num_samples=len(written.table("samples/stop")),
        final_loss=float(written.table("steps/loss")[-1]),
        log_bytes=written.bytes_on_disk(),
        estimate=estimate,
        log_root=written.root,
        self_check=written.commit.self_check,
    )
