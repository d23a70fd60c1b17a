"""The rows, the model and the parameters that a curvature matrix is taken at: from a log, or of a model as it is."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from lmcleaner.formats.errors import NotFoundError, UsageError
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.samples import IGNORED_LABEL
from lmcleaner.recording.describe import RunDescription, describe_run, trainable_parameters
from lmcleaner.training.batches import Digests, Inputs
from lmcleaner.training.replay import ReplayModel

Batch = Mapping[str, Tensor]
_ARGUMENTS: Set[str] = {"input_ids", "labels", "attention_mask"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What a curvature matrix is taken of, and where.

    Attributes:
        replay: the model.
        parameters: where to evaluate, in the order of the manifest.
        batches: gives the forward arguments of each microbatch and the state of the generators before its pass, empty
            where it drew no numbers; the same at every call.
        scale: what the sum over the microbatches is multiplied by.
    """

    replay: ReplayModel
    parameters: Sequence[Tensor]
    batches: Callable[[], Iterator[tuple[Inputs, bytes]]]
    scale: float


def logged_source(
    log: TrainingLog,
    replay: ReplayModel,
    steps: Sequence[int],
    microbatches: Sequence[int] | None,
    at: int | Sequence[Tensor] | None,
    forgotten: Digests,
) -> Source:
    """The mean over logged steps.

    Args:
        log: the training log.
        replay: the run's model.
        steps: the steps.
        microbatches: which of each step's; None is all.
        at: where to evaluate: before a step, or at tensors; None is before the first of the steps.
        forgotten: digests of samples to leave out.

    Returns:
        The source.

    Raises:
        UsageError: no step or no microbatch, or tensors unlike the parameters.
        NotFoundError: a step or a microbatch isn't there.
        InsufficientLogError: the log doesn't hold θ there.
        DamagedError: the log can't be read.
    """
    if not steps or (microbatches is not None and not microbatches):
        raise UsageError("expected one step and one microbatch at least, found none")
    for step in steps:
        count = len(log.step(step).microbatches)
        wrong = [number for number in microbatches or () if not 0 <= number < count]
        if wrong:
            raise NotFoundError(f"no such microbatch: step {step}: expected 0 to {count - 1}, found {wrong[0]}")
    where = min(steps) if at is None else at
    parameters = replay.load(log.parameters(where)) if isinstance(where, int) else where
    check_like(parameters, replay.parameters)
    batches = partial(_logged_batches, log, replay, steps, microbatches, forgotten)
    return Source(replay=replay, parameters=parameters, batches=batches, scale=1 / len(steps))


def model_source(model: nn.Module, batches: Iterable[Batch]) -> Source:
    """The mean over the counted tokens of a model's batches, at its own parameters, which are not copied.

    Args:
        model: a causal language model of transformers, in evaluation mode.
        batches: `input_ids`, `labels` and perhaps `attention_mask`, int64 `[batch, seq]`; the same at every pass.

    Returns:
        The source.

    Raises:
        UsageError: the model is in training mode or can't be described, or the batches can't be used.
    """
    _check_evaluating(model)
    if iter(batches) is batches:
        raise UsageError("batches: expected a list or a loader, found an iterator, which serves one product only")
    vocabulary = getattr(getattr(model, "config", None), "vocab_size", torch.iinfo(torch.int64).max)
    num_targets = sum(_checked_targets(batch, vocabulary) for batch in batches)
    if not num_targets:
        raise UsageError("batches: expected tokens with a label, found none")
    parameters = list(trainable_parameters(model).values())
    # A log's words for a model of which none was written; nothing ever takes a step with this optimizer.
    manifest = describe_run(model, torch.optim.SGD(parameters), RunDescription(model_source=type(model).__name__))
    replay = ReplayModel(model, manifest, parameters[0].device)
    model.eval()
    own = partial(_own_batches, replay, batches, num_targets)
    return Source(replay=replay, parameters=replay.parameters, batches=own, scale=1.0)


def check_like(tensors: Sequence[Tensor], parameters: Sequence[Tensor]) -> None:
    """Makes sure that there is one tensor for each parameter, of its shape, dtype and device.

    Args:
        tensors: what was given.
        parameters: what it must be like.

    Raises:
        UsageError: it isn't.
    """
    if not isinstance(tensors, Sequence):  # an array, or a state dict
        raise UsageError(f"expected a tensor, or one for each parameter, found a {type(tensors).__name__}")
    if len(tensors) != len(parameters):
        raise UsageError(f"expected {len(parameters)} tensors, one for each parameter, found {len(tensors)}")
    for number, (tensor, parameter) in enumerate(zip(tensors, parameters, strict=True)):
        if _kind(tensor) != _kind(parameter):
            raise UsageError(f"tensor {number}: expected {_kind(parameter)}, found {_kind(tensor)}")


def _kind(tensor: object) -> str:
    if not isinstance(tensor, Tensor):
        return f"a {type(tensor).__name__}"
    return f"{list(tensor.shape)} {tensor.dtype} on {tensor.device}"


def _logged_batches(
    log: TrainingLog, replay: ReplayModel, steps: Sequence[int], microbatches: Sequence[int] | None, forgotten: Digests
) -> Iterator[tuple[Inputs, bytes]]:
    for number in steps:
        step = log.step(number)
        pairs = list(zip(replay.inputs(step, forgotten), (record.rng for record in step.microbatches), strict=True))
        yield from pairs if microbatches is None else (pairs[index] for index in microbatches)


def _own_batches(replay: ReplayModel, batches: Iterable[Batch], num_targets: int) -> Iterator[tuple[Inputs, bytes]]:
    _check_evaluating(replay.module)
    denominator = torch.tensor(float(num_targets), device=replay.device)  # of all batches together
    for batch in batches:
        inputs = {name: value.to(replay.device) for name, value in batch.items()}
        yield inputs | {"num_items_in_batch": denominator}, b""


def _check_evaluating(model: nn.Module) -> None:
    if any(module.training for module in model.modules()):
        raise UsageError(
            "the model is in training mode: expected evaluation mode, in which it draws no random numbers",
            hint="call model.eval() before",
        )


def _checked_targets(batch: Batch, vocabulary: int) -> int:
    """How many tokens of a batch count; raises UsageError where it can't be used."""
    if not {"input_ids", "labels"} <= set(batch) <= _ARGUMENTS:
        raise UsageError(f"a batch: expected input_ids, labels and perhaps attention_mask, found {sorted(batch)}")
    tokens, labels = batch["input_ids"], batch["labels"]
    if tokens.dim() != 2 or any(value.shape != tokens.shape for value in batch.values()):
        shapes = {name: [*value.shape] for name, value in batch.items()}
        raise UsageError(f"a batch: expected one shape, [batch, seq], found {shapes}")
    for name, known in {"input_ids": tokens, "labels": labels[labels != IGNORED_LABEL]}.items():
        unknown = known[(known < 0) | (known >= vocabulary)]
        if unknown.numel():
            raise UsageError(f"{name}: expected tokens from 0 to {vocabulary - 1}, found {int(unknown[0])}")
    return int((labels[:, 1:] != IGNORED_LABEL).sum())
