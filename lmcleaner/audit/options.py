"""Options of `audit`."""

from dataclasses import dataclass
from pathlib import Path

from lmcleaner.formats.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditOptions:
    """What `audit` shall do besides checking hashes and coverage.

    Attributes:
        oracle: replays the counterfactual and measures the error against it.
        model: where the base model lies now, if it moved; needed for the oracle, and for an adapter.
        device: where to replay the oracle; see `replay_device`.
        relative_error: largest relative error that passes; never above 0.9.
        evaluate: rows to compare the models on: "log" for those of the log, or what `named_sources` reads.
        gold: a model that was trained without the rows to forget; the oracle where there is none.
    """

    oracle: bool = False
    model: str | None = None
    device: str | None = None
    relative_error: float = 0.9
    evaluate: str | None = None
    gold: Path | None = None

    def __post_init__(self) -> None:
        """Checks that the options go together.

        Raises:
            UsageError: there is a gold model, and nothing to compare on.
        """
        if self.gold is not None and self.evaluate is None:
            raise UsageError("a gold model serves an evaluation: expected --evaluate beside --gold")

    @property
    def measures(self) -> list[str]:
        """What must be computed with models, by the names of the checks."""
        wanted = {"oracle": self.oracle, "evaluation": self.evaluate is not None}
        return [name for name, is_wanted in wanted.items() if is_wanted]
