"""The optimizer that the options of `record` name."""

from typing import Any

import torch

from lmcleaner.choices import OptimizerName
from lmcleaner.recording.options import RecordOptions
from lmcleaner.training.eight_bit import NAMES
from lmcleaner.training.optimizers import SUPPORTED, optimizer_kind


def optimizer_class(options: RecordOptions) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    """The class, with the arguments that `Trainer` gives it where it knows it, and else torch's own defaults.

    Args:
        options: what to train and how.

    Returns:
        The class, and its arguments beside the parameters and their weight decay.

    Raises:
        UsageError: its package isn't installed.
    """
    name = next(name for name in (*SUPPORTED, *NAMES) if name.lower() == options.optimizer)
    chosen: dict[str, Any] = {"lr": options.lr}
    if options.optimizer is OptimizerName.SGD:
        chosen |= {"momentum": options.momentum, "nesterov": options.nesterov}
    if options.optimizer in {OptimizerName.ADAM, OptimizerName.ADAMW}:
        chosen |= {"betas": (0.9, 0.999), "eps": 1e-8, "fused": True}
    return optimizer_kind(name), chosen
