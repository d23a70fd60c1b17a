"""The forget set of requests as a user writes them, without what a log's ledger or redactions would add."""

from collections.abc import Callable, Sequence
from typing import Any

from lmcleaner.choices import Level
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.unlearning.request import ForgetSet, find_request, union_of


def find_forget_set(
    log: TrainingLog, forget: str | Sequence[str], level: Level | None, load_tokenizer: Callable[[], Any]
) -> ForgetSet:
    """The union of one request or several; see `find_request`."""
    named = (forget,) if isinstance(forget, str) else forget
    return union_of(log, [find_request(log, each, level, load_tokenizer) for each in named])
