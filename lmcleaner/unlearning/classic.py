"""What the classic interface names, for trainers and files of experiments."""

from lmcleaner.formats.errors import UsageError
from lmcleaner.formats.reader import TrainingLog

AUDIT_RECORDS = "audit_records.json"


def check_batch_size(log: TrainingLog, expected: int | None) -> None:
    """Holds `batch_size_at_training` against a log.

    Args:
        log: the training log.
        expected: rows of a microbatch; None for any.

    Raises:
        UsageError: the log has others.
    """
    rows = max(microbatch.num_rows for microbatch in log.step(0).microbatches)
    if expected not in {None, rows}:
        raise UsageError(f"batch_size_at_training: expected {rows}, as in the log, found {expected}")
