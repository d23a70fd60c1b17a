"""What a model scored on each row of an evaluation: the values that every metric is computed from.

Axes: row = rows of a part, wrong = perturbed answers of a row.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
# A column's name, and its values `[row]`, or `[row, wrong]` for what is said of perturbed answers.
Columns = Mapping[str, Array]
# The columns of every part that was evaluated.
Scores = Mapping["Part", Columns]
Indices = Mapping["Part", NDArray[np.int64]]


class Part(StrEnum):
    """Which rows: those to forget, those to keep, those never trained on, and what the model knew before."""

    FORGET = "forget"
    RETAIN = "retain"
    HOLDOUT = "holdout"
    REAL_AUTHORS = "real_authors"
    WORLD_FACTS = "world_facts"


def has_columns(scores: Scores, part: Part, names: Sequence[str]) -> bool:
    """Whether a part was evaluated and has all of these columns."""
    return part in scores and all(name in scores[part] for name in names)


def num_rows(columns: Columns) -> int:
    """Rows of a part."""
    return len(next(iter(columns.values())))


def chosen_rows(scores: Scores, indices: Indices) -> Scores:
    """The scores of some rows, with repetitions.

    Args:
        scores: of all rows.
        indices: which rows of each part, in which order.

    Returns:
        The same parts and columns, of these rows.
    """
    return {part: {name: values[indices[part]] for name, values in columns.items()} for part, columns in scores.items()}
