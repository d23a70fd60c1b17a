"""A training state in host memory, for accelerators that have no room for it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lmcleaner.formats.manifest import Manifest
from lmcleaner.formats.steps import Checkpoint
from lmcleaner.training.state import Gradient, TrainingState

HOST = torch.device("cpu")
_OF_DEVICES = {"capturable"}  # what an optimizer can't be on the CPU


class OffloadedState(TrainingState):
    """θ and o in host memory; a step takes one parameter after the other to the device and back.

    Every supported optimizer treats a parameter without regard to the others, so that the bits are those of a step on
    the device; it holds no more there than the gradient, and one parameter with its state.

    Attributes:
        parameters: leaf tensors in host memory.
        optimizer: over them.
    """

    def __init__(self, manifest: Manifest, checkpoint: Checkpoint, device: torch.device) -> None:
        """Restores a checkpoint.

        Args:
            manifest: what the log says of the run.
            checkpoint: θ and the optimizer's state.
            device: where steps are computed, and gradients lie.
        """
        super().__init__(manifest, checkpoint, HOST)
        self._device = device
        for group, logged in zip(self.optimizer.param_groups, manifest.optimizer.groups, strict=True):
            group.update({name: logged[name] for name in _OF_DEVICES & logged.keys()})

    def _take_step(self, gradient: Gradient) -> None:
        groups = {parameter: group for group in self.optimizer.param_groups for parameter in group["params"]}
        for parameter, part in zip(self.parameters, gradient, strict=True):
            if part is None:
                continue
            with self._on_device(parameter, groups[parameter]):
                parameter.grad = part
                self.optimizer.step()
                parameter.grad = None

    @contextmanager
    def _on_device(self, parameter: Tensor, group: Mapping[str, Any]) -> Iterator[None]:
        self._move(parameter, group, self._device)
        try:
            yield
        finally:
            self._move(parameter, group, HOST)

    def _move(self, parameter: Tensor, group: Mapping[str, Any], device: torch.device) -> None:
        parameter.data = parameter.data.to(device)
        state = self.optimizer.state.get(parameter, {})
        # torch keeps a step's number in host memory, unless a kernel on the device shall read it.
        is_number_read = bool(group.get("fused") or group.get("capturable"))
        for name, value in [*state.items()]:
            if isinstance(value, Tensor) and (value.dim() or is_number_read):
                state[name] = value.to(device)
