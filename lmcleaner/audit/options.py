"""Options of `audit` and `audit verify`, checked before anything is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lmcleaner.choices import Rounding, choose
from lmcleaner.formats.errors import UsageError

DEFAULT_STEPS = 20  # of the sweep, that a verification takes again


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
        deploy: evaluates all models once more for each of these, with their weights rounded.
        stress: trains the unlearned and the gold model on a half of the rows to forget, and evaluates all models on
            paraphrased questions.
        relearn_lr: learning rate of that training; the run's largest where there is none.
        tasks: runs all models on these tasks, groups or tags of the lm-evaluation-harness, too.
        tasks_path: folder with YAML files of further tasks, in the harness's form.
        tasks_limit: how many rows of each task are taken; all without one.
    """

    oracle: bool = False
    model: str | None = None
    device: str | None = None
    relative_error: float = 0.9
    evaluate: str | None = None
    gold: Path | None = None
    deploy: Sequence[Rounding] = ()
    stress: bool = False
    relearn_lr: float | None = None
    tasks: Sequence[str] = ()
    tasks_path: Path | None = None
    tasks_limit: int | None = None

    def __post_init__(self) -> None:
        """Checks ranges, and that the options go together.

        Raises:
            UsageError: a value is out of its range, or something serves an evaluation that isn't asked for.
        """
        object.__setattr__(self, "deploy", tuple(choose(Rounding, name, "deploy") for name in self.deploy))
        serving = {
            "--gold": self.gold is not None, "--deploy": bool(self.deploy), "--stress": self.stress,
            "--tasks": bool(self.tasks),
        }  # fmt: skip
        for option, is_given in serving.items():
            if is_given and self.evaluate is None:
                raise UsageError(f"{option} serves an evaluation: expected --evaluate beside {option}")
        if self.relearn_lr is not None and not self.stress:
            raise UsageError("--relearn-lr is the learning rate of --stress: expected both, found --relearn-lr alone")
        if self.relearn_lr is not None and not 0 < self.relearn_lr < float("inf"):
            raise UsageError(f"--relearn-lr: expected above 0, found {self.relearn_lr}")
        if self.tasks_path is not None and not self.tasks:
            raise UsageError("--tasks-path: expected --tasks beside it, which names tasks of that folder")
        if self.tasks_limit is not None and not (self.tasks and self.tasks_limit > 0):
            raise UsageError(f"--tasks-limit: expected above 0, and --tasks beside it, found {self.tasks_limit}")

    @property
    def measures(self) -> list[str]:
        """What must be computed with models, by the names of the checks."""
        wanted = {"oracle": self.oracle, "evaluation": self.evaluate is not None}
        return [name for name, is_wanted in wanted.items() if is_wanted]


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyOptions:
    """What `audit verify` shall do.

    Attributes:
        steps: about how many steps of the sweep to take again, at least 1; None for all.
        seed: draws the stretches; None takes any.
        public_key: of the signature that the document must have, in PEM; None asks for none.
        model: where the base model lies now, if it moved.
        device: where to compute.
        evaluation: measures the evaluation again that the document holds, if it does.
        evaluate: where its rows lie now, if they moved; as `AuditOptions.evaluate`.
        gold: where its gold model lies now, if it moved.
        tasks_path: where the YAML files of its tasks lie; never taken from the document, since they can hold code.
        evaluation_tolerance: the largest difference of two numbers that passes, as a share of the larger one, or of
            0.01 if both are smaller; None is 0 on a CPU with the libraries that the document names, else 1e-3.
        oracle: replays the counterfactual, and holds the document's comparison with it against it; done anyhow where
            the evaluation needs the oracle.
    """

    steps: int | None = DEFAULT_STEPS
    seed: int | None = None
    public_key: Path | None = None
    model: str | None = None
    device: str | None = None
    evaluation: bool = True
    evaluate: str | None = None
    gold: Path | None = None
    tasks_path: Path | None = None
    evaluation_tolerance: float | None = None
    oracle: bool = False

    def __post_init__(self) -> None:
        """Checks ranges, and that the options go together.

        Raises:
            UsageError: a number is out of its range, or something serves an evaluation that is left out.
        """
        if self.steps is not None and self.steps < 1:
            raise UsageError(
                f"--steps: expected 1 or more, or 'all', found {self.steps}: a part of the sweep is always taken again",
                hint="`lmcleaner audit` checks the document and the model alone, `lmcleaner inspect --verify` the log",
            )
        if self.seed is not None and self.seed < 0:
            raise UsageError(f"--seed: expected 0 or more, found {self.seed}")
        if self.evaluation_tolerance is not None and not 0 <= self.evaluation_tolerance < float("inf"):
            raise UsageError(f"--evaluation-tolerance: expected 0 or more, found {self.evaluation_tolerance}")
        for option in self.serving if not self.evaluation else ():
            raise UsageError(f"{option} serves the evaluation: expected no --no-evaluation beside {option}")

    @property
    def serving(self) -> list[str]:
        """Options that say where something of the evaluation lies."""
        places = {"--evaluate": self.evaluate, "--gold": self.gold, "--tasks-path": self.tasks_path}
        return [option for option, place in places.items() if place is not None]
