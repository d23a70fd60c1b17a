"""Between an estimate and the numbers of it that a log holds."""

from collections.abc import Mapping
from types import MappingProxyType

import torch

from lmcleaner.choices import HessianMode
from lmcleaner.curvature.estimates import Diagonal, Estimate, LowRank
from lmcleaner.formats.commit import EstimateKind
from lmcleaner.formats.curvature import StoredEstimate, read_curvature
from lmcleaner.formats.reader import TrainingLog

KINDS: Mapping[HessianMode, EstimateKind] = MappingProxyType({
    HessianMode.DIAG: "diag",
    HessianMode.DIAG_HESSIAN: "diag_hessian",
    HessianMode.LOW_RANK: "low_rank",
})


def as_stored(estimate: Estimate, mode: HessianMode, rank: int) -> StoredEstimate:
    """What a log shall hold of an estimate.

    Args:
        estimate: a diagonal or eigenpairs.
        mode: whose estimate it is.
        rank: eigenpairs that were asked for.

    Returns:
        Its numbers, to the last bit.
    """
    if isinstance(estimate, LowRank):
        arrays = {"values": estimate.values.cpu().numpy(), "vectors": estimate.vectors.cpu().numpy()}
        return StoredEstimate(kind=KINDS[mode], rank=rank, trace=estimate.trace, arrays=arrays)
    assert isinstance(estimate, Diagonal)
    diagonal = torch.cat([part.reshape(-1) for part in estimate.entries])
    return StoredEstimate(kind=KINDS[mode], rank=0, trace=estimate.trace, arrays={"diagonal": diagonal.cpu().numpy()})


def served_steps(log: TrainingLog, mode: HessianMode, rank: int) -> tuple[int, ...]:
    """Steps from which on a recorded estimate serves a mode, each until the next.

    Args:
        log: the training log.
        mode: the mode.
        rank: eigenpairs of LOW_RANK; an estimate with fewer doesn't serve.

    Returns:
        The steps, ascending; none where the log holds no such estimates.
    """
    entries = log.commit.curvature
    serves = all(entry.kind == KINDS.get(mode) and (not entry.rank or entry.rank >= rank) for entry in entries.values())
    return tuple(sorted(entries)) if serves else ()


def load_estimate(log: TrainingLog, start: int, rank: int, device: torch.device) -> Estimate:
    """A recorded estimate.

    Args:
        log: the training log.
        start: from which step on it serves.
        rank: the largest eigenpairs to take, if they are eigenpairs.
        device: where its tensors shall lie.

    Returns:
        The estimate as it was made, but for the pairs beyond `rank`.

    Raises:
        DamagedError: it can't be read or doesn't have the committed digest.
    """
    found = read_curvature(log, start)
    arrays = {name: torch.from_numpy(values) for name, values in found.arrays.items()}
    if found.kind == "low_rank":
        values, vectors = (arrays[name][:rank].to(device, copy=True) for name in ("values", "vectors"))
        return LowRank(values, vectors, found.trace)
    entries, flat = log.manifest.parameters, arrays["diagonal"].to(device, copy=True)
    return Diagonal([flat[e.offset : e.offset + e.num_elements].view(e.shape) for e in entries])
