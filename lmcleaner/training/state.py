"""A training state: parameters and the real torch optimizer over them, advanced step by step."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lmcleaner.formats.manifest import Manifest
from lmcleaner.formats.steps import Checkpoint
from lmcleaner.training.optimizers import build_optimizer, load_vectors
from lmcleaner.training.vectors import tensors_of, torch_dtype

Gradient = list[Tensor | None]  # None where the backward pass didn't reach the parameter


def clip_scale(norm: float, limit: float, dtype: torch.dtype) -> float:
    """What `torch.nn.utils.clip_grad_norm_` multiplies gradients by: min(1, limit / (norm + 1e-6)), in their dtype.

    Args:
        norm: L2 norm of all gradients together, before.
        limit: the threshold.
        dtype: of the gradients.

    Returns:
        The factor, more than 0.
    """
    return float(_clip_scale(torch.tensor(norm, dtype=dtype), limit))


def _clip_scale(norm: Tensor, limit: float) -> Tensor:
    return torch.clamp(limit / (norm + 1e-6), max=1.0)


class TrainingState:
    """θ and o of some run, in the order of the manifest's parameters.

    Attributes:
        parameters: leaf tensors, the run's dtype and shapes.
        optimizer: the run's class of torch optimizer over them.
    """

    def __init__(self, manifest: Manifest, checkpoint: Checkpoint, device: torch.device) -> None:
        """Restores a checkpoint.

        Args:
            manifest: what the log says of the run.
            checkpoint: θ and the optimizer's state.
            device: where to hold them.
        """
        self._max_grad_norm = manifest.max_grad_norm
        restored = tensors_of(checkpoint.parameters, torch_dtype(manifest.model.dtype), manifest.parameters, device)
        self.parameters = [tensor.requires_grad_() for tensor in restored]
        self.optimizer = build_optimizer(manifest.optimizer, self.parameters, manifest.parameters)
        load_vectors(self.optimizer, checkpoint.optimizer, self.parameters, manifest.parameters)

    def apply(self, gradient: Gradient, lr: Sequence[float]) -> None:
        """Takes one optimizer step in place: clips as the run clipped, then steps with the logged learning rates.

        Args:
            gradient: one tensor for each parameter, or None; clipped in place.
            lr: learning rate for each parameter group.
        """
        self.clip(gradient)
        self.apply_given(gradient, lr)

    def clip(self, gradient: Gradient) -> None:
        """Clips in place as the run clipped, with the bits of `torch.nn.utils.clip_grad_norm_`.

        Args:
            gradient: one tensor for each parameter, or None.
        """
        parts = [part for part in gradient if part is not None]
        if self._max_grad_norm is None or not parts:
            return
        scale = _clip_scale(torch.nn.utils.get_total_norm(parts), self._max_grad_norm)
        for part in parts:
            part.mul_(scale.to(part.device))

    def apply_given(self, gradient: Gradient, lr: Sequence[float]) -> None:
        """Takes one optimizer step in place from a gradient that was clipped already; arguments as in `apply`."""
        for group, rate in zip(self.optimizer.param_groups, lr, strict=True):
            group["lr"] = rate
        self._take_step(gradient)

    def _take_step(self, gradient: Gradient) -> None:
        for parameter, part in zip(self.parameters, gradient, strict=True):
            parameter.grad = part
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
