"""`unlearn`: from a log and a request to an unlearned model with its audit document."""

import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

from lmcleaner.audit.document import Outcome, make_document
from lmcleaner.audit.files import FILES, file_digests
from lmcleaner.audit.oracle import compare_with_oracle, replay_counterfactual
from lmcleaner.audit.requests import request_documents
from lmcleaner.choices import DEFAULT_RANK, HessianMode
from lmcleaner.curvature.estimates import check_rank
from lmcleaner.formats.audit_document import AUDIT_FILE, Document, encode_audit, write_audit
from lmcleaner.formats.canonical import sha256_hex
from lmcleaner.formats.errors import InsufficientLogError
from lmcleaner.formats.ledger import Ledger, read_ledger
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.store import Store
from lmcleaner.output import atomic_folder, check_free, check_room
from lmcleaner.progress import Progress, Silent
from lmcleaner.training.losses import balances_experts, check_curvature
from lmcleaner.training.memory import PeakMemory
from lmcleaner.training.models import holds_tokenizer, load_tokenizer
from lmcleaner.training.numerics import replay_device, restored_numerics, unrestorable
from lmcleaner.training.replay import ReplayModel, open_replay
from lmcleaner.unlearning.choosing import Trial, choose_mode, trial_lines
from lmcleaner.unlearning.combine import Correction
from lmcleaner.unlearning.counterfactual import Counterfactual
from lmcleaner.unlearning.earlier import earlier_requests
from lmcleaner.unlearning.entering import Desk, not_entered, open_desk
from lmcleaner.unlearning.kept import StateKeeper, keeping_states
from lmcleaner.unlearning.options import UnlearnOptions, mode_options
from lmcleaner.unlearning.oracle_cost import oracle_seconds
from lmcleaner.unlearning.plan import Plan, make_plan, plan_lines
from lmcleaner.unlearning.redaction import open_to_redact, redaction
from lmcleaner.unlearning.remaining import find_remaining
from lmcleaner.unlearning.request import ForgetSet
from lmcleaner.unlearning.setting import Setting
from lmcleaner.unlearning.sweep import sweep
from lmcleaner.unlearning.verdict import foreseen_reasons, reasons_against
from lmcleaner.unlearning.windows import Window, windows_in

_BALANCED = (
    "the run's loss holds the router's auxiliary loss: the rows of padding that stand for forgotten ones take part in "
    "it, and no curvature knows of it"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnlearnResult:
    """What `unlearn` found and made.

    Attributes:
        forget_set: what the requests name, and those before them that the log's ledger holds.
        windows: the steps to go through.
        plan: what it costs.
        warnings: why the result will be poor whatever is measured; none where it may be good.
        lines: requests, windows, plan and warnings for people.
        document: the audit document; None for a dry run.
    """

    forget_set: ForgetSet
    windows: tuple[Window, ...]
    plan: Plan
    warnings: tuple[str, ...]
    lines: tuple[str, ...]
    document: Document | None

    @property
    def is_good(self) -> bool:
        """Whether the verdict is good; a dry run has none to be bad."""
        return self.document is None or self.document["result"]["verdict"] == "good"


def unlearn(
    log: TrainingLog | Store | Path | str,
    forget: UnlearnOptions | str | Path | Iterable[str | Path],
    *,
    progress: Progress | None = None,
    **options: Any,
) -> UnlearnResult:
    """Removes the influence of what requests name from the model that a log trained.

    Args:
        log: the training log, or where it lies; nothing of it changes but its request ledger, unless it is redacted.
        forget: what to forget, see `find_request`; or options, which say how as well.
        progress: whom to tell how far it is, and the plan before anything is computed; a dry run returns it.
        **options: fields of `UnlearnOptions` by their names, instead of its defaults or of the options given.

    Returns:
        What was found and made. With a poor verdict the output is written all the same, and says so.

    Raises:
        ExistsError: the output exists, or somebody writes the log. If that shows only in the end, the output is there,
            but not in the log's ledger.
        NotFoundError: the log, the base model, or something that the request names isn't there, or is redacted already.
        UsageError: the requests name everything, the rank is out of its range, there is no such device, or a log is to
            be redacted that can't be written.
        InsufficientLogError: the run was interrupted, and the log is to be redacted or lacks its last parameters; or
            the log itself says that the run can't be replayed.
        MismatchError: the base model is not the log's, the log can't be redacted on this machine, or it was changed
            while the requests ran: then the output is there, but not in the log's ledger.
        DivergedError: the deviation is not finite or grows without bound; nothing is written.
        ResourceError: the output can't be written; what can be known of that is found before anything is computed.
        DamagedError: a part of the log that is needed can't be trusted.
    """
    location = log.place if isinstance(log, TrainingLog) else log
    chosen = (
        replace(forget, **options) if isinstance(forget, UnlearnOptions) else UnlearnOptions(forget=forget, **options)
    )
    if chosen.hessian_mode is not HessianMode.SECANT:
        mode_options(chosen.hessian_mode, chosen.tolerance)  # refuses a tolerance that no mode would be chosen by
    return _serve(location, chosen, progress or Silent())


def _serve(location: Store | Path | str, options: UnlearnOptions, progress: Progress) -> UnlearnResult:
    opened = open_to_redact(location, options, progress) if options.redact else nullcontext(TrainingLog(location))
    with opened as log:
        ledger = read_ledger(log) if options.ledger else None
        forget_set, windows = resolve_request(log, options, progress, ledger)
        _check_replayable(log, progress)
        if options.hessian_mode is not HessianMode.SECANT or options.tolerance is not None:
            check_curvature(log.manifest)
        if options.output is not None:
            check_free(options.output)
            check_room(options.output, log.manifest.vector_bytes)
        memory = PeakMemory(replay_device(log.manifest, options.device))
        replay = open_replay(log.manifest, options.model, options.device, offload=options.offload)
        if forget_set.masked and balances_experts(replay.module, log.manifest):
            progress.say(_BALANCED)
        trials: tuple[Trial, ...] = ()
        if options.tolerance is not None and not options.dry_run:
            options, trials = choose_mode(log, replay, forget_set, windows, options, progress)
        planned = _planned(log, replay, forget_set, windows, options)
        if options.dry_run:
            return planned
        for line in planned.lines:
            progress.say(line)
        desk = open_desk(location, log, ledger, planned.forget_set, has_lock=options.redact)
        if desk.closed is not None:
            progress.say(f"NOT ENTERED: the next request won't know of this one: {desk.closed}")
        return replace(planned, document=_unlearned(desk, replay, planned, trials, memory, options, progress))


def _check_replayable(log: TrainingLog, progress: Progress) -> None:
    """Goes by what the log says of itself since the run ended."""
    found = log.commit.self_check
    if found is not None and found.state == "no":
        raise InsufficientLogError(
            f"the run can't be replayed, so nothing can be removed from it: {log.location}: {found.why}",
            hint="record it again without what no log can hold, or with the base model where it was",
        )
    if found is not None and found.state == "close":
        progress.say(f"replays of this run come close only: {found.why}")


def _planned(
    log: TrainingLog, replay: ReplayModel, forget_set: ForgetSet, windows: tuple[Window, ...], options: UnlearnOptions
) -> UnlearnResult:
    """What a dry run finds; measures the costs of the mode's parts on this machine."""
    rank = options.rank or DEFAULT_RANK
    if options.hessian_mode is HessianMode.LOW_RANK:
        check_rank(rank, log.manifest.num_elements, replay.device)
    oracle = oracle_seconds(log, forget_set, options.denominator, replay) if options.oracle else 0.0
    plan = make_plan(
        log, forget_set, windows, options.hessian_mode, rank, propagation=options.propagation,
        oracle_sample=options.oracle_sample, is_end_fixed=options.K != "auto", oracle_seconds=oracle, replay=replay,
    )  # fmt: skip
    warnings = tuple(foreseen_reasons(log, options))
    lines = tuple(plan_lines(log, forget_set, windows, plan, warnings, redact=options.redact))
    if options.dry_run and options.tolerance is not None:
        lines += tuple(trial_lines(log, forget_set, windows, options))
    return UnlearnResult(
        forget_set=forget_set, windows=windows, plan=plan, warnings=warnings, lines=lines, document=None
    )


def resolve_request(
    log: TrainingLog, options: UnlearnOptions, progress: Progress | None = None, ledger: Ledger | None = None
) -> tuple[ForgetSet, tuple[Window, ...]]:
    """What a request names, with what was served before it, and the windows that both need.

    Args:
        log: the training log.
        options: what to remove and how.
        progress: is told of samples that are redacted already.
        ledger: of the log; None to leave it out of account.

    Returns:
        The forget set without what is redacted already, and its windows.

    Raises:
        InsufficientLogError: the run was interrupted and its last parameters are not in the log.
        NotFoundError: something that the request names isn't there, or all of it is redacted already.
        UsageError: the request can't be read, or names everything.
        MismatchError: the tokenizer is another one than the run's.
    """
    if log.num_steps not in log.readable_steps:
        raise InsufficientLogError(
            f"the run was interrupted, and the log holds no updates: {log.location}: expected a checkpoint of step "
            f"{log.num_steps}, found {list(log.checkpoint_steps)}",
            hint="record with --updates lossless, so that the parameters after every step are known",
        )
    source = options.model or log.manifest.model.source
    progress = progress or Silent()
    earlier = earlier_requests(log, ledger) if ledger is not None else ()
    if ledger is not None and ledger.has_prepared:
        progress.say("a run that was killed may have served a request without entering it: it counts as served")
    tokenizer = cache(lambda: load_tokenizer(source))
    forget_set = find_remaining(log, options.requests, options.level, earlier, tokenizer, progress)
    return forget_set, windows_in(log, forget_set.steps, options.K)


def _unlearned(
    desk: Desk,
    replay: ReplayModel,
    planned: UnlearnResult,
    trials: tuple[Trial, ...],
    memory: PeakMemory,
    options: UnlearnOptions,
    progress: Progress,
) -> Document:
    """Sweeps, judges, writes, enters the requests, and redacts the log if it shall."""
    log, forget_set = desk.log, planned.forget_set
    for difference in unrestorable(log.manifest, replay.device):
        progress.say(f"replay may differ in the last bits: {difference}")
    assert options.output is not None
    tokenizer = _find_tokenizer(options.model or log.manifest.model.source, progress)
    with restored_numerics(log.manifest.numerics), keeping_states(options.output, options.keep_states) as keeper:
        document, unlearned = _run(log, replay, planned, trials, keeper, memory, options, progress)
        if not options.redact:
            return _write(desk, replay, unlearned, document, forget_set, tokenizer, keeper, options.output)
        wanted = Counterfactual(log=log, replay=replay, forget_set=forget_set, denominator=options.denominator)
        with redaction(wanted, unlearned, progress) as prepared:
            document = _write(desk, replay, unlearned, document, forget_set, tokenizer, keeper, options.output)
            prepared.commit(sha256_hex(encode_audit(document)), read_ledger(log))
    return document


def _find_tokenizer(source: str, progress: Progress) -> Any:
    """The base model's tokenizer, for the output; None, and said, where its folder holds none."""
    if holds_tokenizer(source):
        return load_tokenizer(source)
    progress.say(f"no tokenizer beside the base model, so none beside the unlearned one: {source}")
    return None


def _run(
    log: TrainingLog,
    replay: ReplayModel,
    planned: UnlearnResult,
    trials: tuple[Trial, ...],
    keeper: StateKeeper,
    memory: PeakMemory,
    options: UnlearnOptions,
    progress: Progress,
) -> tuple[Document, list[Tensor]]:
    """Sweeps, compares, judges."""
    forget_set, plan = planned.forget_set, planned.plan
    memory.restart()
    started = time.perf_counter()
    setting = Setting(replay, forget_set, options.hessian_mode, options.denominator, options.damping, keeper)
    correction = Correction()
    progress.begin("unlearning", plan.steps)
    reports = sweep(log, setting, options, correction, progress)
    final = replay.load(log.parameters(log.num_steps))
    unlearned, change = correction.apply(final)
    timing: dict[str, Any] = {
        "sweep_seconds": time.perf_counter() - started,
        "peak_memory_bytes": memory.peak_bytes(),
    }
    oracle = None
    if options.oracle:
        counterfactual = replay_counterfactual(log, replay, forget_set, options.denominator, progress)
        oracle = compare_with_oracle(log, replay, forget_set, final, unlearned, counterfactual)
    reasons = reasons_against(reports, change, oracle, log.num_steps, options) + foreseen_reasons(log, options)
    outcome = Outcome(
        reports=tuple(reports),
        trials=trials,
        change=change,
        reasons=tuple(reasons),
        oracle=oracle,
        model_before=replay.fingerprint(final),
        model_after=replay.fingerprint(unlearned),
        timing=timing | {"seconds": time.perf_counter() - started},
    )
    return make_document(log, forget_set, plan, options, outcome), unlearned


def _write(
    desk: Desk,
    replay: ReplayModel,
    unlearned: Sequence[Tensor],
    document: Document,
    forget_set: ForgetSet,
    tokenizer: Any,
    keeper: StateKeeper,
    output: Path,
) -> Document:
    """Writes the output folder and enters its requests; the audit document as it was written."""
    # Left in the other order: the folder gets its name, then the prepared entry becomes one, then the lock is released.
    with ExitStack() as held, atomic_folder(output) as folder:
        replay.point_to(unlearned)
        replay.module.save_pretrained(folder)  # type: ignore[operator]
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        keeper.move_to(folder)
        document, failure = desk.prepare(document | {FILES: file_digests(folder)}, forget_set, held)
        content = encode_audit(document)
        write_audit(folder / AUDIT_FILE, content)
        for place, own in request_documents(document, sha256_hex(content)).items():
            write_audit(folder / place, encode_audit(own))
    if failure is not None:
        raise not_entered(failure, output, desk.log.location)
    return document
