"""The optimizers that a log can describe, store and rebuild: those of torch, and some of bitsandbytes."""

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmcleaner.formats.errors import DamagedError, MismatchError, UsageError
from lmcleaner.formats.manifest import OptimizerEntry, ParameterEntry
from lmcleaner.formats.steps import OptimizerVectors
from lmcleaner.training.eight_bit import NAMES, eight_bit_class, hidden_settings, is_eight_bit
from lmcleaner.training.vectors import bits_of, dtype_name, tensors_of, torch_dtype

# LBFGS evaluates the loss itself, and SparseAdam wants sparse gradients: neither takes a step from a logged one.
SUPPORTED: dict[str, type[torch.optim.Optimizer]] = {
    name: kind
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)
    if name not in {"Optimizer", "LBFGS", "SparseAdam"}
}

# Set by learning-rate schedulers in every group; it plays no part in a step.
_NO_HYPERPARAMETERS = {"params", "initial_lr", "param_names"}


def describe_optimizer(optimizer: torch.optim.Optimizer) -> OptimizerEntry:
    """Class and hyperparameters of an optimizer.

    Args:
        optimizer: any of `torch.optim` but LBFGS and SparseAdam, or one of bitsandbytes in `eight_bit.NAMES`.

    Returns:
        The entry of a manifest.

    Raises:
        UsageError: another class of optimizer, or one of somebody else's that is only called like one of torch's, or
            settings that can't be described.
    """
    kind = type(optimizer)
    if SUPPORTED.get(kind.__name__) is not kind and not is_eight_bit(kind):
        raise UsageError(
            f"unsupported optimizer: expected one of torch.optim's {', '.join(sorted(SUPPORTED))}, or of "
            f"bitsandbytes' {', '.join(NAMES)}, found {kind.__module__}.{kind.__qualname__}",
            hint="a log can only be replayed through an optimizer whose state it knows",
        )
    hidden = hidden_settings(optimizer) if is_eight_bit(kind) else {}
    groups = tuple(hyperparameters(group) | hidden for group in optimizer.param_groups)
    return OptimizerEntry(name=kind.__name__, groups=groups)


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
        An optimizer of the same class whose groups hold the parameters in the run's order; on the CPU one of a GPU that
        a graph could capture isn't `capturable`.

    Raises:
        UsageError: another class of optimizer.
        DamagedError: not its hyperparameters.
    """
    groups: list[dict[str, Any]] = []
    for number, values in enumerate(entry.groups):
        members = sorted(
            ((e.index, parameter) for e, parameter in zip(entries, parameters, strict=True) if e.group == number),
            key=lambda member: member[0],
        )
        groups.append({"params": [parameter for _, parameter in members], **_settings_on(parameters[0].device, values)})
    return _make(optimizer_kind(entry.name), groups)


def _settings_on(device: torch.device, values: Mapping[str, Any]) -> dict[str, Any]:
    settings = _settings(values)
    return {**settings, "capturable": False} if device.type == "cpu" and "capturable" in settings else settings


def _make(kind: type[torch.optim.Optimizer], groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """The optimizer, whose arguments torch checks only where they aren't a group's."""
    names = signature(kind).parameters.keys() - {"params"}
    try:
        return kind(groups, **{name: value for name, value in groups[0].items() if name in names})
    except (TypeError, ValueError) as error:
        raise DamagedError(f"not the hyperparameters of {kind.__name__}: {error}") from error


def optimizer_vectors(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> OptimizerVectors:
    """The optimizer's state as flat vectors in the order of `parameters`.

    Args:
        optimizer: the optimizer.
        parameters: its parameters in the order of the parameter vector.

    Returns:
        Copies of all parts of the state; zeros where a parameter has none yet, and behind a part that is smaller than
        its parameter, such as a row's or a column's mean in Adafactor. A part has the optimizer's own name for it, with
        `_uint8` behind where it is codes, as in the larger parameters' state of an 8-bit optimizer.

    Raises:
        UsageError: a part is larger than its parameter, or of a dtype that a log can't hold.
    """
    states = [
        {_part(name, value): value for name, value in _state(optimizer, parameter).items()} for parameter in parameters
    ]
    values = {name: value for state in states for name, value in state.items()}
    templates = {name: v for state in states for name, v in state.items() if isinstance(v, Tensor) and v.dim()}
    return OptimizerVectors(
        vectors={
            name: bits_of(
                _padded(state.get(name), p, templates[name]) for state, p in zip(states, parameters, strict=True)
            )
            for name in sorted(templates)
        },
        dtypes={name: dtype_name(templates[name].dtype) for name in sorted(templates)},
        scalars={
            name: np.array([float(state.get(name, 0.0)) for state in states])
            for name in sorted(values.keys() - templates.keys())
        },
        present=np.array([bool(state) for state in states]),
    )


def state_vectors(entry: OptimizerEntry) -> float:
    """The state that an optimizer keeps, in multiples of a large float32 parameter's own bytes.

    Args:
        entry: class and hyperparameters.

    Returns:
        2.0 for Adam, 0.0 for plain SGD, and close to 0 for Adafactor, which keeps a row and a column.

    Raises:
        UsageError: another class of optimizer.
        DamagedError: not its hyperparameters.
    """
    large = torch.zeros(256, 256)
    state = _example_state(optimizer_kind(entry.name), large, _settings_on(large.device, entry.groups[0]))
    return sum(value.nbytes for value in state.values() if isinstance(value, Tensor) and value.dim()) / large.nbytes


def optimizer_kind(name: str) -> type[torch.optim.Optimizer]:
    """The class that a log calls so.

    Raises:
        UsageError: none of those that are supported, or its package isn't installed.
    """
    if name in NAMES:
        return eight_bit_class(name)
    if name not in SUPPORTED:
        raise UsageError(f"unsupported optimizer: expected one of {sorted({*SUPPORTED, *NAMES})}, found {name!r}")
    return SUPPORTED[name]


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    """Hyperparameters as torch has them; JSON knows no tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in group.items()}


def _state(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Any]:
    return {name: value for name, value in optimizer.state.get(parameter, {}).items() if value is not None}


def _part(name: str, value: Any) -> str:
    """What a log calls a part of the state: parameters of one optimizer may keep one as numbers, others as codes."""
    return f"{name}_uint8" if isinstance(value, Tensor) and value.dtype == torch.uint8 else name


def _padded(value: Tensor | None, parameter: Tensor, template: Tensor) -> Tensor:
    """A part of one parameter's state, flat and as long as the parameter."""
    if value is None:
        return torch.zeros(parameter.numel(), dtype=template.dtype, device=parameter.device)
    if value.numel() > parameter.numel():
        raise UsageError(
            "the optimizer's state can't be stored: expected at most as many elements as the parameter has, "
            f"{parameter.numel()}, found {value.numel()}"
        )
    missing = parameter.numel() - value.numel()
    flat = value.detach().reshape(-1)
    return torch.nn.functional.pad(flat, (0, missing)) if missing else flat


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

    Raises:
        MismatchError: this version of torch keeps another state than the one that is stored.
    """
    parts = {
        name: tensors_of(bits, torch_dtype(vectors.dtypes[name]), entries, parameters[0].device)
        for name, bits in vectors.vectors.items()
    }
    groups = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}
    for index, parameter in enumerate(parameters):
        optimizer.state.pop(parameter, None)
        if vectors.present[index]:
            stored = {name: tensors[index] for name, tensors in parts.items()}
            stored |= {name: values[index] for name, values in vectors.scalars.items()}
            example = _example_state(type(optimizer), parameter, groups[parameter])
            optimizer.state[parameter] = {
                name: _restored(_part(name, like), like, stored) for name, like in example.items()
            }


def _example_state(kind: type[torch.optim.Optimizer], parameter: Tensor, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What an optimizer itself keeps for a parameter like this one after a step of zero: shapes, dtypes, devices."""
    blank = torch.zeros_like(parameter.detach()).requires_grad_()
    blank.grad = torch.zeros_like(blank)
    example = _make(kind, [{**settings, "params": [blank]}])
    example.step()
    return _state(example, blank)


def _restored(name: str, like: Any, stored: Mapping[str, Any]) -> Any:
    """A part of one parameter's state, as the optimizer keeps it."""
    if name not in stored:
        raise MismatchError(
            f"the optimizer keeps a state that the log doesn't hold: expected one of {sorted(stored)}, found {name!r}",
            hint="use the version of torch that the manifest names",
        )
    value = stored[name]
    if isinstance(value, Tensor):
        return value if value.shape == like.shape else value.reshape(-1)[: like.numel()].view(like.shape).clone()
    return torch.full_like(like, float(value)) if isinstance(like, Tensor) else type(like)(value)
