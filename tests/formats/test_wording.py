"""Numbers and their nouns agree."""

import pytest

from lmcleaner.formats.wording import counted


@pytest.mark.parametrize(
    ("count", "noun", "text"),
    [
        (0, "sample", "0 samples"),
        (1, "sample", "1 sample"),
        (2, "lead-in step", "2 lead-in steps"),
        (1, "microbatch", "1 microbatch"),
        (3, "microbatch", "3 microbatches"),
        (2, "earlier entry", "2 earlier entries"),
        (12345, "step", "12,345 steps"),
    ],
)
def test_a_noun_follows_its_number(count: int, noun: str, text: str) -> None:
    assert counted(count, noun) == text
