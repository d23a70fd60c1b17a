"""Where a forward pass's loss is seen: in what the model returned, or in what the trainer makes of that."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, trainer_pt_utils

from lmcleaner.formats.manifest import LossEntry, LossName
from lmcleaner.recording.scaling import Scaling

# A slope of 0.33333334 is that of a sum over 3: what this close to a whole number is one.
_WHOLE = 1e-5
_FUSED = "fused_lm_head"  # asks a model with TRL's fused head for log-probabilities
OWN = LossEntry(name="own")
_SMOOTHER: Any = trainer_pt_utils.LabelSmoother
_TRAINER: Any = Trainer


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenLoss:
    """The loss of a forward pass.

    Attributes:
        entry: how it was computed; None where the model returned it.
        arguments: of the forward pass, with `labels` and, if the loss was divided by it, `num_items_in_batch`.
        loss: scalar.
        slope: gradient of what the loop called `backward` on, by the loss; None where that is still to come.
    """

    entry: LossEntry | None
    arguments: dict[str, Any]
    loss: Tensor
    slope: float | None = None


Tell = Callable[[SeenLoss], None]


class Losses:
    """Tells of each forward pass's loss: at its end, when it is smoothed, or when a trainer went back through it."""

    def __init__(self, expected: LossEntry | None = None, scaling: Scaling | None = None) -> None:
        """Sees nothing yet.

        Args:
            expected: the run's loss, if it is known; of two that fit it is the one.
            scaling: what a gradient scaler multiplies losses by.
        """
        self._expected, self._scaling = expected, scaling or Scaling()
        self._waiting: tuple[dict[str, Any], Tell] | None = None
        self._counts_alone = False
        self._smooth, self._train = _SMOOTHER.__call__, _TRAINER.training_step

    @property
    def is_waiting(self) -> bool:
        """Whether the last forward pass returned no loss, and nobody has computed one from it."""
        return self._waiting is not None

    @property
    def _factor(self) -> int:
        """What TRL multiplies a loss by: the processes whose tokens it was divided by, unless each counts its own."""
        is_alone = self._counts_alone or not torch.distributed.is_initialized()
        return 1 if is_alone else torch.distributed.get_world_size()

    def attach(self) -> None:
        """Sees from now on what transformers' `LabelSmoother` computes, and when its `Trainer` went back."""
        smooth, train = self._smooth, self._train = _SMOOTHER.__call__, _TRAINER.training_step

        def smoothed(smoother: Any, output: Any, labels: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            loss: Tensor = smooth(smoother, output, labels, *args, **kwargs)
            self._smoothed(smoother.epsilon, labels, loss, *args, **kwargs)
            return loss

        def trained(trainer: Any, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
            labels = inputs.get("labels")
            self._counts_alone = not trainer.args.average_tokens_across_devices
            loss: Tensor = train(trainer, model, inputs, *args, **kwargs)
            self._tell(OWN, loss, slope=1.0, labels=labels)
            return loss

        _SMOOTHER.__call__, _TRAINER.training_step = smoothed, trained

    def detach(self) -> None:
        """Sees it no more."""
        _SMOOTHER.__call__, _TRAINER.training_step = self._smooth, self._train

    def returned(self, arguments: dict[str, Any], output: Any, tell: Tell) -> None:
        """Takes what a model returned in a training forward pass.

        Args:
            arguments: of the pass, by name.
            output: what it returned.
            tell: is called with the loss, now or later, or never.
        """
        log_probs = getattr(output, "log_probs", None)
        if arguments.get(_FUSED) and isinstance(log_probs, Tensor):
            given = {name: value for name, value in arguments.items() if name != _FUSED}
            if log_probs.requires_grad:
                values = log_probs.detach()
                log_probs.register_hook(
                    lambda slope: tell(
                        _fused(given, values, slope / self._scaling.factor, self._expected, self._factor)
                    )
                )
            return
        loss = loss_of(output)
        if loss is None:
            self._waiting = arguments, tell
        else:
            tell(SeenLoss(entry=None, arguments=arguments, loss=loss))

    def _smoothed(
        self,
        epsilon: float,
        labels: Tensor,
        loss: Tensor,
        shift_labels: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> None:
        if shift_labels and loss.requires_grad:
            entry = LossEntry(name="label_smoothing", smoothing=float(epsilon))
            self._tell(entry, loss, labels=labels, num_items_in_batch=num_items_in_batch)

    def _tell(self, entry: LossEntry, loss: Tensor, slope: float | None = None, **given: Any) -> None:
        """Tells of the pass that returned no loss, if there is one."""
        if self._waiting is not None:
            (arguments, tell), self._waiting = self._waiting, None
            tell(SeenLoss(entry=entry, arguments=arguments | given, loss=loss, slope=slope))


def loss_of(output: Any) -> Tensor | None:
    """The loss that a model's output holds, if it does."""
    loss = output.get("loss") if isinstance(output, dict) else getattr(output, "loss", None)
    return loss if isinstance(loss, Tensor) else None


def whole(number: float) -> float:
    """The whole number that is meant, or the number itself."""
    return float(round(number)) if abs(number - round(number)) < _WHOLE * number else number


def _fused(
    arguments: dict[str, Any], log_probs: Tensor, slope: Tensor, expected: LossEntry | None, factor: int
) -> SeenLoss:
    """Which of TRL's losses has this gradient by the log-probabilities, `[batch, seq]`: -F / D, or that times p."""
    weights: dict[LossName, Tensor] = {"trl_nll": torch.ones_like(log_probs), "trl_dft": log_probs.exp()}
    for name in sorted(weights, key=lambda name: expected is None or expected.name != name):
        weight = weights[name]
        largest = weight.argmax()
        items = whole(-factor * float(weight.flatten()[largest]) / (float(slope.flatten()[largest]) or 1.0))
        if items > 0 and items.is_integer() and torch.allclose(slope, -factor / items * weight, rtol=_WHOLE, atol=0):
            loss = (-log_probs * weight).sum() / items
            given = arguments | {"num_items_in_batch": items}
            return SeenLoss(entry=LossEntry(name=name), arguments=given, loss=loss, slope=factor)
    return SeenLoss(entry=OWN, arguments=arguments, loss=-log_probs.mean(), slope=1.0)
