"""What an evaluation is called and what it says, the same on a terminal and on a page."""

from collections.abc import Mapping
from typing import Any

SIDES = {"Before": "before", "LMCleaner": "unlearned", "Gold": "gold"}  # heads of columns and keys of documents
GOLDS = {"oracle": "the counterfactual run, replayed", "model": "a model that was given"}
ARROWS = {"higher": "↑", "lower": "↓", "gold": "closest to gold", "unknown": "not said"}
NOT_REWORDED = "the rows to forget have none"

_ANSWERS = {"yes": "what was forgotten CAME BACK, by ", "unclear": "unclear whether it came back, by "}


def came_back(rounded: Mapping[str, Any]) -> str:
    """Whether forgetting came back with rounded weights.

    Args:
        rounded: the entry of a rounding in an evaluation's `deployment`.

    Returns:
        The answer, with the metrics that gave it; or why there is none.
    """
    if rounded["void"] is not None:
        return str(rounded["void"])
    found = rounded["returned"]
    if not found:
        return "no metric tells the model before from gold"
    by = {answer: ", ".join(name for name, one in found.items() if one["came_back"] == answer) for answer in _ANSWERS}
    return next((f"{text}{by[answer]}" for answer, text in _ANSWERS.items() if by[answer]), "nothing came back")
