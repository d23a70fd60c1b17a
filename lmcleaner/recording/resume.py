"""Goes on with an interrupted run: its options, and its state at the log's last checkpoint."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lmcleaner.formats.documents import metadata_key
from lmcleaner.formats.errors import ExistsError, InsufficientLogError, UsageError
from lmcleaner.formats.layout import COMMIT, METADATA
from lmcleaner.formats.lock import holder
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.store import Store, open_store
from lmcleaner.formats.wording import counted
from lmcleaner.formats.writer import check_unchanged
from lmcleaner.progress import Progress
from lmcleaner.recording.describe import trainable_parameters
from lmcleaner.recording.options import LATER, PLACES, RecordOptions
from lmcleaner.training.numerics import replay_device, restore_rng, unrestorable
from lmcleaner.training.optimizers import load_vectors
from lmcleaner.training.vectors import tensors_of


def open_unfinished(location: Store | Path | str) -> TrainingLog:
    """Opens a log that its run can go on with.

    Args:
        location: folder, URL or store of the log.

    Returns:
        The log, opened for reading.

    Raises:
        NotFoundError: no log lies there.
        ExistsError: the run came to its end.
        InsufficientLogError: the run was killed before its first commit, or the log was changed since.
    """
    log = _open(location)
    if log.commit.finished:
        raise ExistsError(
            f"nothing to resume: {log.location}: the run finished after {counted(log.num_steps, 'step')}",
            hint="record a new run into another log, or give --overwrite instead of --resume; `lmcleaner curvature` "
            "adds curvature to a finished log",
        )
    check_unchanged(log)
    return log


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
    opened = log if isinstance(log, TrainingLog) else _open(log)
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


def resumed_options(location: Path | str, output: Path, **changes: Any) -> RecordOptions:
    """The options that a run was recorded with.

    Args:
        location: folder or URL of its log.
        output: folder for the final model.
        changes: where `model` or `data` lie now, if they moved; `record` refuses what contradicts the log.

    Returns:
        Options for `record`, to resume the run with.

    Raises:
        NotFoundError: no log lies there.
        InsufficientLogError: the log isn't one of `record`.
    """
    log = _open(location)
    names = {field.name for field in fields(RecordOptions)} - set(PLACES)
    places: dict[str, Any] = {
        "model": log.manifest.model.source,
        "data": log.manifest.data.get("source"),
        "output": output,
    }
    try:
        held = {
            name: log.manifest.training[name] for name in names if name in log.manifest.training or name not in LATER
        }
        logged = RecordOptions(**held, **places)
    except (KeyError, TypeError, UsageError) as error:
        raise InsufficientLogError(
            f"the log doesn't hold the options of its run: {location}: {error}",
            hint="`record LOG --resume -- train.py` resumes a script of your own, Recorder(..., resume=True) a loop",
        ) from error
    return replace(logged, **{"resume": True} | changes)


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


def _open(location: Store | Path | str) -> TrainingLog:
    store = open_store(location)
    if store.exists(METADATA) and not store.exists(metadata_key(COMMIT)):
        raise InsufficientLogError(
            f"nothing to resume: {store.location}: the run was killed before its first commit",
            hint="record it anew: give --overwrite instead of --resume",
        )
    return TrainingLog(store)
