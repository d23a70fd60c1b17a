"""All parts of TOFU, from a folder of its files."""

from pathlib import Path

import numpy as np
import pytest

from lmcleaner.data.rows import RowSource, read_rows
from lmcleaner.evaluation.parts import part_rows
from lmcleaner.evaluation.scores import Part
from lmcleaner.evaluation.spec import named_sources
from lmcleaner.formats.samples import Sample
from tiny_runs import Recording

TOFU = Path(__file__).resolve().parents[3] / "shared" / "data" / "tofu"

pytestmark = [
    pytest.mark.realdata,
    pytest.mark.skipif(not TOFU.is_dir(), reason="TOFU doesn't lie beside the project"),
]


def _encode(source: RowSource) -> list[Sample]:
    """One token of each byte of the answer."""
    tokens = [np.frombuffer(row["answer"].encode(), np.uint8).astype(np.int32) for row in source.rows]
    return [Sample(one, one) for one in tokens]


@pytest.mark.parametrize(("forget", "count"), [("forget01", 40), ("forget05", 200), ("forget10", 400)])
def test_every_part_with_its_other_answers(forget: str, count: int) -> None:
    progress = Recording()
    sources = named_sources(f"tofu:{forget}", str(TOFU / "full.json"), progress)
    parts = {part: part_rows(read_rows(source), _encode) for part, source in sources.items()}
    assert progress.lines == []
    found = {
        part: (len(rows.samples), len(rows.paraphrases), {len(wrong) for wrong in rows.wrong})
        for part, rows in parts.items()
    }
    assert found == {
        Part.FORGET: (count, count, {5}),
        Part.RETAIN: (400, 400, {5}),
        Part.HOLDOUT: (count, 0, set()),
        Part.REAL_AUTHORS: (100, 0, {3}),
        Part.WORLD_FACTS: (117, 0, {3}),
    }
    rows = read_rows(sources[Part.FORGET]).rows
    assert bytes(parts[Part.FORGET].wrong[3][2].tokens.astype(np.uint8)).decode() == rows[3]["perturbed_answer"][2]
    assert bytes(parts[Part.FORGET].paraphrases[3].tokens.astype(np.uint8)).decode() == rows[3]["paraphrased_answer"]
