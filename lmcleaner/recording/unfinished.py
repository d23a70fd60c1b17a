"""An interrupted log, and the options of its run: what is wrong with either is said before torch is loaded."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from lmcleaner.formats.documents import metadata_key
from lmcleaner.formats.errors import ExistsError, InsufficientLogError, UsageError
from lmcleaner.formats.layout import COMMIT, METADATA
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.store import Store, open_store
from lmcleaner.formats.wording import counted
from lmcleaner.formats.writer import check_unchanged
from lmcleaner.recording.options import LATER, PLACES, RecordOptions


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
    log = open_committed(location)
    if log.commit.finished:
        raise ExistsError(
            f"nothing to resume: {log.location}: the run finished after {counted(log.num_steps, 'step')}",
            hint="record a new run into another log, or give --overwrite instead of --resume; `lmcleaner curvature` "
            "adds curvature to a finished log",
        )
    check_unchanged(log)
    return log


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
    log = open_committed(location)
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


def open_committed(location: Store | Path | str) -> TrainingLog:
    """Opens a log, finished or not.

    Args:
        location: folder, URL or store of the log.

    Returns:
        The log, opened for reading.

    Raises:
        NotFoundError: no log lies there.
        InsufficientLogError: the run was killed before its first commit.
    """
    store = open_store(location)
    if store.exists(METADATA) and not store.exists(metadata_key(COMMIT)):
        raise InsufficientLogError(
            f"nothing to resume: {store.location}: the run was killed before its first commit",
            hint="record it anew: give --overwrite instead of --resume",
        )
    return TrainingLog(store)
