"""Goes on with an interrupted run, from its state at the log's last checkpoint."""

from dataclasses import fields
from pathlib import Path

import torch
from torch import nn

from lmcleaner.formats.errors import UsageError
from lmcleaner.formats.lock import holder
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.wording import counted
from lmcleaner.progress import Progress
from lmcleaner.recording.describe import trainable_parameters
from lmcleaner.recording.options import PLACES, RecordOptions
from lmcleaner.recording.unfinished import open_committed, open_unfinished, resumed_options
from lmcleaner.training.numerics import replay_device, restore_rng, unrestorable
from lmcleaner.training.optimizers import load_vectors
from lmcleaner.training.vectors import tensors_of


def restore(log: TrainingLog | Path | str, module: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Sets model, optimizer and random number generators as they were at the log's last checkpoint.

    A learning-rate schedule is the caller's own.

    Args:
        log: the log, or where it lies.
        module: the base model, on its device.
        optimizer: the optimizer over its trainable parameters, as the run made it.

    Returns:
        The step that the run goes on with.

    Raises:
        NotFoundError: no log lies there.
        InsufficientLogError: the run was killed before its first commit.
        DamagedError: the checkpoint can't be read.
        UsageError: the model is another, or several processes trained it, each with random numbers of its own.
    """
    opened = log if isinstance(log, TrainingLog) else open_committed(log)
    if opened.manifest.world_size > 1:
        raise UsageError(
            f"the log of {opened.manifest.world_size} processes holds the random state of the first one alone: "
            f"{opened.location}",
            hint="go on from a checkpoint of your own, which holds each process's, with Recorder(..., resume=True)",
        )
    entries = opened.manifest.parameters
    named = trainable_parameters(module)
    shapes = {name: tuple(parameter.shape) for name, parameter in named.items()}
    if shapes != {entry.name: entry.shape for entry in entries}:
        raise UsageError(f"not the model of this log: {opened.location}: other trainable parameters than the run's")
    checkpoint = opened.checkpoint(opened.checkpoint_steps[-1])
    parameters = [named[entry.name] for entry in entries]
    device = parameters[0].device
    with torch.no_grad():
        for parameter, value in zip(
            parameters, tensors_of(checkpoint.parameters, parameters[0].dtype, entries, device), strict=True
        ):
            parameter.copy_(value)
    load_vectors(optimizer, checkpoint.optimizer, parameters, entries)
    restore_rng(checkpoint.generators, device)
    return checkpoint.step


def open_to_resume(location: Path | str, options: RecordOptions, progress: Progress) -> TrainingLog:
    """Opens an interrupted log of `record`, and says what there is to know before its run goes on.

    Args:
        location: folder or URL of the log.
        options: what the user wants.
        progress: is told.

    Returns:
        The log, opened for reading.

    Raises:
        NotFoundError: no log lies there.
        ExistsError: the run came to its end.
        InsufficientLogError: the log isn't one of `record`, or was changed since.
        UsageError: an option contradicts the log.
    """
    log = open_unfinished(location)
    logged = resumed_options(location, options.output)
    for field in fields(RecordOptions):
        then, now = getattr(logged, field.name), getattr(options, field.name)
        if field.name not in PLACES and then != now:
            raise UsageError(
                f"--{field.name.replace('_', '-')}: the log was recorded with {then}, found {now}",
                hint="leave the option out; a resumed run keeps the options that it began with",
            )
    writer = holder(log.store)
    if writer is not None and writer.is_alive() is False:
        progress.say(f"taking the log over from {writer}, which ended without closing it")
    restart = log.checkpoint_steps[-1]
    repeated = f"; repeating the steps from {restart} on, to compare them" if restart < log.num_steps else ""
    progress.say(f"resuming after {counted(log.num_steps, 'step')}{repeated}")
    for difference in unrestorable(log.manifest, replay_device(log.manifest)):
        progress.say(f"the steps may not repeat bit for bit: {difference}")
    return log
