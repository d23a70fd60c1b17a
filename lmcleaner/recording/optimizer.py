"""The torch optimizer that the options of `record` name."""

from typing import Any

import torch

from lmcleaner.choices import OptimizerName
from lmcleaner.recording.options import RecordOptions
from lmcleaner.training.optimizers import SUPPORTED


def optimizer_class(options: RecordOptions) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    """The class, with the arguments that `Trainer` gives it where it knows it, and else torch's own defaults.

    Args:
        options: what to train and how.

    Returns:
        A class of `torch.optim`, and its arguments beside the parameters and their weight decay.
    """
    kind = {name.lower(): kind for name, kind in SUPPORTED.items()}[options.optimizer]
    chosen: dict[str, Any] = {"lr": options.lr}
    if options.optimizer is OptimizerName.SGD:
        chosen |= {"momentum": options.momentum, "nesterov": options.nesterov}
    if options.optimizer in {OptimizerName.ADAM, OptimizerName.ADAMW}:
        chosen |= {"betas": (0.9, 0.999), "eps": 1e-8, "fused": True}
    return kind, chosen
