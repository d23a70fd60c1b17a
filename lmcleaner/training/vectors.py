"""Between torch tensors and the bit patterns that a log stores."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch import Tensor

from lmcleaner.formats.bits import BIT_DTYPES, Bits
from lmcleaner.formats.canonical import arrays_digest
from lmcleaner.formats.errors import UsageError
from lmcleaner.formats.manifest import ParameterEntry

_TORCH_DTYPES = {
    "float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64, "uint8": torch.uint8,
    "float16": torch.float16,  # of weights that aren't trained, which no log holds
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _TORCH_DTYPES.items()}
MAX_SPACED = 1 << 18  # elements of `evenly_spaced`; 1 MiB of float32, and norms within a few thousandths
INTEGER_VIEWS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float64: torch.int64}


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of a name that a log uses.

    Raises:
        UsageError: no log uses it.
    """
    if name not in _TORCH_DTYPES:
        raise UsageError(f"unsupported dtype: expected one of {sorted(_TORCH_DTYPES)}, found {name!r}")
    return _TORCH_DTYPES[name]


def dtype_name(dtype: torch.dtype) -> str:
    """Inverse of `torch_dtype` for what a log holds.

    Raises:
        UsageError: a log can't hold that dtype.
    """
    name = _NAMES.get(dtype)
    if name not in BIT_DTYPES:
        raise UsageError(f"unsupported dtype: expected one of {sorted(BIT_DTYPES)}, found {dtype}")
    return name


def frozen_dtype_name(dtype: torch.dtype) -> str:
    """The same of weights that aren't trained, which a log doesn't hold: they may be float16, too."""
    return _NAMES.get(dtype) or dtype_name(dtype)


def bits_of(tensors: Iterable[Tensor], out: Bits | None = None) -> Bits:
    """One flat copy of the tensors' bit patterns.

    Args:
        tensors: tensors of one dtype on any device.
        out: vector to fill; None takes fresh memory.

    Returns:
        uint8, uint16, uint32 or uint64 `[total elements]`, in the order given.

    Raises:
        UsageError: a log can't hold their dtype.
    """
    parts = [tensor.detach() for tensor in tensors]
    dtype = parts[0].dtype
    if out is None:
        out = np.empty(sum(part.numel() for part in parts), BIT_DTYPES[dtype_name(dtype)])
    places = _as_tensor(out, dtype).split([part.numel() for part in parts])
    for part, place in zip(parts, places, strict=True):
        place.view(part.shape).copy_(part, non_blocking=True)
    if parts[0].is_cuda:
        torch.cuda.synchronize(parts[0].device)
    return out


def host_vector(num_elements: int, dtype: DTypeLike, device: torch.device) -> Bits:
    """Memory for `bits_of` to fill.

    Args:
        num_elements: its length.
        dtype: of the bit patterns.
        device: where the tensors lie; a GPU copies into page-locked memory several times as fast.

    Returns:
        An array of undefined content.
    """
    if device.type != "cuda":
        return np.empty(num_elements, dtype)
    num_bytes = num_elements * np.dtype(dtype).itemsize
    locked: Bits = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True).numpy().view(dtype)
    return locked


def digest_of(tensors: Iterable[Tensor]) -> bytes:
    """`array_digest` of the tensors' bit patterns; holds one tensor's at a time."""
    return arrays_digest(bits_of([tensor]) for tensor in tensors)


def tensors_of(bits: Bits, dtype: torch.dtype, entries: Sequence[ParameterEntry], device: torch.device) -> list[Tensor]:
    """The parameter tensors that a vector of bit patterns holds.

    Args:
        bits: `[num_elements]`.
        dtype: dtype of the parameters.
        entries: name, shape and offset of each parameter.
        device: where the tensors shall lie.

    Returns:
        One tensor for each entry, each with memory of its own: forward derivatives of a view take as much memory as
        all that it is a view of, and kernels may choose another order of summation where memory isn't aligned.
    """
    flat = _as_tensor(bits, dtype)
    return [flat[e.offset : e.offset + e.num_elements].view(e.shape).to(device, copy=True) for e in entries]


def _as_tensor(bits: Bits, dtype: torch.dtype) -> Tensor:
    """A view."""
    return torch.from_numpy(bits.view(f"i{bits.dtype.itemsize}")).view(dtype)


def bits_in(tensor: Tensor) -> Bits:
    """The bit patterns of a contiguous CPU tensor, flat and sharing its memory."""
    flat = tensor.detach().view(-1)
    return flat.view(INTEGER_VIEWS[flat.dtype]).numpy().view(BIT_DTYPES[dtype_name(flat.dtype)])


def joined_norm(norms: Sequence[Tensor]) -> float:
    """L2 norm of all tensors together from the norm of each, in the tensors' dtype as torch's clipping computes it."""
    return float(torch.linalg.vector_norm(torch.stack(list(norms)))) if norms else 0.0


def global_norm(tensors: Iterable[Tensor]) -> float:
    """L2 norm of all tensors together, accumulated in float64."""
    return math.hypot(*(float(torch.linalg.vector_norm(tensor, dtype=torch.float64)) for tensor in tensors))


def distance(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    """L2 distance of two lists of tensors, accumulated in float64."""
    return global_norm(a.double() - b.double() for a, b in zip(left, right, strict=True))


def evenly_spaced(tensors: Sequence[Tensor]) -> Tensor:
    """A copy of at most 262,144 elements, taken from all tensors at one spacing.

    Two vectors are compared on these elements where neither may be kept whole; up to as many parameters they are all.

    Args:
        tensors: one or more of any shape.

    Returns:
        `[elements]`, of the tensors' dtype.
    """
    spacing = -(-sum(tensor.numel() for tensor in tensors) // MAX_SPACED)
    return torch.cat([tensor.detach().reshape(-1)[::spacing] for tensor in tensors])
