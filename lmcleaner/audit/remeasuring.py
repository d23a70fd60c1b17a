"""Measures again what a document says of its models, and holds the document against it; writes nothing."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lmcleaner.audit.asked import ASKED, asked_again, asked_problem, without_tasks
from lmcleaner.audit.check import GONE, AuditReport
from lmcleaner.audit.evaluation import EVALS, evaluated_on
from lmcleaner.audit.holding import ENVIRONMENT, ORACLE, held_against
from lmcleaner.audit.measuring import Measured, Wanted, find_wanted, measure
from lmcleaner.audit.options import AuditOptions, VerifyOptions
from lmcleaner.audit.statements import unequal
from lmcleaner.evaluation.harness import EVAL_FILE
from lmcleaner.evaluation.tasks import load_tasks
from lmcleaner.formats.audit_document import EVALUATION, Document
from lmcleaner.formats.errors import InsufficientLogError, LmcleanerError, NotFoundError, ResourceError
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.progress import Progress
from lmcleaner.training.fingerprint import model_fingerprint
from lmcleaner.training.models import load_unlearned
from lmcleaner.training.numerics import replay_device, restored_numerics

_ELSEWHERE = 1e-3  # numbers may differ by it on another machine, or with other libraries
# Of the document's environment, but not of an evaluation's.
_RUNS = {"unrestorable", "omp_num_threads"}
_LEFT_OUT = "left out by --no-evaluation"
_OF_A_FOLDER = "they are those of a folder, whose files can hold code: --tasks-path DIR says where it lies"
_NO_ORACLE = "the document holds no comparison with it: lmcleaner audit --oracle makes one"
_ALONE = f"{EVALS}/ holds scores of an evaluation, and the document none"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """What to measure again; `options` ask for nothing where there is nothing to."""

    options: AuditOptions
    wanted: Wanted | None = None


class Remeasuring:
    """Measures again.

    Attributes:
        checks: name of each check that was made, and what is wrong; None where it passed.
        unchecked: name of each that couldn't be, and why.
        summary: number of values that were compared, the largest difference of two numbers, where it is, and the
            tolerance; None where nothing was measured.
    """

    def __init__(
        self, report: AuditReport, log: TrainingLog, folder: Path, options: VerifyOptions, progress: Progress
    ) -> None:
        """Measures nothing yet.

        Args:
            report: what was checked before; where a check failed, nothing is measured.
            log: the training log.
            folder: the output folder; isn't changed.
            options: what to measure again, and where things lie now.
            progress: is told of every step and batch.
        """
        self._document, self._log, self._folder = report.document, log, folder
        self._options, self._progress = options, progress
        self._here = evaluated_on(replay_device(log.manifest, options.device))
        failed = [name for name, problem in report.checks.items() if problem is not None]
        self._reason = f"another check failed: {failed[0]}" if failed else GONE if "log" in report.unchecked else None
        self.checks: dict[str, str | None] = {}
        self.unchecked: dict[str, str] = {}
        self.summary: dict[str, Any] | None = None

    def run(self, evaluation: Document | None) -> None:
        """Measures what the document says of the models, as far as that is possible.

        Args:
            evaluation: that the document holds; None without one.

        Raises:
            ResourceError: the machine has too little memory for it.
        """
        plan = self._with_oracle(self._planned(evaluation))
        if not plan.options.measures:
            return
        try:
            with restored_numerics(self._log.manifest.numerics):
                measured = measure(self._document, self._log, self._folder, plan.options, plan.wanted, self._progress)
        except LmcleanerError as error:
            self._add(plan.options.measures[-1], error)
        else:
            self._compare(evaluation, measured)

    def _planned(self, evaluation: Document | None) -> _Plan:
        """What there is to measure of an evaluation; says what is wrong or missing before anything is computed."""
        nothing = _Plan(options=AuditOptions(model=self._options.model, device=self._options.device))
        if evaluation is None:
            if (self._folder / EVALS / EVAL_FILE).exists():
                self.unchecked[EVALS] = _ALONE
            return nothing
        reason = self._reason or ("" if self._options.evaluation else _LEFT_OUT)
        if reason:
            self._leave_out(EVALUATION, reason)
            return nothing
        try:
            problem = asked_problem(evaluation)
            plan = nothing if problem is not None else self._ready(evaluation)
            problem = problem or self._problem_of_inputs(evaluation, plan)
        except LmcleanerError as error:
            self._add(EVALUATION, error)
            return nothing
        if problem is not None:
            self.checks[EVALUATION] = problem
        return plan if problem is None else nothing

    def _ready(self, evaluation: Document) -> _Plan:
        """The same options once more, and what they need; without tasks that can't be loaded."""
        asked = asked_again(evaluation, self._options)
        if evaluation[ASKED]["tasks"] and not asked.tasks:
            self.unchecked["tasks"] = _OF_A_FOLDER
        elif asked.tasks:
            try:
                load_tasks(asked.tasks, asked.tasks_path, asked.tasks_limit)
            except NotFoundError as error:
                self._add("tasks", error)
                asked = without_tasks(asked)
        return _Plan(options=asked, wanted=find_wanted(self._document, self._log, asked, self._progress))

    def _problem_of_inputs(self, evaluation: Document, plan: _Plan) -> str | None:
        """Whether rows and gold are those that the document names; told before it costs anything."""
        assert plan.wanted is not None
        stated = {part: rows["sha256"] for part, rows in evaluation["rows"].items()}
        found = {part.value: digest for part, digest in plan.wanted.rows.digests.items()}
        problem = unequal("SHA-256 of the rows", stated, found)
        if problem is not None:
            return f"{problem}: --evaluate SPEC says where those rows lie now"
        if plan.options.gold is None:
            return None
        gold = load_unlearned(self._log.manifest, plan.options.gold, self._options.model)
        problem = unequal("gold_model", evaluation["gold_model"], model_fingerprint(gold))
        return problem and f"{problem}: --gold DIR says where that model lies now"

    def _with_oracle(self, plan: _Plan) -> _Plan:
        """The comparison with the oracle costs little where the evaluation replays it anyhow."""
        is_stated, is_asked = self._document[ORACLE] is not None, self._options.oracle
        if is_asked and (self._reason is not None or not is_stated):
            self.unchecked[ORACLE] = self._reason or _NO_ORACLE
            return plan
        is_replayed = plan.wanted is not None and plan.options.gold is None
        return replace(plan, options=replace(plan.options, oracle=is_stated and (is_asked or is_replayed)))

    def _compare(self, evaluation: Document | None, measured: Measured) -> None:
        """Holds what is stated against what was measured."""
        found = held_against(measured, self._document, evaluation, self._folder, self._tolerance)
        if evaluation is not None and measured.evaluation is not None:
            self._say_where(evaluation[ENVIRONMENT])
        self.checks |= {name: agreement.problem for name, agreement in found.items()}
        largest = max(found.values(), key=lambda agreement: agreement.largest)
        self.summary = {
            "values": sum(agreement.num_values for agreement in found.values()),
            "largest_difference": largest.largest,
            "at": largest.at,
            "tolerance": largest.tolerance,
        }

    def _tolerance(self, stated: Document) -> float:
        """On the CPU that measured, with the same libraries, the bits are the same."""
        if self._options.evaluation_tolerance is not None:
            return self._options.evaluation_tolerance
        is_exact = self._here["device"].startswith("cpu") and not self._elsewhere(stated)
        return 0.0 if is_exact else _ELSEWHERE

    def _say_where(self, stated: Document) -> None:
        elsewhere = self._elsewhere(stated)
        if elsewhere:
            self.unchecked[ENVIRONMENT] = (
                f"by its own word the evaluation was measured with {', '.join(elsewhere)}: numbers pass that are "
                f"{self._tolerance(stated):g} apart"
            )

    def _elsewhere(self, stated: Document) -> list[str]:
        """What is different here."""
        names = [name for name in {**self._here, **stated} if stated.get(name) != self._here.get(name)]
        return [f"{name} {stated.get(name)!s:.60}, here {self._here.get(name)}" for name in names if name not in _RUNS]

    def _add(self, name: str, error: LmcleanerError) -> None:
        """What is missing leaves a check out; all else fails it."""
        if isinstance(error, ResourceError):
            raise error
        if isinstance(error, NotFoundError | InsufficientLogError):
            self._leave_out(name, f"{error.message}: {error.hint}" if error.hint else error.message)
        else:
            self.checks[name] = error.message

    def _leave_out(self, name: str, reason: str) -> None:
        """Without the evaluation, the scores in `evals/` aren't compared either."""
        self.unchecked |= dict.fromkeys((EVALUATION, EVALS) if name == EVALUATION else (name,), reason)
