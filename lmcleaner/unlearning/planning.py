"""What a request would cost in every mode."""

from dataclasses import dataclass

from lmcleaner.choices import DEFAULT_RANK, HessianMode
from lmcleaner.curvature.estimates import check_rank
from lmcleaner.formats.ledger import read_ledger
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.training.losses import has_curvature
from lmcleaner.training.numerics import replay_device
from lmcleaner.training.replay import open_replay
from lmcleaner.unlearning.options import UnlearnOptions
from lmcleaner.unlearning.oracle_cost import oracle_seconds
from lmcleaner.unlearning.plan import Plan, make_plan
from lmcleaner.unlearning.request import ForgetSet
from lmcleaner.unlearning.run import resolve_request
from lmcleaner.unlearning.windows import Window


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestPlans:
    """What a request would take.

    Attributes:
        forget_set: what it names, and what was served before it.
        windows: the steps to go through.
        plans: one for each mode, each with the oracle's seconds.
    """

    forget_set: ForgetSet
    windows: tuple[Window, ...]
    plans: tuple[Plan, ...]


def plan_request(
    log: TrainingLog, options: UnlearnOptions, *, rank: int | None = None, quick: bool = False
) -> RequestPlans:
    """Plans a request in every mode; unless it shall be quick, each mode's parts run on this machine to be timed.

    Args:
        log: the training log.
        options: the request, K, level, device, and where the base model lies; their mode doesn't matter.
        rank: eigenpairs of LOW_RANK; None for the default.
        quick: takes the run's own step times, and doesn't load the model.

    Returns:
        The plans, in the order of `HessianMode`; of SECANT alone where the run's loss has no curvature.

    Raises:
        NotFoundError: something that the request names, or the base model, isn't there.
        UsageError: the request can't be read, the rank is out of its range, or there is no such device.
        InsufficientLogError: the run was interrupted and its last parameters are not in the log.
        MismatchError: the base model or the tokenizer is another one.
    """
    if rank is not None:
        check_rank(rank, log.manifest.num_elements, replay_device(log.manifest, options.device))
    forget_set, windows = resolve_request(log, options, ledger=read_ledger(log) if options.ledger else None)
    replay = None if quick else open_replay(log.manifest, options.model, options.device)
    is_end_fixed = options.K != "auto"
    oracle = oracle_seconds(log, forget_set, options.denominator, replay)
    plans = tuple(
        make_plan(
            log, forget_set, windows, mode, rank or DEFAULT_RANK,
            is_end_fixed=is_end_fixed, oracle_seconds=oracle, replay=replay,
        )
        for mode in (HessianMode if has_curvature(log.manifest) else [HessianMode.SECANT])
    )  # fmt: skip
    return RequestPlans(forget_set=forget_set, windows=windows, plans=plans)
