"""`unlearn`: from a log and a request to an unlearned model with its audit document."""

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from lmcleaner.audit.document import Outcome, make_document
from lmcleaner.audit.oracle import compare_with_oracle, replay_counterfactual
from lmcleaner.choices import Propagation
from lmcleaner.formats.audit_document import AUDIT_FILE, Document, write_audit
from lmcleaner.formats.canonical import sha256_hex
from lmcleaner.formats.errors import InsufficientLogError
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.store import Store
from lmcleaner.output import atomic_folder, check_free
from lmcleaner.progress import Progress, Silent
from lmcleaner.training.models import load_base_model, load_tokenizer
from lmcleaner.training.numerics import replay_device, restored_numerics, unrestorable
from lmcleaner.training.replay import ReplayModel
from lmcleaner.unlearning.combine import Correction
from lmcleaner.unlearning.counterfactual import Counterfactual
from lmcleaner.unlearning.options import UnlearnOptions
from lmcleaner.unlearning.plan import Plan, make_plan
from lmcleaner.unlearning.redaction import open_to_redact, redaction
from lmcleaner.unlearning.remaining import find_remaining
from lmcleaner.unlearning.request import ForgetSet
from lmcleaner.unlearning.setting import Setting
from lmcleaner.unlearning.sweep import sweep_window
from lmcleaner.unlearning.verdict import reasons_against, unmeasured, unmet_assumptions
from lmcleaner.unlearning.windows import Window, windows_in


@dataclass(frozen=True, slots=True, kw_only=True)
class UnlearnResult:
    """What `unlearn` found and made.

    Attributes:
        forget_set: what the request names.
        windows: the steps to go through.
        plan: what it costs.
        document: the audit document; None for a dry run.
    """

    forget_set: ForgetSet
    windows: tuple[Window, ...]
    plan: Plan
    document: Document | None

    @property
    def is_good(self) -> bool:
        """Whether the verdict is good; a dry run has none to be bad."""
        return self.document is None or self.document["result"]["verdict"] == "good"


def unlearn(log_path: Store | Path | str, options: UnlearnOptions, progress: Progress | None = None) -> UnlearnResult:
    """Removes the influence of what a request names from the model that a log trained.

    Args:
        log_path: the training log; it is not changed, unless `options.redact`.
        options: what to remove and how.
        progress: whom to tell how far it is.

    Returns:
        What was found and made. With a poor verdict the output is written all the same, and says so.

    Raises:
        ExistsError: the output exists, or the log is to be redacted and somebody writes it.
        NotFoundError: the log, the base model, or something that the request names isn't there, or is redacted already.
        UsageError: the request names everything, or a log that can't be written is to be redacted.
        InsufficientLogError: the run was interrupted, and the log is to be redacted or lacks its last parameters.
        MismatchError: the base model is not the log's, or the log can't be redacted on this machine.
        DivergedError: the deviation is not finite or grows without bound; nothing is written.
        DamagedError: a part of the log that is needed can't be trusted.
    """
    progress = progress or Silent()
    opened = open_to_redact(log_path, options, progress) if options.redact else nullcontext(TrainingLog(log_path))
    with opened as log:
        forget_set, windows = resolve_request(log, options, progress)
        plan = make_plan(log, forget_set, windows, options.hessian_mode, options.rank)
        for line in _plan_lines(log, forget_set, windows, plan, options):
            progress.say(line)
        if options.output is not None:
            check_free(options.output)
        document = None if options.dry_run else _unlearned(log, forget_set, windows, plan, options, progress)
    return UnlearnResult(forget_set=forget_set, windows=windows, plan=plan, document=document)


def resolve_request(
    log: TrainingLog, options: UnlearnOptions, progress: Progress | None = None
) -> tuple[ForgetSet, tuple[Window, ...]]:
    """What a request names, and the windows that it needs.

    Args:
        log: the training log.
        options: what to remove and how.
        progress: is told of samples that are redacted already.

    Returns:
        The forget set without them, and its windows.

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
    forget_set = find_remaining(
        log, options.forget, options.level, lambda: load_tokenizer(source), progress or Silent()
    )
    return forget_set, windows_in(log, forget_set.steps, options.K)


def _unlearned(
    log: TrainingLog,
    forget_set: ForgetSet,
    windows: Sequence[Window],
    plan: Plan,
    options: UnlearnOptions,
    progress: Progress,
) -> Document:
    """Sweeps, judges, writes, and redacts the log if it shall."""
    replay = ReplayModel(load_base_model(log.manifest, options.model), log.manifest, replay_device(log.manifest))
    for difference in unrestorable(log.manifest):
        progress.say(f"replay may differ in the last bits: {difference}")
    with restored_numerics(log.manifest.numerics):
        document, unlearned = _run(log, replay, forget_set, windows, plan, options, progress)
        if not options.redact:
            _write(log, replay, unlearned, document, options)
            return document
        wanted = Counterfactual(log=log, replay=replay, forget_set=forget_set, denominator=options.denominator)
        with redaction(wanted, unlearned, progress) as prepared:
            prepared.commit(_write(log, replay, unlearned, document, options))
    return document


def _run(
    log: TrainingLog,
    replay: ReplayModel,
    forget_set: ForgetSet,
    windows: Sequence[Window],
    plan: Plan,
    options: UnlearnOptions,
    progress: Progress,
) -> tuple[Document, list[Tensor]]:
    """Sweeps, compares, judges."""
    started = time.perf_counter()
    setting = Setting(replay, forget_set, options.hessian_mode, options.denominator, options.damping)
    correction = Correction()
    progress.begin("unlearning", plan.steps)
    reports = [sweep_window(log, window, setting, options, correction, progress) for window in windows]
    final = replay.load(log.parameters(log.num_steps))
    unlearned, change = correction.apply(final)
    sweep_seconds = time.perf_counter() - started
    oracle = None
    if options.oracle:
        counterfactual = replay_counterfactual(log, replay, forget_set, options.denominator, progress)
        oracle = compare_with_oracle(log, replay, forget_set, final, unlearned, counterfactual)
    reasons = reasons_against(reports, change, oracle, log.num_steps, options.thresholds)
    if options.propagation is Propagation.PAPER:
        reasons += unmet_assumptions(log)
    if oracle is None:
        reasons += unmeasured(options.hessian_mode)
    outcome = Outcome(
        reports=tuple(reports),
        change=change,
        reasons=tuple(reasons),
        oracle=oracle,
        model_before=replay.fingerprint(final),
        model_after=replay.fingerprint(unlearned),
        timing={"sweep_seconds": sweep_seconds, "seconds": time.perf_counter() - started},
    )
    return make_document(log, forget_set, plan, options, outcome), unlearned


def _write(
    log: TrainingLog, replay: ReplayModel, unlearned: Sequence[Tensor], document: Document, options: UnlearnOptions
) -> str:
    """Writes the output folder; SHA-256 of the audit document's file."""
    assert options.output is not None
    with atomic_folder(options.output) as folder:
        replay.point_to(unlearned)
        replay.module.save_pretrained(folder)  # type: ignore[operator]
        load_tokenizer(options.model or log.manifest.model.source).save_pretrained(folder)
        write_audit(folder, document)
        return sha256_hex((folder / AUDIT_FILE).read_bytes())


def _plan_lines(
    log: TrainingLog, forget_set: ForgetSet, windows: Sequence[Window], plan: Plan, options: UnlearnOptions
) -> Iterator[str]:
    spans = ", ".join(f"{w.first} to {w.end}" for w in windows[:4]) + (", ..." if len(windows) > 4 else "")
    yield (
        f"{len(forget_set.digests)} samples, {forget_set.num_occurrences} occurrences in {len(forget_set.steps)} "
        f"steps; "
        f"{len(windows)} window{'s' if len(windows) != 1 else ''} ({spans}); {plan.mode}: {plan.gradients} gradients, "
        f"{plan.products} products, {plan.bytes_to_read / 1e6:.1f} MB to read, about {plan.seconds:.0f} s, "
        f"{plan.parameter_memory_bytes / 1e6:.1f} MB of parameters and state"
    )
    if options.redact:
        yield (
            f"the log is rewritten, with {log.num_steps} gradients more and room for a second log meanwhile; the "
            f"samples' content and the trajectory from step {forget_set.steps[0]} on are then deleted for good"
        )
        if log.commit.curvature:
            yield "the recorded curvature goes too, since all rows went into it; `lmcleaner curvature` adds it anew"
    if plan.data_free:
        yield "no row is read: gradients and curvature come from the log, and no gradient is measured"
    if not log.commit.finished:
        yield f"the run was interrupted: the trained model is the one after its last step, {log.num_steps - 1}"
