"""Losses that a trainer computes from what the model returns: a log names them, and a replay computes them again."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from torch import Tensor, nn

from lmcleaner.formats.errors import InsufficientLogError, UsageError
from lmcleaner.formats.manifest import LossEntry, Manifest
from lmcleaner.training.adapters import without_adapter

Forward = Callable[..., Any]  # a model's forward pass, by keyword arguments


def add_loss(module: nn.Module, entry: LossEntry | None) -> None:
    """Gives a model what the loss is computed from.

    Args:
        module: the model; gets TRL's fused head beside its own if the loss is one of TRL's.
        entry: the run's loss.

    Raises:
        InsufficientLogError: nobody knows how the run computed it.
        UsageError: TRL isn't installed.
    """
    if entry is not None and entry.name == "own":
        raise InsufficientLogError(
            "the training computed its loss itself, by a function that no replay knows",
            hint="record it again with the loss that the model returns, TRL's, or label smoothing",
        )
    if entry is not None and entry.name != "label_smoothing":
        _trl().add_fused_lm_head(without_adapter(module))


def run_loss(entry: LossEntry | None, forward: Forward, inputs: Mapping[str, Any]) -> Tensor:
    """The loss that the run took the gradient of, bit for bit.

    Args:
        entry: the run's loss.
        forward: the model's forward pass.
        inputs: its arguments, with `labels` and `num_items_in_batch`.

    Returns:
        Scalar, with its graph.
    """
    if entry is None or entry.name == "label_smoothing":
        return loss_and_logits(entry, forward, inputs)[0]
    arguments = {name: value for name, value in inputs.items() if name != "num_items_in_batch"}
    log_probs = forward(**arguments, fused_lm_head=True).log_probs
    losses = -log_probs
    if entry.name == "trl_dft":
        losses = losses * log_probs.exp().detach()
    total: Tensor = losses.sum() / inputs["num_items_in_batch"]
    return total


def loss_and_logits(entry: LossEntry | None, forward: Forward, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """The run's loss as a function of logits; that of TRL's fused head is the model's own, up to rounding.

    Args:
        entry: the run's loss, of which `check_curvature` knows that it has a curvature.
        forward: the model's forward pass.
        inputs: its arguments, with `labels` and `num_items_in_batch`.

    Returns:
        The loss, scalar, and the logits, `[batch, seq, vocab]`, both with their graph.
    """
    if entry is None or entry.name == "trl_nll":
        output = forward(**inputs)
        return output.loss, output.logits
    from transformers.trainer_pt_utils import LabelSmoother

    output = forward(**{name: value for name, value in inputs.items() if name != "labels"})
    loss: Tensor = LabelSmoother(epsilon=entry.smoothing)(
        output, inputs["labels"], shift_labels=True, num_items_in_batch=inputs["num_items_in_batch"]
    )
    return loss, output.logits


def has_curvature(manifest: Manifest) -> bool:
    """Whether the run's loss is a function whose curvature a mode can take."""
    return manifest.model.loss is None or manifest.model.loss.name != "trl_dft"


def check_curvature(manifest: Manifest) -> None:
    """Makes sure that the run's loss has a curvature.

    Args:
        manifest: what the log says of the run.

    Raises:
        InsufficientLogError: it hasn't.
    """
    if not has_curvature(manifest):
        raise InsufficientLogError(
            "the run's loss has no curvature that a mode could use: trl_dft weighs each token by its own probability, "
            "held fixed",
            hint="use --hessian-mode secant",
        )


def balances_experts(module: nn.Module, manifest: Manifest) -> bool:
    """Whether the loss balances the load of a mixture of experts, in which rows without labels take part as well.

    Args:
        module: the run's model.
        manifest: what the log says of the run.
    """
    config = getattr(module, "config", None)
    own = getattr(config, "output_router_logits", False)
    asked = manifest.model.forward_arguments.get("output_router_logits", own)
    return bool(asked and getattr(config, "router_aux_loss_coef", 0))


def _trl() -> Any:
    try:
        return import_module("trl.trainer.utils")
    except ImportError as error:
        raise UsageError(
            "the run's loss is that of TRL's SFTTrainer, but TRL is not installed",
            hint="`pip install 'lmcleaner[trl]'`",
        ) from error
