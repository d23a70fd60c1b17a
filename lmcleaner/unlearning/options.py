"""Options of `unlearn`, checked before anything is loaded."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from lmcleaner.choices import DEFAULT_RANK, Denominator, HessianMode, Level, Propagation, choose
from lmcleaner.formats.errors import UsageError

DEFAULT_K = 800
DEFAULT_DAMPING = 1e-4
_CHOICES = {
    "level": Level,
    "hessian_mode": HessianMode,
    "propagation": Propagation,
    "denominator": Denominator,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """Where a result stops being good; see docs/method.md for the measurements behind the defaults.

    Attributes:
        linearization_error: largest relative error of the predicted gradients, as median over a window's marks.
        settled: largest move of δ over the last tenth of a window that was cut short, relative to ‖δ‖.
        surviving: smallest share of the wanted change that rounding may leave, as norm ratio and as cosine.
        relative_error: largest ‖θ̂ - θ′‖ / ‖θ[τ] - θ′‖ against the oracle; 0.9 or more is poor whatever is set.
    """

    linearization_error: float = 0.9
    settled: float = 0.1
    surviving: float = 0.9
    relative_error: float = 0.9

    def __post_init__(self) -> None:
        """Checks ranges.

        Raises:
            UsageError: a value is out of its range.
        """
        for name in ("linearization_error", "settled", "surviving", "relative_error"):
            if not getattr(self, name) >= 0:
                raise UsageError(f"threshold {name}: expected at least 0, found {getattr(self, name)}")
        if self.relative_error > 0.9:
            raise UsageError(f"threshold relative_error: expected at most 0.9, found {self.relative_error}")


@dataclass(frozen=True, slots=True, kw_only=True)
class UnlearnOptions:
    """What `unlearn` shall remove and how.

    Attributes:
        forget: the request; see `find_forget_set`.
        output: folder for model and audit document; must not exist. None only with `dry_run`.
        model: where the base model lies now, or None for where it lay.
        level: sample or batch; None chooses batch for `steps:` and sample otherwise.
        K: steps to carry after the last occurrence; None carries to the end.
        hessian_mode: how the gradient at θ′ is found.
        propagation: through the optimizer, or the paper's form.
        denominator: what the counterfactual divides by.
        damping: λ, which enters as C + λI.
        rank: eigenpairs of the curvature that the mode low_rank keeps.
        dry_run: plans and stops.
        oracle: replays the counterfactual and reports the error against it.
        redact: makes the log that of the run without what is forgotten, and deletes what it was; needs secant, K=None
            and the propagation through the optimizer.
        thresholds: where a result stops being good.
    """

    forget: str
    output: Path | None
    model: str | None = None
    level: Level | None = None
    K: int | None = DEFAULT_K
    hessian_mode: HessianMode = HessianMode.GGN
    propagation: Propagation = Propagation.OPTIMIZER
    denominator: Denominator = Denominator.LOGGED
    damping: float = DEFAULT_DAMPING
    rank: int = DEFAULT_RANK
    dry_run: bool = False
    oracle: bool = False
    redact: bool = False
    thresholds: Thresholds = Thresholds()

    def __post_init__(self) -> None:
        """Checks ranges and combinations.

        Raises:
            UsageError: a value is out of its range, or two don't go together.
        """
        for name, kind in _CHOICES.items():
            if getattr(self, name) is not None:
                object.__setattr__(self, name, choose(kind, getattr(self, name), name.replace("_", "-")))
        if self.K is not None and self.K < 0:
            raise UsageError(f"--K: expected 0 or more, or 'all', found {self.K}")
        if not 0 <= self.damping < float("inf"):
            raise UsageError(f"--damping: expected at least 0, found {self.damping}")
        if self.rank < 1:
            raise UsageError(f"--rank: expected at least 1, found {self.rank}")
        if self.output is None and not self.dry_run:
            raise UsageError("--output is missing: expected a folder for the model and its audit document")
        if self.redact:
            self._check_redaction()
        if self.propagation is Propagation.PAPER and self.hessian_mode is HessianMode.SECANT:
            raise UsageError(
                "--propagation paper needs a Hessian: expected another --hessian-mode than secant",
                hint="secant is exact with the default propagation",
            )

    def _check_redaction(self) -> None:
        found = f"{self.hessian_mode.value}, {'all' if self.K is None else self.K}, {self.propagation.value}"
        if found == "secant, all, optimizer":
            return
        command = ["lmcleaner", "unlearn", "LOG", "--forget", self.forget, "--output", str(self.output or "DIR")]
        raise UsageError(
            "--redact makes the log that of the run without the rows, which only an exact sweep to the end gives: "
            f"expected --hessian-mode secant, --K all and --propagation optimizer, found {found}",
            hint=shlex.join([*command, "--redact", "--hessian-mode", "secant", "--K", "all"]),
        )
