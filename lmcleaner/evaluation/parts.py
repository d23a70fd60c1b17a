"""Rows to evaluate on: which rows each part has, and their answers in other words and wrong."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmcleaner.data.files import Row
from lmcleaner.data.rows import RowSource
from lmcleaner.evaluation.scores import Part
from lmcleaner.formats.errors import UsageError
from lmcleaner.formats.samples import Sample

Encode = Callable[[RowSource], list[Sample]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PartRows:
    """Rows of a part.

    Attributes:
        samples: the rows.
        paraphrases: the same with the answer in other words; none where the rows have no paraphrase.
        wrong: the same with perturbed answers, the same number for each row; none where the rows have none.
    """

    samples: Sequence[Sample]
    paraphrases: Sequence[Sample] = ()
    wrong: Sequence[Sequence[Sample]] = ()


Parts = Mapping[Part, PartRows]


def part_rows(source: RowSource, encode: Encode) -> PartRows:
    """Rows of a file or data set as samples.

    Args:
        source: the rows, with TOFU's columns `paraphrased_answer` (a text) and `perturbed_answer` (a list of texts) if
            they have them.
        encode: from rows to samples, as the run encoded its own.

    Returns:
        One sample a row, a paraphrase and perturbed answers where every row has them.

    Raises:
        UsageError: rows have different numbers of perturbed answers, or one is no text.
    """
    rows = source.rows
    paraphrases: Sequence[Sample] = ()
    if all("paraphrased_answer" in row for row in rows):
        paraphrases = encode(_replaced(source, [_with_answer(row, row["paraphrased_answer"]) for row in rows]))
    counts = {len(_wrong_answers(row, source.source)) for row in rows}
    if len(counts) > 1:
        raise UsageError(
            f"perturbed_answer: {source.source}: expected the same number for every row, found {sorted(counts)}"
        )
    count = counts.pop()
    if count == 0:
        return PartRows(samples=encode(source), paraphrases=paraphrases)
    flat = [_with_answer(row, text) for row in rows for text in _wrong_answers(row, source.source)]
    encoded = encode(_replaced(source, flat))
    wrong = [encoded[start : start + count] for start in range(0, len(encoded), count)]
    return PartRows(samples=encode(source), paraphrases=paraphrases, wrong=wrong)


def reworded(source: RowSource) -> RowSource | None:
    """The same rows with their questions in other words.

    Args:
        source: the rows.

    Returns:
        The rows with TOFU's `paraphrased_question` in place of `question`; None where not every row has both.
    """
    if not all("question" in row and "paraphrased_question" in row for row in source.rows):
        return None
    return _replaced(source, [row | {"question": row["paraphrased_question"]} for row in source.rows])


def _wrong_answers(row: Row, where: str) -> list[Any]:
    found = row.get("perturbed_answer", [])
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise UsageError(f"perturbed_answer: {where}: expected a list of texts, found {found!r}")
    return found


def _with_answer(row: Row, text: str) -> Row:
    return row | {"completion" if "completion" in row else "answer": text}


def _replaced(source: RowSource, rows: Sequence[Row]) -> RowSource:
    return RowSource(source=source.source, split=source.split, sha256=source.sha256, rows=tuple(rows))
