"""The run's model as a function: the gradient of a logged step at any parameters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lmcleaner.choices import Denominator
from lmcleaner.formats.bits import Bits
from lmcleaner.formats.errors import DivergedError, MismatchError, UsageError
from lmcleaner.formats.manifest import Manifest
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.steps import Checkpoint, StepRecord
from lmcleaner.training.batches import NOTHING, Digests, Inputs, step_inputs
from lmcleaner.training.fingerprint import model_fingerprint
from lmcleaner.training.losses import add_loss, run_loss
from lmcleaner.training.models import load_base_model, load_unlearned
from lmcleaner.training.numerics import autocasting, replay_device, restore_rng
from lmcleaner.training.offload import HOST, OffloadedState
from lmcleaner.training.ranks import RankSums
from lmcleaner.training.state import Gradient, TrainingState
from lmcleaner.training.vectors import digest_of, tensors_of, torch_dtype


def open_replay(
    manifest: Manifest, source: str | None = None, device: str | None = None, *, offload: bool = False
) -> "ReplayModel":
    """The run's model, as it was before training.

    Args:
        manifest: what the log says of the run.
        source: where the base model lies now, if it moved.
        device: where to compute; see `replay_device`.
        offload: keeps training states in host memory.

    Returns:
        The model on its device.

    Raises:
        NotFoundError: the base model isn't there.
        MismatchError: it is another model.
        UsageError: no such device here, or nothing to offload from it.
    """
    where = replay_device(manifest, device)
    if offload and where == HOST:
        raise UsageError(
            f"--offload keeps the sweep's state in host memory: expected an accelerator to compute on, found {where}",
            hint="leave --offload out; on the CPU all memory is the host's",
        )
    return ReplayModel(load_base_model(manifest, source), manifest, where, offload=offload)


def open_unlearned(replay: "ReplayModel", folder: Path, source: str | None = None) -> "ReplayModel":
    """The model of a folder, with the parameters that the run trained.

    Args:
        replay: the run's model.
        folder: what `unlearn` wrote, or somebody else in its form.
        source: where the base model of an adapter lies now, if it moved.

    Returns:
        The model on the same device.

    Raises:
        NotFoundError: it isn't there.
        MismatchError: it hasn't the run's parameters, or the adapter's base model is another one.
    """
    return ReplayModel(load_unlearned(replay.manifest, folder, source), replay.manifest, replay.device)


@dataclass(frozen=True, slots=True, kw_only=True)
class RepeatedStep:
    """What a step gave when it was taken again.

    Attributes:
        is_exact: whether the parameters are the run's own to the bit.
        has_same_losses: whether the model returned what it had returned, for each microbatch and to the bit.
    """

    is_exact: bool
    has_same_losses: bool


def repeat_step(log: TrainingLog, replay: "ReplayModel", state: TrainingState, number: int) -> RepeatedStep:
    """Takes a step of the run as it was.

    Args:
        log: the training log.
        replay: the run's model.
        state: the state before the step; is advanced.
        number: the step.

    Returns:
        What it gave.
    """
    step = log.step(number)
    gradient, losses = replay.gradient_and_losses(step, state.parameters, replay.inputs(step))
    state.apply(gradient, step.lr)
    return RepeatedStep(
        is_exact=digest_of(state.parameters) == log.parameters_digest(number + 1),
        has_same_losses=[float(loss) for loss in losses] == [microbatch.loss for microbatch in step.microbatches],
    )


class ReplayModel:
    """The model in train mode, evaluated at whichever parameter tensors it is pointed to.

    Attributes:
        module: the model; its trainable parameters are borrowed tensors.
        parameters: its trainable parameters in the order of the manifest.
        manifest: what the log says of the run.
        device: where it computes.
        offload: whether training states lie in host memory.
    """

    def __init__(self, module: nn.Module, manifest: Manifest, device: torch.device, *, offload: bool = False) -> None:
        """Checks that the module has the parameters that the run trained, and freezes all others.

        Args:
            module: the base model.
            manifest: what the log says of the run.
            device: where to compute.
            offload: keeps training states in host memory.

        Raises:
            MismatchError: a trained parameter is missing or has another shape.
            InsufficientLogError: nobody knows how the run computed its loss.
            UsageError: the library that computed it isn't installed.
        """
        add_loss(module, manifest.model.loss)
        self.module = module.to(device).train()
        self.manifest = manifest
        self.device, self.offload = device, offload
        named = dict(module.named_parameters())
        for entry in manifest.parameters:
            found = tuple(named[entry.name].shape) if entry.name in named else "no such parameter"
            if found != entry.shape:
                raise MismatchError(
                    f"not the model that the log trained: {entry.name}: expected {entry.shape}, found {found}"
                )
        self.parameters = [named[entry.name] for entry in manifest.parameters]
        trained = {entry.name for entry in manifest.parameters}
        for name, parameter in named.items():
            parameter.requires_grad_(name in trained)

    @property
    def frozen_bytes(self) -> int:
        """What the parameters take that the run didn't train, such as those under an adapter."""
        frozen = (parameter for parameter in self.module.parameters() if not parameter.requires_grad)
        return sum(parameter.nbytes for parameter in frozen)

    def point_to(self, tensors: Sequence[Tensor]) -> None:
        """Makes the model compute at `tensors`, in the order of the manifest; copies those of another device only."""
        for parameter, tensor in zip(self.parameters, tensors, strict=True):
            parameter.data = tensor.data.to(self.device)

    def state(self, checkpoint: Checkpoint) -> TrainingState:
        """The training state of a checkpoint, on the model's device or in host memory."""
        return (OffloadedState if self.offload else TrainingState)(self.manifest, checkpoint, self.device)

    def load(self, bits: Bits) -> list[Tensor]:
        """Parameter tensors on the model's device from a vector of bit patterns."""
        return tensors_of(bits, torch_dtype(self.manifest.model.dtype), self.manifest.parameters, self.device)

    def fingerprint(self, parameters: Sequence[Tensor]) -> str:
        """Fingerprint of the model at `parameters`; see `model_fingerprint`."""
        self.point_to(parameters)
        return model_fingerprint(self.module)

    def inputs(
        self, step: StepRecord, forgotten: Digests = NOTHING, denominator: Denominator = Denominator.LOGGED
    ) -> list[Inputs]:
        """Forward arguments of the step's microbatches; see `step_inputs`."""
        return step_inputs(step, self.manifest.padding_token, self.device, forgotten, denominator)

    def gradient(
        self,
        step: StepRecord,
        parameters: Sequence[Tensor],
        forgotten: Digests = NOTHING,
        denominator: Denominator = Denominator.LOGGED,
    ) -> Gradient:
        """The gradient that the run would have had at `parameters` in this step without the forgotten rows.

        Bit for bit the run's own on the same hardware and libraries: the microbatches come in order with their padding,
        the generators are set to the logged states, gradients are accumulated as autograd accumulated them.

        Args:
            step: the logged step.
            parameters: where to evaluate, in the order of the manifest.
            forgotten: digests of the samples to leave out.
            denominator: what to divide by where rows are left out.

        Returns:
            The gradient before clipping, in the order of the manifest.

        Raises:
            DivergedError: it overflows with the factor by which the run's gradient scaler multiplied the losses.
        """
        gradient, _ = self.gradient_and_losses(step, parameters, self.inputs(step, forgotten, denominator))
        parts = [part for part in gradient if part is not None] if step.loss_scale != 1 else []
        if not all(bool(part.isfinite().all()) for part in parts):
            raise DivergedError(
                f"the gradient overflows float16 where the run's didn't: losses are scaled by {step.loss_scale:g}",
                hint="a retraining's gradient scaler would leave the step out; use a mode that computes without "
                "autocast, such as --hessian-mode exact",
            )
        return gradient

    def gradient_and_losses(
        self, step: StepRecord, parameters: Sequence[Tensor], inputs: Sequence[Inputs]
    ) -> tuple[Gradient, list[Tensor]]:
        """As `gradient`, with what the model returned for each microbatch; of several processes see `RankSums`.

        Args:
            step: the logged step.
            parameters: where to evaluate, in the order of the manifest.
            inputs: forward arguments of its microbatches.

        Returns:
            The gradient before clipping, and one loss for each microbatch.
        """
        self.point_to(parameters)
        sums, losses = RankSums(self.parameters, self.manifest.world_size), []
        for microbatch, given in zip(step.microbatches, inputs, strict=True):
            sums.turn_to(microbatch.rank)
            self.restore_rng(microbatch.rng)
            loss = self.loss(given)
            _times(self.scaled(loss), step.loss_scale).backward()
            losses.append(loss.detach())
        sums.finish()
        return _unscaled(self.take_gradient(), step.loss_scale), losses

    def loss(self, inputs: Inputs) -> Tensor:
        """The loss of a microbatch in training, with its graph."""
        return run_loss(self.manifest.model.loss, self._forward, inputs)

    def _forward(self, **arguments: Any) -> Any:
        """What the model returned; under autocast if the run was, and then with logits as Accelerate hands them on."""
        with autocasting(self.manifest.numerics, self.device):
            output = self.module(**arguments, **self.constants(arguments))
        if self.manifest.numerics.autocast and "labels" not in arguments:
            output.logits = output.logits.float()
        return output

    def constants(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The forward arguments that never change; beside packed rows no cache, which would mix a row's samples."""
        return self.manifest.model.forward_arguments | ({"use_cache": False} if "position_ids" in inputs else {})

    def restore_rng(self, state: bytes) -> None:
        """Sets the random number generators as they were before a logged forward pass that drew from them."""
        if state:
            restore_rng(state, self.device)

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss as the run's loop divided it after the model returned it."""
        return loss / self.manifest.loss_divisor if self.manifest.loss_divisor != 1 else loss

    def take_gradient(self) -> Gradient:
        """The accumulated gradient, which the model then no longer holds."""
        gradient: Gradient = [parameter.grad for parameter in self.parameters]
        for parameter in self.parameters:
            parameter.grad = None
        return gradient


def _times(loss: Tensor, scale: float) -> Tensor:
    """A loss as a gradient scaler multiplies it: by a float32 number on its device."""
    return loss if scale == 1 else loss * torch.tensor(scale, dtype=torch.float32, device=loss.device)


def _unscaled(gradient: Gradient, scale: float) -> Gradient:
    """A gradient as a gradient scaler divides it, in place: by a multiplication."""
    for part in gradient if scale != 1 else ():
        if part is not None:
            part.mul_(1 / scale)
    return gradient
