"""How much memory a computation takes at its peak."""

import weakref
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")  # Linux
_RESET_PEAK = "5"  # proc_pid_clear_refs(5)


def peak_of(compute: Callable[[], object], device: torch.device) -> int:
    """Bytes of tensors that a computation holds at its peak, over those that are there before.

    On a GPU as its allocator counts them. On the CPU as every operation's results come and go, which leaves out what
    an operation holds inside itself.

    Args:
        compute: what to run, once.
        device: where it computes.

    Returns:
        The peak in bytes.
    """
    if device.type == "cuda":
        before: int = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        compute()
        peak: int = torch.cuda.max_memory_allocated(device)
        return peak - before
    counted = _Allocations()
    with counted:
        compute()
    return counted.peak


class PeakMemory:
    """The peak of what this process holds over what it held when this was made."""

    def __init__(self, device: torch.device) -> None:
        """Takes what is there now as the base.

        Args:
            device: where the computation runs: a GPU's memory is counted by its allocator, the CPU's as resident.
        """
        self._device = device
        self._base = torch.cuda.memory_allocated(device) if device.type == "cuda" else _resident("VmRSS")

    def restart(self) -> None:
        """Forgets the peak so far, but keeps the base."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        elif _CLEAR.exists():
            _CLEAR.write_text(_RESET_PEAK)

    def peak_bytes(self) -> int | None:
        """The peak since the last restart; None where the system doesn't tell it."""
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device)) - (self._base or 0)
        peak = _resident("VmHWM")
        return None if peak is None or self._base is None else max(0, peak - self._base)


def _resident(name: str) -> int | None:
    """A figure of this process in bytes, as Linux tells it."""
    if not _STATUS.exists():
        return None
    lines = (line.split() for line in _STATUS.read_text().splitlines())
    return next(int(words[1]) * 1024 for words in lines if words[0] == f"{name}:")


class _Allocations(TorchDispatchMode):
    """Counts the bytes of all storages that operations make, until they are released.

    Attributes:
        peak: the most bytes at once.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known = set[int]()  # storages counted, or not made here
        self._now = 0
        self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Runs an operation and counts what it makes."""
        for tensor in _tensors((args, kwargs)):
            self._note(tensor, is_made_here=False)
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            self._note(tensor, is_made_here=True)
        return result

    def _note(self, tensor: Tensor, *, is_made_here: bool) -> None:
        if tensor.is_meta or tensor._is_zerotensor():  # of which there is a shape only
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        size = storage.nbytes() if is_made_here else 0
        self._now += size
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._now -= size


def _tensors(values: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
