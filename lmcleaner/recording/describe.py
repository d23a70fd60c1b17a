"""Describes a run that is about to start: the manifest of its log and the state that it starts from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from lmcleaner.formats.bits import Bits
from lmcleaner.formats.errors import UsageError
from lmcleaner.formats.manifest import CodecName, LossEntry, Manifest, ModelEntry, ParameterEntry
from lmcleaner.formats.steps import Checkpoint
from lmcleaner.formats.wording import counted
from lmcleaner.training.adapters import describe_adapter, without_adapter
from lmcleaner.training.fingerprint import model_fingerprint
from lmcleaner.training.numerics import current_numerics, environment, rng_state
from lmcleaner.training.optimizers import describe_optimizer, optimizer_vectors
from lmcleaner.training.vectors import dtype_name


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDescription:
    """What the hooks can't see of a run, told by whoever trains.

    Attributes:
        model_source: directory or name that the base model was loaded from.
        max_grad_norm: threshold that the loop clips the gradient's L2 norm at, or None.
        loss_divisor: what the loop divides the model's loss by before `backward`.
        padding_token: token id in the padding of a microbatch.
        checkpoint_every: steps between checkpoints.
        updates: codec of the updates.
        gradients: codec of the gradients that the optimizer is given.
        planned_steps: steps that the run means to take, if known.
        data: source, split, digest and template of the rows.
        tokenizer: source and digest.
        training: the run's own options, for people.
        forward_arguments: keyword arguments besides tensors that every forward pass is given.
        autocast: "bfloat16" or "float16" where the forward passes run under torch's autocast, else None.
        loss: how the trainer computes the loss from what the model returns; None where the model returns it.
    """

    model_source: str
    max_grad_norm: float | None = None
    loss_divisor: float = 1.0
    padding_token: int = 0
    checkpoint_every: int = 100
    updates: CodecName = "lossless"
    gradients: CodecName = "none"
    planned_steps: int | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    forward_arguments: Mapping[str, Any] = field(default_factory=dict)
    autocast: str | None = None
    loss: LossEntry | None = None

    def __post_init__(self) -> None:
        """Checks ranges.

        Raises:
            UsageError: a value is out of its range.
        """
        if self.checkpoint_every < 1:
            raise UsageError(f"checkpoint_every: expected at least 1, found {self.checkpoint_every}")
        for name, codec in (("updates", self.updates), ("gradients", self.gradients)):
            if codec not in get_args(CodecName):
                raise UsageError(f"{name}: expected one of {[*get_args(CodecName)]}, found {codec!r}")
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise UsageError(f"max_grad_norm: expected None or more than 0, found {self.max_grad_norm}")
        if self.autocast not in {None, "bfloat16", "float16"}:
            raise UsageError(f"unsupported autocast: expected bfloat16 or float16, found {self.autocast}")
        if not self.loss_divisor > 0:
            raise UsageError(f"loss_divisor: expected more than 0, found {self.loss_divisor}")


def trainable_parameters(module: nn.Module) -> dict[str, Tensor]:
    """Name -> trainable parameter, in the order of `module.parameters()`; tied ones once.

    Raises:
        UsageError: there is none, or they don't share one dtype and one device.
    """
    found: dict[str, Tensor] = {name: p for name, p in module.named_parameters() if p.requires_grad}
    kinds = {(parameter.dtype, parameter.device) for parameter in found.values()}
    if len(kinds) != 1:
        raise UsageError(
            f"the trainable parameters must share one dtype and one device: found {sorted(map(str, kinds))}"
        )
    return found


def describe_run(module: nn.Module, optimizer: torch.optim.Optimizer, description: RunDescription) -> Manifest:
    """The manifest of a run that is about to start.

    Args:
        module: the model, on its device, with θ[0].
        optimizer: the optimizer over its trainable parameters.
        description: what the hooks can't see.

    Returns:
        The manifest.

    Raises:
        UsageError: the model or the optimizer can't be recorded.
    """
    parameters = trainable_parameters(module)
    first = next(iter(parameters.values()))
    config = getattr(module, "config", None)
    adapter = describe_adapter(module)
    return Manifest(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        model=ModelEntry(
            source=str(Path(description.model_source).resolve())
            if Path(description.model_source).is_dir()
            else description.model_source,
            class_name=type(without_adapter(module)).__name__,
            fingerprint=model_fingerprint(module, only_frozen=adapter is not None),
            dtype=dtype_name(first.dtype),
            forward_arguments=dict(description.forward_arguments),
            adapter=adapter,
            loss=description.loss,
        ),
        parameters=_parameter_entries(parameters, optimizer),
        optimizer=describe_optimizer(optimizer),
        max_grad_norm=description.max_grad_norm,
        loss_divisor=description.loss_divisor,
        padding_token=description.padding_token,
        numerics=current_numerics(
            getattr(config, "_attn_implementation", "unknown"), first.device, description.autocast
        ),
        updates=description.updates,
        gradients=description.gradients,
        checkpoint_every=description.checkpoint_every,
        planned_steps=description.planned_steps,
        data=dict(description.data),
        tokenizer=dict(description.tokenizer),
        training=dict(description.training),
        environment=environment(),
    )


def take_checkpoint(
    step: int, parameters: Sequence[Tensor], optimizer: torch.optim.Optimizer, bits: Bits
) -> Checkpoint:
    """The full state before a step.

    Args:
        step: the step.
        parameters: those that are trained.
        optimizer: over them.
        bits: a copy of the parameters.

    Returns:
        The state.
    """
    return Checkpoint(
        step=step,
        parameters=bits,
        optimizer=optimizer_vectors(optimizer, parameters),
        generators=rng_state(parameters[0].device),
    )


def _parameter_entries(
    parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
) -> tuple[ParameterEntry, ...]:
    place = {
        id(parameter): (group, index)
        for group, values in enumerate(optimizer.param_groups)
        for index, parameter in enumerate(values["params"])
    }
    entries, offset = [], 0
    for name, parameter in parameters.items():
        if id(parameter) not in place:
            raise UsageError(
                f"a trainable parameter is not in the optimizer: {name}", hint="freeze it, or give it to the optimizer"
            )
        group, index = place.pop(id(parameter))
        entry = ParameterEntry(name=name, shape=tuple(parameter.shape), offset=offset, group=group, index=index)
        entries.append(entry)
        offset += entry.num_elements
    if place:
        raise UsageError(
            f"the optimizer holds what is no trainable parameter of the model: {counted(len(place), 'parameter')}"
        )
    return tuple(entries)
