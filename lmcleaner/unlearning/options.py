"""Options of `unlearn`, checked before anything is loaded."""

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from lmcleaner.choices import DEFAULT_RANK, Denominator, HessianMode, Level, Propagation, Steps, choose
from lmcleaner.formats.errors import UsageError

DEFAULT_K = 800
DEFAULT_MODE = HessianMode.GGN
DEFAULT_SETTLE_TOLERANCE = 0.1
DEFAULT_DAMPING = 1e-4
DEFAULT_TOLERANCE = 0.1
AUTO = "auto"
_CHOICES = {
    "level": Level,
    "propagation": Propagation,
    "denominator": Denominator,
}
_NUMBERS = {
    "settle_tolerance": Real,
    "tolerance": Real,
    "damping": Real,
    "oracle_sample": Real,
    "rank": Integral,
    "keep_states": Integral,
}
_OPTIONAL = {"tolerance", "rank"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """Where a result stops being good; see docs/method.md for the measurements behind the defaults.

    Attributes:
        linearization_error: largest relative error of the predicted gradients, as median over a window's marks.
        settled: largest move of δ that a window which was cut short may leave to come, relative to ‖δ‖.
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
        forget: one request or several, words or files; see `find_request`.
        output: folder for model and audit document; must not exist. A dry run alone needs none.
        model: where the base model lies now, or None for where it lay.
        device: where to compute, "cpu", "cuda" or "cuda:N"; None is the run's type of device, if it is there.
        offload: keeps the sweep's training state, θ′ and the optimizer's state, in host memory; for accelerators.
        level: sample or batch; None chooses batch for `steps:` and sample otherwise.
        K: steps to carry after the last occurrence; None, or "all", carries to the end, "auto" until the deviation has
            settled.
        oracle_sample: percent of the steps that are taken twice to estimate the relative error; 0 estimates nothing.
        settle_tolerance: what δ may have left to move after a window that K="auto" ends, relative to ‖δ‖.
        hessian_mode: how the gradient at θ′ is found; a mode or its name, or "auto" for SECANT with a tolerance.
        tolerance: tries modes that are cheaper than `hessian_mode` first, and takes the first whose estimated relative
            error is at most this; None takes `hessian_mode`.
        propagation: through the optimizer, or the paper's form.
        denominator: what the counterfactual divides by.
        damping: λ, which enters as C + λI.
        rank: eigenpairs of the curvature that the mode low_rank keeps, 10 by default; None in the other modes.
        dry_run: plans and stops.
        oracle: replays the counterfactual and reports the error against it.
        redact: makes the log that of the run without what is forgotten, and deletes what it was; needs secant, K=None
            and the propagation through the optimizer.
        keep_states: states of the sweep in each window that are kept beside the model, for `audit verify`.
        ledger: also forgets what earlier requests named, as the log's ledger holds them, and enters these; False is for
            experiments.
        thresholds: where a result stops being good.
    """

    forget: str | Path | Iterable[str | Path]
    output: Path | None = None
    model: str | None = None
    device: str | None = None
    offload: bool = False
    level: Level | None = None
    K: Steps = DEFAULT_K
    settle_tolerance: float = DEFAULT_SETTLE_TOLERANCE
    hessian_mode: HessianMode = DEFAULT_MODE
    tolerance: float | None = None
    propagation: Propagation = Propagation.OPTIMIZER
    denominator: Denominator = Denominator.LOGGED
    damping: float = DEFAULT_DAMPING
    rank: int | None = None
    dry_run: bool = False
    oracle: bool = False
    oracle_sample: float = 0.0
    redact: bool = False
    keep_states: int = 0
    ledger: bool = True
    thresholds: Thresholds = Thresholds()

    @property
    def requests(self) -> tuple[str, ...]:
        """All that is to be forgotten, one by one."""
        return (str(self.forget),) if isinstance(self.forget, str | Path) else tuple(map(str, self.forget))

    def __post_init__(self) -> None:
        """Checks ranges and combinations.

        Raises:
            UsageError: a value is out of its range, or two don't go together.
        """
        self._normalize()
        self._check_types()
        for name, kind in _CHOICES.items():
            if getattr(self, name) is not None:
                object.__setattr__(self, name, choose(kind, getattr(self, name), name.replace("_", "-")))
        if not self.requests:
            raise UsageError("--forget is missing: expected at least one request")
        if self.K not in {None, "auto"} and not (_is_a(Integral, self.K) and int(self.K) >= 0):
            raise UsageError(f"--K: expected 0 or more steps, 'all' or 'auto', found {self.K!r}")
        if not 0 < self.settle_tolerance < float("inf"):
            raise UsageError(f"--settle-tolerance: expected above 0, found {self.settle_tolerance}")
        if not 0 <= self.damping < float("inf"):
            raise UsageError(f"--damping: expected at least 0, found {self.damping}")
        self._check_rank()
        self._check_tolerance()
        if self.output is None and not self.dry_run:
            raise UsageError("--output is missing: expected a folder for the model and its audit document")
        if not 0 <= self.oracle_sample <= 100:
            raise UsageError(f"--oracle-sample: expected 0 to 100 percent, found {self.oracle_sample}")
        if self.keep_states < 0:
            raise UsageError(f"--keep-states: expected 0 or more, found {self.keep_states}")
        if self.redact:
            self._check_redaction()
        if self.propagation is Propagation.PAPER:
            self._check_paper()

    def _normalize(self) -> None:
        """Brings into one form what may be given in several: requests, a folder, and the command line's words."""
        if isinstance(self.forget, bytes | Mapping) or not isinstance(self.forget, str | Path | Iterable):
            raise UsageError(
                f"--forget: expected a file, digests or steps, or several of them, found {self.forget!r}",
                hint='such as "forget.jsonl", "steps:3,7-9", or a list of digests',
            )
        if not isinstance(self.forget, str | Path):
            object.__setattr__(self, "forget", tuple(self.forget))  # an iterator is gone when it was read once
        if self.output is not None:
            object.__setattr__(self, "output", Path(self.output))
        if str(self.K) == "all":
            object.__setattr__(self, "K", None)
        if not isinstance(self.hessian_mode, HessianMode):
            for name, value in mode_options(str(self.hessian_mode), self.tolerance).items():
                object.__setattr__(self, name, value)

    def _check_types(self) -> None:
        """What would fail only when it is used, perhaps after the work is done."""
        for name, kind in _NUMBERS.items():
            value = getattr(self, name)
            if not (_is_a(kind, value) or (value is None and name in _OPTIONAL)):
                expected = "a whole number" if kind is Integral else "a number"
                raise UsageError(f"--{name.replace('_', '-')}: expected {expected}, found {value!r}")
        if not isinstance(self.thresholds, Thresholds):
            raise UsageError(f"thresholds: expected Thresholds(...), found {self.thresholds!r}")

    def _check_paper(self) -> None:
        if self.oracle_sample:
            raise UsageError(
                "--oracle-sample takes steps with the optimizer twice, which --propagation paper doesn't take at all",
                hint="use --oracle",
            )
        for option, is_given in (("--offload", self.offload), ("--keep-states", self.keep_states)):
            if is_given:
                raise UsageError(
                    f"{option} is for the state of the optimizer: --propagation paper doesn't carry any",
                    hint=f"leave {option} out",
                )
        if self.hessian_mode is HessianMode.SECANT:
            raise UsageError(
                "--propagation paper needs a Hessian: expected another --hessian-mode than secant",
                hint="secant is exact with the default propagation",
            )

    def _check_rank(self) -> None:
        is_used = self.hessian_mode is HessianMode.LOW_RANK
        if self.rank is None and is_used:
            object.__setattr__(self, "rank", DEFAULT_RANK)
        elif self.rank is not None and not is_used:
            raise UsageError(
                f"--rank belongs to --hessian-mode low_rank: found --hessian-mode {self.hessian_mode.value}",
                hint="leave --rank out, or choose --hessian-mode low_rank",
            )
        elif self.rank is not None and self.rank < 1:
            raise UsageError(f"--rank: expected at least 1, found {self.rank}")

    def _check_tolerance(self) -> None:
        if self.tolerance is not None and not self.tolerance >= 0:
            raise UsageError(f"--tolerance: expected at least 0, found {self.tolerance}")
        if self.tolerance is not None and self.propagation is Propagation.PAPER:
            raise UsageError(
                "--propagation paper has no error to estimate: expected a mode, found --hessian-mode auto",
                hint="name the mode",
            )

    def _check_redaction(self) -> None:
        if not self.ledger:
            raise UsageError(
                "--redact and --no-ledger don't go together: a redaction serves what the ledger holds for good",
                hint="leave --no-ledger away; to experiment, redact a copy of the log",
            )
        mode = self.hessian_mode.value if self.tolerance is None else "auto"
        found = f"{mode}, {'all' if self.K is None else self.K}, {self.propagation.value}"
        if found == "secant, all, optimizer":
            return
        named = [word for request in self.requests for word in ("--forget", request)]
        command = ["lmcleaner", "unlearn", "LOG", *named, "--output", str(self.output or "DIR")]
        raise UsageError(
            "--redact makes the log that of the run without the rows, which only an exact sweep to the end gives: "
            f"expected --hessian-mode secant, --K all and --propagation optimizer, found {found}",
            hint=shlex.join([*command, "--redact", "--hessian-mode", "secant", "--K", "all"]),
        )


def _is_a(kind: type, value: object) -> bool:
    """Whether it is such a number; a truth value is none."""
    return isinstance(value, kind) and not isinstance(value, bool)


def mode_options(text: str, tolerance: float | None) -> dict[str, Any]:
    """The mode that a user names, and the tolerance where "auto" leaves it open.

    Args:
        text: a mode in any case, or "auto".
        tolerance: relative error that "auto" lets a mode have; None for the default.

    Returns:
        Arguments of `UnlearnOptions`.

    Raises:
        UsageError: there is no such mode, or there is a tolerance for a mode that is named.
    """
    if text.lower() == AUTO:
        return {"hessian_mode": HessianMode.SECANT, "tolerance": DEFAULT_TOLERANCE if tolerance is None else tolerance}
    if tolerance is not None:
        raise UsageError(
            f"--tolerance belongs to --hessian-mode auto: found --hessian-mode {text}",
            hint="auto takes the cheapest mode within the tolerance, and secant where there is none",
        )
    found = next((mode for mode in HessianMode if mode.lower() == text.lower()), None)
    if found is None:
        raise UsageError(f"--hessian-mode: expected one of {[*map(str, HessianMode), AUTO]}, found {text!r}")
    return {"hessian_mode": found}
