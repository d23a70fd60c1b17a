"""What a step must be like so that replay can reproduce it."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lmcleaner.formats.errors import DivergedError, UsageError
from lmcleaner.formats.manifest import Manifest
from lmcleaner.training.optimizers import hyperparameters

# A clipped gradient may exceed the threshold by the rounding of its norm.
_CLIP_TOLERANCE = 1e-2


def gradient_norm(parameters: Sequence[Tensor], limit: float | None, step: int, divisor: float = 1.0) -> float:
    """L2 norm of the gradient that the optimizer is about to use.

    Args:
        parameters: the trainable parameters.
        limit: what the loop said to clip the norm at, or None.
        step: number of the step, for messages.
        divisor: what the optimizer will divide the gradient by itself.

    Returns:
        The norm.

    Raises:
        DivergedError: it is not finite.
        UsageError: the gradient isn't clipped as it was said to be.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = float(torch.nn.utils.get_total_norm(gradients)) / divisor
    if not math.isfinite(norm):
        raise DivergedError(
            f"the gradient is not finite: step {step}: found norm {norm}",
            hint="lower the learning rate; the log is complete up to the step before",
        )
    if limit is not None and norm > limit * (1 + _CLIP_TOLERANCE):
        raise UsageError(
            f"the loop doesn't clip as it was said to: step {step}: expected a norm of at most {limit}, found {norm}"
        )
    return norm


def given_gradients(parameters: Sequence[Tensor], divisor: float) -> Iterator[Tensor]:
    """The gradients that the optimizer is about to use.

    Args:
        parameters: the trainable parameters.
        divisor: what the optimizer will divide the gradients by itself.

    Yields:
        One for each parameter; zeros where the backward pass didn't reach it.
    """
    for parameter in parameters:
        gradient = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        yield gradient if divisor == 1 else gradient / divisor


def learning_rates(optimizer: torch.optim.Optimizer, step: int) -> tuple[float, ...]:
    """The learning rates that the optimizer is about to use.

    Args:
        optimizer: the run's optimizer.
        step: number of the step, for messages.

    Returns:
        One for each parameter group.

    Raises:
        UsageError: one is not finite.
    """
    rates = tuple(float(group["lr"]) for group in optimizer.param_groups)
    for number, rate in enumerate(rates):
        if not math.isfinite(rate):
            raise UsageError(
                f"the learning rate is not finite: group {number}, step {step}: found {rate}",
                hint="look at its schedule; the log is complete up to the step before",
            )
    return rates


def check_hyperparameters(optimizer: torch.optim.Optimizer, manifest: Manifest, step: int) -> None:
    """Replay takes all but the learning rate from the manifest, so nothing else may change.

    Args:
        optimizer: the run's optimizer.
        manifest: what the log says of it.
        step: number of the step, for messages.

    Raises:
        UsageError: a hyperparameter changed.
    """
    for number, group in enumerate(optimizer.param_groups):
        now, then = hyperparameters(group), manifest.optimizer.groups[number]
        changed = [name for name in now if name != "lr" and now[name] != then.get(name)]
        if changed:
            raise UsageError(
                f"the optimizer's {changed[0]} changed: group {number}, step {step}: "
                f"expected {then.get(changed[0])}, found {now[changed[0]]}",
                hint="only the learning rate may follow a schedule",
            )
