"""A long log that all pages share."""

import pytest

from lmcleaner.formats.reader import TrainingLog
from long_log import write_long_log


@pytest.fixture(scope="session")
def long_log(tmp_path_factory: pytest.TempPathFactory) -> TrainingLog:
    """Ten thousand steps; tests only read it."""
    return write_long_log(tmp_path_factory.mktemp("long") / "log", 10_000)
