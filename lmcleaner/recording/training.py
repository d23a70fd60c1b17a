"""`record`: fine-tunes with Hugging Face `Trainer` and records the run."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from lmcleaner.choices import OptimizerName
from lmcleaner.data.encoding import Encoding
from lmcleaner.data.rows import RowSource, read_rows
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.samples import IGNORED_LABEL, Sample
from lmcleaner.formats.writer import check_place
from lmcleaner.output import atomic_folder, check_free
from lmcleaner.progress import Progress, Silent
from lmcleaner.recording.describe import RunDescription
from lmcleaner.recording.options import RecordOptions
from lmcleaner.recording.recorder import Recorder
from lmcleaner.recording.storage import StorageEstimate, check_room, estimate_storage
from lmcleaner.training.models import load_model, load_tokenizer, padding_token, tokenizer_digest
from lmcleaner.training.numerics import computing_with, default_threads
from lmcleaner.training.vectors import torch_dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordResult:
    """What a recorded run gave.

    Attributes:
        log: folder of the log.
        output: folder of the final model.
        num_steps: steps taken.
        num_samples: distinct samples.
        final_loss: loss of the last step, nats per token.
        log_bytes: bytes of the log by part.
        estimate: what was expected before the start.
        log_root: digest of the log's whole content.
    """

    log: Path
    output: Path
    num_steps: int
    num_samples: int
    final_loss: float
    log_bytes: dict[str, int]
    estimate: StorageEstimate
    log_root: str


def record(log: Path, options: RecordOptions, progress: Progress | None = None) -> RecordResult:
    """Fine-tunes a model, records the run in a new log and writes the final model.

    Args:
        log: folder to create.
        options: what to train and how.
        progress: whom to tell how far it is.

    Returns:
        What the run gave.

    Raises:
        ExistsError: the output or the log exists.
        NotFoundError: no such model or data.
        ResourceError: no room on the disk.
        DivergedError: a gradient was not finite.
    """
    progress = progress or Silent()
    check_free(options.output)
    check_place(log, options.overwrite)
    source = read_rows(options.data)
    tokenizer = load_tokenizer(options.model)
    encoding = Encoding(template=options.template, max_length=options.max_length)
    samples = encoding.samples(source.rows, tokenizer, source.source)
    model = load_model(options.model, torch_dtype(options.dtype))
    threads = options.threads or default_threads(model.num_parameters())
    deterministic = torch.are_deterministic_algorithms_enabled()
    # Flushed, because tiny deviations become denormal later and slow a step down tenfold.
    with computing_with(threads, True, deterministic), TemporaryDirectory() as scratch:
        trainer = make_trainer(model, tokenizer, samples, options, Path(scratch), progress)
        num_steps = _planned_steps(len(samples), options)
        estimate = _estimate(trainer.optimizer, model, num_steps, options)
        progress.say(_plan_line(model, samples, num_steps, estimate))
        check_room(log, estimate.total)
        description = _describe(options, encoding, source, tokenizer, num_steps)
        with Recorder(log, model, trainer.optimizer, description, overwrite=options.overwrite):
            progress.begin("recording", num_steps)
            trainer.train()
    with atomic_folder(options.output) as folder:
        model.save_pretrained(folder)
        load_tokenizer(options.model).save_pretrained(folder)
    return _result(log, options, estimate)


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
        optimizer_cls_and_kwargs=_optimizer_class(options),
        callbacks=[_progress_callback(progress)] if progress is not None else None,
    )
    trainer.remove_callback(PrinterCallback)  # it prints to stdout, which is for data
    trainer.create_optimizer()
    return trainer


def _optimizer_class(options: RecordOptions) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    """The torch class, with the arguments that `Trainer` itself would give it."""
    if options.optimizer is OptimizerName.SGD:
        return torch.optim.SGD, {"lr": options.lr, "momentum": options.momentum, "nesterov": options.nesterov}
    kind = torch.optim.AdamW if options.optimizer is OptimizerName.ADAMW else torch.optim.Adam
    return kind, {"lr": options.lr, "betas": (0.9, 0.999), "eps": 1e-8, "fused": True}


def _progress_callback(progress: Progress) -> Any:
    from transformers import TrainerCallback

    class Advance(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            progress.advance()

    return Advance()


def _planned_steps(num_rows: int, options: RecordOptions) -> int:
    """Steps that `Trainer` will take: the last step of an epoch may be partial."""
    if options.max_steps is not None:
        return options.max_steps
    microbatches = math.ceil(num_rows / options.batch_size)
    return math.ceil(options.epochs * math.ceil(microbatches / options.grad_accum))


def _estimate(optimizer: torch.optim.Optimizer, model: Any, num_steps: int, options: RecordOptions) -> StorageEstimate:
    state_vectors = 2 if options.optimizer is not OptimizerName.SGD else int(options.momentum > 0)
    return estimate_storage(
        num_elements=sum(p.numel() for group in optimizer.param_groups for p in group["params"]),
        item_bytes=next(model.parameters()).element_size(),
        state_vectors=state_vectors,
        num_steps=num_steps,
        rows_per_step=options.batch_size * options.grad_accum,
        checkpoint_every=options.checkpoint_every,
        updates=options.updates,
        gradients=options.gradients,
    )


def _plan_line(model: Any, samples: Sequence[Sample], num_steps: int, estimate: StorageEstimate) -> str:
    parts = f"steps {estimate.steps / 1e6:,.1f}, checkpoints {estimate.checkpoints / 1e6:,.1f}"
    return (
        f"{model.num_parameters():,} parameters, {len(samples):,} rows, {num_steps:,} steps; the log will take about "
        f"{estimate.total / 1e6:,.1f} MB ({parts})"
    )


def _describe(
    options: RecordOptions, encoding: Encoding, source: RowSource, tokenizer: Any, num_steps: int
) -> RunDescription:
    plain = {name: str(v) if isinstance(v, Path) else v for name, v in asdict(options).items()}
    is_folder = Path(options.model).is_dir()
    model_source = str(Path(options.model).resolve()) if is_folder else options.model
    return RunDescription(
        model_source=model_source,
        max_grad_norm=options.max_grad_norm or None,
        padding_token=padding_token(tokenizer),
        checkpoint_every=options.checkpoint_every,
        updates=options.updates.value,
        gradients=options.gradients.value,
        planned_steps=num_steps,
        data={
            "source": source.source,
            "split": source.split,
            "sha256": source.sha256,
            "num_rows": len(source.rows),
            "encoding": asdict(encoding),
        },
        tokenizer={"source": model_source, "sha256": tokenizer_digest(tokenizer)},
        training=plain,
    )


def _result(log: Path, options: RecordOptions, estimate: StorageEstimate) -> RecordResult:
    written = TrainingLog(log)
    return RecordResult(
        log=log,
        output=options.output,
        num_steps=written.num_steps,
        num_samples=len(written.table("samples/stop")),
        final_loss=float(written.table("steps/loss")[-1]),
        log_bytes=written.bytes_on_disk(),
        estimate=estimate,
        log_root=written.root,
    )
