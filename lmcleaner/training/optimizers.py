"""The torch optimizers that a log can describe, store and rebuild."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmcleaner.formats.errors import UsageError
from lmcleaner.formats.manifest import OptimizerEntry, ParameterEntry
from lmcleaner.formats.steps import OptimizerVectors
from lmcleaner.training.vectors import bits_of, dtype_name, tensors_of, torch_dtype

_SUPPORTED: dict[str, type[torch.optim.Optimizer]] = {
    "AdamW": torch.optim.AdamW,
    "Adam": torch.optim.Adam,
    "SGD": torch.optim.SGD,
}

# Set by learning-rate schedulers in every group; it plays no part in a step.
_NO_HYPERPARAMETERS = {"params", "initial_lr", "param_names"}


def describe_optimizer(optimizer: torch.optim.Optimizer) -> OptimizerEntry:
    """Class and hyperparameters of an optimizer.

    Args:
        optimizer: a `torch.optim` AdamW, Adam or SGD.

    Returns:
        The entry of a manifest.

    Raises:
        UsageError: another class of optimizer.
    """
    kind = type(optimizer)
    if _SUPPORTED.get(kind.__name__) is not kind:
        raise UsageError(
            f"unsupported optimizer: expected torch.optim.{', '.join(sorted(_SUPPORTED))}, "
            f"found {kind.__module__}.{kind.__qualname__}",
            hint="a log can only be replayed through an optimizer whose state it knows",
        )
    return OptimizerEntry(name=kind.__name__, groups=tuple(hyperparameters(group) for group in optimizer.param_groups))


def hyperparameters(group: dict[str, Any]) -> dict[str, Any]:
    """Hyperparameters of a parameter group as JSON can hold them."""
    return {name: _plain(value) for name, value in group.items() if name not in _NO_HYPERPARAMETERS}


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.item()
    return list(value) if isinstance(value, tuple) else value


def build_optimizer(
    entry: OptimizerEntry, parameters: Sequence[Tensor], entries: Sequence[ParameterEntry]
) -> torch.optim.Optimizer:
    """The run's optimizer, without state, over other tensors.

    Args:
        entry: class and hyperparameters.
        parameters: leaf tensors in the order of `entries`.
        entries: the trainable parameters; they say which group each belongs to and where in it.

    Returns:
        An optimizer of the same class whose groups hold the parameters in the run's order.

    Raises:
        UsageError: another class of optimizer.
    """
    if entry.name not in _SUPPORTED:
        raise UsageError(f"unsupported optimizer: expected one of {sorted(_SUPPORTED)}, found {entry.name!r}")
    groups: list[dict[str, Any]] = []
    for number, values in enumerate(entry.groups):
        members = sorted(
            ((e.index, parameter) for e, parameter in zip(entries, parameters, strict=True) if e.group == number),
            key=lambda member: member[0],
        )
        restored = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        groups.append({"params": [parameter for _, parameter in members], **restored})
    return _SUPPORTED[entry.name](groups, lr=float(groups[0]["lr"]))  # type: ignore[call-arg]


def optimizer_vectors(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> OptimizerVectors:
    """The optimizer's state as flat vectors in the order of `parameters`.

    Args:
        optimizer: the optimizer.
        parameters: its parameters in the order of the parameter vector.

    Returns:
        Copies of all parts of the state; zeros where a parameter has none yet.
    """
    states = [_tensors_only(optimizer.state.get(parameter, {})) for parameter in parameters]
    templates = {name: value for state in states for name, value in state.items()}
    shaped = [name for name in sorted(templates) if templates[name].dim() > 0 or name.endswith("_buffer")]
    scalars = [name for name in sorted(templates) if name not in shaped]

    def part(name: str) -> list[Tensor]:
        like = templates[name].dtype
        return [
            state.get(name, torch.zeros_like(parameter, dtype=like))
            for state, parameter in zip(states, parameters, strict=True)
        ]

    return OptimizerVectors(
        vectors={name: bits_of(part(name)) for name in shaped},
        dtypes={name: dtype_name(templates[name].dtype) for name in shaped},
        scalars={name: np.array([float(state.get(name, 0.0)) for state in states]) for name in scalars},
        present=np.array([bool(state) for state in states]),
    )


def _tensors_only(state: dict[str, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def load_vectors(
    optimizer: torch.optim.Optimizer,
    vectors: OptimizerVectors,
    parameters: Sequence[Tensor],
    entries: Sequence[ParameterEntry],
) -> None:
    """Gives an optimizer the state that `optimizer_vectors` took.

    Args:
        optimizer: an optimizer over `parameters`; its state is replaced.
        vectors: the state.
        parameters: in the order of the parameter vector.
        entries: the same parameters in the manifest.
    """
    device = parameters[0].device
    parts = {
        name: tensors_of(bits, torch_dtype(vectors.dtypes[name]), entries, device)
        for name, bits in vectors.vectors.items()
    }
    for index, parameter in enumerate(parameters):
        if not vectors.present[index]:
            continue
        state: dict[str, Tensor] = {name: tensors[index] for name, tensors in parts.items()}
        for name, values in vectors.scalars.items():
            # torch keeps the count of a fused or capturable optimizer beside the parameter, else on the CPU.
            fused = any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)
            state[name] = torch.tensor(values[index], dtype=torch.float32, device=device if fused else "cpu")
        optimizer.state[parameter] = state
