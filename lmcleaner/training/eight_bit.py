"""The 8-bit optimizers of bitsandbytes (Dettmers et al., "8-bit Optimizers via Block-wise Quantization", 2022)."""

from importlib import import_module
from typing import Any

import torch

from lmcleaner.formats.errors import UsageError

# Those whose state is no larger than the parameter, and whose groups hold all that decides a step but for `_HIDDEN`.
NAMES = ("Adam8bit", "AdamW8bit", "Lion8bit")
_PACKAGE = "bitsandbytes"
_HIDDEN = "min_8bit_size"  # parameters with fewer elements have a state of 32 bits


def is_eight_bit(kind: type[torch.optim.Optimizer]) -> bool:
    """Whether a class is one of `NAMES`."""
    return kind.__name__ in NAMES and kind.__module__.startswith(f"{_PACKAGE}.")


def eight_bit_class(name: str) -> type[torch.optim.Optimizer]:
    """One of `NAMES`.

    Raises:
        UsageError: bitsandbytes isn't installed.
    """
    try:
        found: type[torch.optim.Optimizer] = getattr(import_module(f"{_PACKAGE}.optim"), name)
    except ImportError as error:
        raise UsageError(
            f"the optimizer {name} is not installed: {error}", hint="`pip install 'lmcleaner[bitsandbytes]'`"
        ) from error
    return found


def hidden_settings(optimizer: Any) -> dict[str, Any]:
    """What decides a step beside the hyperparameters of a group.

    Args:
        optimizer: of bitsandbytes.

    Returns:
        Names and values as its constructor takes them.

    Raises:
        UsageError: settings of single parameters, which nothing but the process itself knows.
    """
    manager = import_module(f"{_PACKAGE}.optim").GlobalOptimManager.get_instance()
    own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if own & set(manager.pid2config) or manager.module_weight_config_triple:
        raise UsageError(
            "unsupported optimizer: expected no settings of single parameters, found those of a GlobalOptimManager",
            hint=f"Hugging Face's adamw_bnb_8bit makes them; use {_PACKAGE}.optim.AdamW8bit itself",
        )
    return {_HIDDEN: getattr(optimizer.args, _HIDDEN)}
