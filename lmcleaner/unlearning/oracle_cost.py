"""What `--oracle` will take: the counterfactual's replay, and three models' answers held against its own."""

from collections.abc import Sequence

import numpy as np

from lmcleaner.audit.oracle import counted_samples, steps_to_replay
from lmcleaner.choices import Denominator
from lmcleaner.evaluation.answers import answer_probabilities, mean_divergence
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.samples import Sample
from lmcleaner.formats.steps import StepRecord
from lmcleaner.training.numerics import restored_numerics
from lmcleaner.training.replay import ReplayModel
from lmcleaner.unlearning.costs import evenly_chosen, seconds_per_token, timed
from lmcleaner.unlearning.request import ForgetSet
from lmcleaner.unlearning.shapes import padded_tokens

_MODELS = 3  # that are compared: the trained one, the unlearned one, and the oracle itself
_TIMED_ROWS = 16


def oracle_seconds(
    log: TrainingLog, forget_set: ForgetSet, denominator: Denominator, replay: ReplayModel | None = None
) -> float:
    """What `replay_counterfactual` and `compare_with_oracle` will take.

    Args:
        log: the training log.
        forget_set: what to leave out.
        denominator: what to divide by where rows are left out.
        replay: the run's model, to measure on this machine; None takes the run's own step times.

    Returns:
        Seconds.
    """
    numbers, tokens = steps_to_replay(log, forget_set), padded_tokens(log)
    rows = [sample for inside in (True, False) for sample in counted_samples(log, forget_set, inside=inside)]
    compared = sum(len(sample.tokens) for sample in rows)
    if replay is None:
        a_token = float(np.median(log.table("steps/seconds"))) / float(tokens.mean())
        # Each model's answers, and its and the oracle's for their divergence, are three passes: as many as a gradient.
        return a_token * float(tokens[numbers].sum() + _MODELS * compared)
    with restored_numerics(log.manifest.numerics):
        replayed = _replay_seconds(log, forget_set, denominator, replay, evenly_chosen(numbers)) if numbers else 0.0
        answered = _answer_seconds(replay, rows)
    return replayed * float(tokens[numbers].sum()) + _MODELS * answered * compared


def _replay_seconds(
    log: TrainingLog, forget_set: ForgetSet, denominator: Denominator, replay: ReplayModel, numbers: Sequence[int]
) -> float:
    """Of a token in a step of the counterfactual."""
    state = replay.state(log.checkpoint(log.nearest_checkpoint(numbers[0])))

    def take(step: StepRecord) -> None:
        state.apply(replay.gradient(step, state.parameters, forget_set.masked, denominator), step.lr)

    return seconds_per_token(take, [log.step(number) for number in numbers], padded_tokens(log)[numbers], replay.device)


def _answer_seconds(replay: ReplayModel, rows: Sequence[Sample]) -> float:
    """Of a token in the comparison of one model with the oracle."""
    some = rows[:: max(1, len(rows) // _TIMED_ROWS)]
    if not some:
        return 0.0

    def answer() -> None:
        answer_probabilities(replay.module, some)
        mean_divergence(replay.module, replay.module, some)

    timed(answer, replay.device)  # to get warm
    return timed(answer, replay.device) / sum(len(sample.tokens) for sample in some)
