"""Runs experiments: records what isn't recorded yet, unlearns and audits every cell that isn't finished yet."""

import shutil
import traceback
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import TypeVar

from lmcleaner.audit.check import audit_model
from lmcleaner.choices import CurvatureKind
from lmcleaner.experiments.description import Cell, Experiments, Recording
from lmcleaner.experiments.results import PAGE, Row, Summary, finished, measured, write_result, write_summary
from lmcleaner.formats.audit_document import AUDIT_FILE
from lmcleaner.formats.errors import (
    InsufficientLogError,
    LmcleanerError,
    MismatchError,
    NotFoundError,
    memory_shortage,
)
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.store import storage_errors
from lmcleaner.progress import Progress, Silent
from lmcleaner.recording.curvature import CurvatureOptions, record_curvature
from lmcleaner.recording.options import PLACES, RecordOptions
from lmcleaner.recording.training import record
from lmcleaner.recording.unfinished import resumed_options
from lmcleaner.reporting.audit_page import audit_page
from lmcleaner.unlearning.classic import AUDIT_RECORDS, check_batch_size
from lmcleaner.unlearning.run import unlearn

Done = TypeVar("Done")


def run_experiments(experiments: Experiments, progress: Progress | None = None) -> Summary:
    """Runs all cells that aren't finished; one that fails leaves the others alone.

    Args:
        experiments: what to run; see `read_experiments`.
        progress: whom to tell how far it is.

    Returns:
        The summary, which is written as well, after every cell.

    Raises:
        ResourceError: the summary can't be written.
    """
    progress = progress or Silent()
    rows: list[Row] = []
    recordings: dict[str, LmcleanerError | None] = {}
    summary = Summary(name=experiments.name, folder=experiments.saves / "experiments" / experiments.name, rows=())
    for number, cell in enumerate(experiments.cells, start=1):
        progress.say(f"cell {number} of {len(experiments.cells)}: {cell.name}")
        rows.append({"cell": cell.name, **cell.choices, **_outcome(cell, recordings, progress)})
        summary = replace(summary, rows=tuple(rows))
        with storage_errors(summary.folder):
            write_summary(summary)
    return summary


def _attempt(work: Callable[[], Done], progress: Progress) -> tuple[Done | None, LmcleanerError | None]:
    try:
        return work(), None
    except LmcleanerError as error:
        return None, error
    except Exception as error:  # whatever befell this cell, the others go on, and the exit code says so
        progress.say(traceback.format_exc())
        shortage = memory_shortage(error)
        if shortage is not None:
            return None, shortage
        unexpected = LmcleanerError(f"unexpected: {type(error).__name__}: {error}")
        unexpected.__cause__ = error
        return None, unexpected


def _outcome(cell: Cell, recordings: dict[str, LmcleanerError | None], progress: Progress) -> Row:
    row, failure = _attempt(lambda: _row(cell, recordings, progress), progress)
    if failure is not None:
        progress.say(f"FAILED: {failure.message}")
        failed: Row = {"state": "failed", "error": failure.message, "kind": failure.kind}
        failed["exit_code"] = failure.exit_code
        cause = failure.__cause__ if type(failure) is LmcleanerError else None  # nothing raised on purpose
        return failed | ({"traceback": "".join(traceback.format_exception(cause))} if cause is not None else {})
    assert row is not None
    return row


def _row(cell: Cell, recordings: dict[str, LmcleanerError | None], progress: Progress) -> Row:
    before = finished(cell)
    if before is not None:
        progress.say("finished before")
        return before
    recording = cell.recording
    if recording.log not in recordings:
        recordings[recording.log] = _attempt(lambda: _record(recording, progress), progress)[1]
    failure = recordings[recording.log]
    if failure is not None:
        raise failure
    with storage_errors(str(cell.options.output)):
        return _unlearned(cell, progress)


def _record(recording: Recording, progress: Progress) -> None:
    """Records the run, goes on with it, or finds that it is there."""
    options = recording.options
    if options is None:
        return
    try:
        log = TrainingLog(recording.log)
    except NotFoundError:
        record(recording.log, options, progress)
        return
    except InsufficientLogError:  # killed before the first commit
        record(recording.log, replace(options, overwrite=True), progress)
        return
    _check_same(log, options)
    if not log.commit.finished:
        shutil.rmtree(options.output, ignore_errors=True)  # of the same run, killed before it said that it was finished
        record(recording.log, replace(options, resume=True), progress)
    elif options.curvature is not CurvatureKind.NONE and not log.commit.curvature:
        chosen = CurvatureOptions(kind=options.curvature, rank=options.rank, model=options.model)
        record_curvature(recording.log, chosen, progress)


def _check_same(log: TrainingLog, options: RecordOptions) -> None:
    logged = resumed_options(log.location, options.output)
    places = {name: log.manifest.training.get(name) for name in ("model", "data")}
    names = [field.name for field in fields(RecordOptions) if field.name not in PLACES]
    then = places | {name: getattr(logged, name) for name in names}
    for name, value in then.items():
        if value != getattr(options, name):
            raise MismatchError(
                f"the log was recorded with another {name}: {log.location}: {value} then, {getattr(options, name)} now",
                hint="give the experiments another name, or move the log away",
            )


def _unlearned(cell: Cell, progress: Progress) -> Row:
    """Everything goes into a folder beside the cell's, which gets the cell's name when all of it is there."""
    output, log = cell.options.output, cell.recording.log
    assert output is not None
    check_batch_size(TrainingLog(log), cell.classic.batch_size_at_training)
    folder = output.with_name(f".{output.name}.unfinished")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        result = unlearn(log, replace(cell.options, output=folder), progress=progress)
        assert result.document is not None
        report = audit_model(folder, log, cell.audit, progress)
        row = {"state": "finished", **measured(result.document, report)}
        for place in (folder / "audit", *([cell.classic.audit_dir] if cell.classic.audit_dir else [])):
            place.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / AUDIT_FILE, Path(place) / AUDIT_RECORDS)
        if cell.page.html:
            (folder / PAGE).write_text(audit_page(report, folder, log, named=output), encoding="utf-8")
        write_result(folder, cell, report, row)
        folder.rename(output)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return row
