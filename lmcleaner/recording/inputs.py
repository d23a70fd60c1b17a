"""What can be known to be wrong before a model is loaded, or torch."""

from pathlib import Path

from lmcleaner.data.rows import file_of
from lmcleaner.formats.places import check_place
from lmcleaner.output import check_free
from lmcleaner.recording.options import RecordOptions
from lmcleaner.training.sources import check_model


def check_inputs(log: Path | str, options: RecordOptions) -> None:
    """Makes sure that a run can read what it shall read, and write where it shall write.

    Args:
        log: folder or URL of the log to create, or to resume.
        options: what to train and how.

    Raises:
        ExistsError: the output exists, or a log that may not be removed.
        NotFoundError: no such model or data.
        UsageError: several files of data have the name that is given.
    """
    check_free(options.output)
    if not options.resume:
        check_place(log, options.overwrite)
    file_of(options.data)
    check_model(options.model)
