"""Nothing but the optimizer's steps may change a run: what it leaves behind is what its next step must find.

A replay takes optimizer steps and nothing else, so that a change between two of them would be lost, silently.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from lmcleaner.formats.errors import UsageError
from lmcleaner.training.vectors import INTEGER_VIEWS

_WIDEST = torch.int64

_Marks = dict[tuple[str, str], tuple[int, int]]  # parameter and kind of its state -> which tensor, changed how often


class Untouched:
    """Parameters by a checksum of their bits, the optimizer's state by its tensors and how often each was changed."""

    def __init__(self, parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
        """Has noted nothing yet.

        Args:
            parameters: name -> parameter that is trained.
            optimizer: over them.
        """
        self._parameters, self._optimizer = parameters, optimizer
        self._sums: list[tuple[torch.dtype, Tensor]] = []
        self._marks: _Marks = {}

    def note(self) -> None:
        """Notes what a step has left behind."""
        self._sums = [(parameter.dtype, _checksum(parameter)) for parameter in self._parameters.values()]
        self._marks = self._marks_now()

    def check(self, step: int) -> None:
        """Makes sure that a step finds what the one before it left.

        Args:
            step: its number, for messages.

        Raises:
            UsageError: a parameter or the optimizer's state was changed since, or a parameter is trained no more.
        """
        frozen = next((name for name, parameter in self._parameters.items() if not parameter.requires_grad), None)
        if frozen is not None:
            raise UsageError(
                f"a parameter is trained no more: {frozen}: step {step}: expected requires_grad to stay",
                hint="freeze it before the first step; a log is about the same parameters throughout",
            )
        changed = self.changed()
        if changed is not None:
            raise UsageError(
                f"something else than the optimizer's steps changed {changed}: between the steps {step - 1} and {step}",
                hint="a replay takes the optimizer's steps alone; what changes a run besides can't be recorded",
            )

    def changed(self) -> str | None:
        """What was changed since it was noted, a parameter or a part of the optimizer's state; None if nothing was."""
        if not self._sums:
            return None
        for (name, parameter), before in zip(self._parameters.items(), self._sums, strict=True):
            if not _has_sum(parameter, before):
                return name
        now = self._marks_now()
        for name, kind in self._marks | now:
            if self._marks.get((name, kind)) != now.get((name, kind)):
                return f"the optimizer's {kind} of {name}"
        return None

    def _marks_now(self) -> _Marks:
        return {
            (name, kind): (id(value), value._version)
            for name, parameter in self._parameters.items()
            for kind, value in self._optimizer.state.get(parameter, {}).items()
            if isinstance(value, Tensor)
        }


def _has_sum(parameter: Tensor, noted: tuple[torch.dtype, Tensor]) -> bool:
    """Whether its bits are what they were, wherever they lie now."""
    dtype, before = noted
    return parameter.dtype == dtype and torch.equal(_checksum(parameter).to(before.device), before)


def _checksum(tensor: Tensor) -> Tensor:
    """The sum of its bits as integers, modulo 2^64; of eight bytes at once where it can be read so."""
    flat = tensor.detach().reshape(-1)
    per_word = _WIDEST.itemsize // flat.element_size()
    if flat.numel() % per_word or flat.storage_offset() % per_word:
        return flat.view(INTEGER_VIEWS[flat.dtype]).sum(dtype=_WIDEST)
    return flat.view(_WIDEST).sum()
