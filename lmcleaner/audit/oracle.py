"""The oracle: θ′[τ] itself, by replaying the counterfactual to the end, and the error against it."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lmcleaner.choices import Denominator
from lmcleaner.evaluation.answers import answer_probabilities, mean_divergence
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.samples import Sample
from lmcleaner.progress import Progress
from lmcleaner.training.replay import ReplayModel
from lmcleaner.training.vectors import distance
from lmcleaner.unlearning.request import ForgetSet

# Rows that probabilities and divergences are measured on, evenly spaced if there are more.
_MAX_ROWS = 256


def replay_counterfactual(
    log: TrainingLog, replay: ReplayModel, forget_set: ForgetSet, denominator: Denominator, progress: Progress
) -> list[Tensor]:
    """θ′[τ]: the run from the checkpoint before the first occurrence, without what the request names.

    Args:
        log: the training log.
        replay: the run's model.
        forget_set: what to leave out.
        denominator: what to divide by where rows are left out.
        progress: is told of every step.

    Returns:
        The counterfactual's final parameters, in the order of the manifest.
    """
    state = replay.state(log.checkpoint(log.nearest_checkpoint(forget_set.steps[0])))
    numbers = steps_to_replay(log, forget_set)
    progress.begin("replaying the counterfactual", len(numbers))
    for step in map(log.step, numbers):
        state.apply(replay.gradient(step, state.parameters, forget_set.masked, denominator), step.lr)
        progress.advance()
    return [parameter.detach().to(replay.device) for parameter in state.parameters]


def steps_to_replay(log: TrainingLog, forget_set: ForgetSet) -> list[int]:
    """The counterfactual's steps, from the checkpoint before the first occurrence to the run's end."""
    start = log.nearest_checkpoint(forget_set.steps[0])
    return [number for number in range(start, log.num_steps) if number not in forget_set.skipped]


def compare_with_oracle(
    log: TrainingLog,
    replay: ReplayModel,
    forget_set: ForgetSet,
    trained: Sequence[Tensor],
    unlearned: Sequence[Tensor],
    oracle: Sequence[Tensor],
) -> dict[str, Any]:
    """How far an unlearned model is from the oracle, in parameters and in answers.

    Args:
        log: the training log.
        replay: the run's model.
        forget_set: what was left out.
        trained: θ[τ].
        unlearned: θ̂.
        oracle: θ′[τ].

    Returns:
        The `oracle` part of an audit document.
    """
    wanted, missing = distance(trained, oracle), distance(unlearned, oracle)
    rows = {
        "forgotten": counted_samples(log, forget_set, inside=True),
        "retained": counted_samples(log, forget_set, inside=False),
    }
    reference = model_at(replay, oracle)
    answers = {}
    for name, parameters in {"trained": trained, "unlearned": unlearned, "oracle": oracle}.items():
        replay.point_to(parameters)
        answers[name] = {kind: _answers(replay.module, reference, samples) for kind, samples in rows.items()}
    return {
        "relative_error": missing / wanted if wanted else float(missing > 0),
        "distance": missing,
        "wanted_distance": wanted,
        "rows": {kind: len(samples) for kind, samples in rows.items()},
        **answers,
    }


def _answers(model: nn.Module, reference: nn.Module, samples: Sequence[Sample]) -> dict[str, float] | None:
    if not samples:
        return None
    probabilities = answer_probabilities(model, samples)
    return {
        "answer_probability": sum(probabilities) / len(probabilities),
        "kl_from_oracle": mean_divergence(reference, model, samples),
    }


def model_at(replay: ReplayModel, parameters: Sequence[Tensor]) -> nn.Module:
    """A model of its own with some of the run's parameters.

    Args:
        replay: the run's model.
        parameters: in the order of the manifest.

    Returns:
        A copy of the run's model at these parameters.
    """
    module = copy.deepcopy(replay.module)
    named = dict(module.named_parameters())
    with torch.no_grad():
        for entry, tensor in zip(replay.manifest.parameters, parameters, strict=True):
            named[entry.name].data = tensor.detach().clone()
    return module


def counted_samples(log: TrainingLog, forget_set: ForgetSet, *, inside: bool) -> list[Sample]:
    """Samples in, or outside, the forget set that have a counted token; evenly spaced ones of more than 256."""
    chosen = [row for digest, row in log.sample_rows.items() if (digest in forget_set.digests) is inside]
    stride = max(1, -(-len(chosen) // _MAX_ROWS))
    samples = [log.sample(row) for row in chosen[::stride]]
    return [sample for sample in samples if sample.num_targets]
