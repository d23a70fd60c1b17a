"""What a run of `record` will do: its steps, its disk, its description."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from lmcleaner.choices import CurvatureKind
from lmcleaner.data.encoding import Encoding
from lmcleaner.data.rows import RowSource
from lmcleaner.formats.wording import counted
from lmcleaner.recording.describe import RunDescription
from lmcleaner.recording.optimizer import optimizer_class
from lmcleaner.recording.options import RecordOptions
from lmcleaner.recording.storage import StorageEstimate, estimate_storage
from lmcleaner.training.models import padding_token, tokenizer_digest
from lmcleaner.training.optimizers import describe_optimizer, state_vectors


def planned_steps(num_rows: int, options: RecordOptions) -> int:
    """Steps that `Trainer` will take: the last step of an epoch may be partial."""
    if options.max_steps is not None:
        return options.max_steps
    microbatches = math.ceil(num_rows / options.batch_size)
    return math.ceil(options.epochs * math.ceil(microbatches / options.grad_accum))


def expected_storage(model: Any, num_steps: int, options: RecordOptions) -> StorageEstimate:
    """What the log of the whole run will take."""
    kind, arguments = optimizer_class(options)
    entry = describe_optimizer(kind([torch.zeros(1)], **arguments))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return estimate_storage(
        num_elements=sum(parameter.numel() for parameter in trained),
        item_bytes=trained[0].element_size(),
        state_vectors=state_vectors(entry),
        num_steps=num_steps,
        rows_per_step=options.batch_size * options.grad_accum,
        checkpoint_every=options.checkpoint_every,
        updates=options.updates,
        gradients=options.gradients,
        curvature_vectors={CurvatureKind.NONE: 0, CurvatureKind.LOW_RANK: options.rank}.get(options.curvature, 1),
    )


def plan_line(model: Any, source: RowSource, num_steps: int, estimate: StorageEstimate) -> str:
    """The plan in a line for people; a folder's rows are one of its files', which is named."""
    parts = f"steps {estimate.steps / 1e6:,.1f}, checkpoints {estimate.checkpoints / 1e6:,.1f}"
    parts += f", curvature {estimate.curvature / 1e6:,.1f}" if estimate.curvature else ""
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    of_all = f" of {model.num_parameters():,}" if trained < model.num_parameters() else ""
    return (
        f"{trained:,}{of_all} parameters, {counted(len(source.rows), 'row')} of {source.source}, "
        f"{counted(num_steps, 'step')}; the log will take about {estimate.total / 1e6:,.1f} MB ({parts})"
    )


def describe(
    options: RecordOptions, encoding: Encoding, source: RowSource, tokenizer: Any, num_steps: int
) -> RunDescription:
    """What the recorder can't see of the run.

    Args:
        options: what to train and how.
        encoding: how rows become tokens.
        source: the rows.
        tokenizer: the model's tokenizer.
        num_steps: steps of the run.

    Returns:
        The description.
    """
    plain = {name: str(v) if isinstance(v, Path) else v for name, v in asdict(options).items()}
    del plain["overwrite"], plain["resume"]  # they say nothing of the run
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
