"""What a log takes, part by part and array by array."""

from collections.abc import Iterable
from dataclasses import dataclass

from lmcleaner.formats.layout import (
    CHECKPOINTS,
    CORRECTIONS,
    CURVATURE,
    GRADIENTS,
    LEDGER,
    METADATA,
    UPDATES,
    is_uncounted,
)
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.tree import PARTS


@dataclass(frozen=True, slots=True, kw_only=True)
class PartSize:
    """Objects of one part of a log.

    Attributes:
        name: samples, bookkeeping, updates, gradients, checkpoints, curvature or leftovers.
        num_files: objects.
        num_bytes: bytes of them.
        unit: what the part grows by: sample, microbatch, "parameter and step", checkpoint, estimate; "" of leftovers.
        bytes_per_unit: bytes for each; None where there are none.
    """

    name: str
    num_files: int
    num_bytes: int
    unit: str
    bytes_per_unit: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ArraySize:
    """Objects of one array, or of one group of a log.

    Attributes:
        name: path of the array; "" is the manifest, the commit record and the metadata of groups, "leftovers" what
            nothing counts.
        num_files: objects.
        num_bytes: bytes of them.
        bytes_per_element: of updates and gradients, for each parameter and stored step; None for others.
    """

    name: str
    num_files: int
    num_bytes: int
    bytes_per_element: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """An object that the commit record doesn't count, such as a killed writer leaves.

    Attributes:
        key: path in the log.
        num_bytes: its size.
    """

    key: str
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What a log takes; parts and arrays each add up to all of it.

    Attributes:
        parts: in the order of `PARTS`, leftovers last.
        arrays: the largest first; a checkpoint, a correction, an estimate and the request ledger as a whole.
        leftovers: in the order of their keys.
    """

    parts: tuple[PartSize, ...]
    arrays: tuple[ArraySize, ...]
    leftovers: tuple[Leftover, ...]


def sizes_of(log: TrainingLog) -> Sizes:
    """What a log takes.

    Args:
        log: the log.

    Returns:
        Its parts, arrays and leftovers.

    Raises:
        DamagedError: a table can't be trusted.
    """
    objects, prefix = dict(log.store.list()), log.tree.path("") + "/"
    counted = {*log.objects(), *filter(is_uncounted, objects)}
    parts = _grouped((log.tree.part(key) if key in counted else "leftovers", size) for key, size in objects.items())
    arrays = _grouped(
        (_array_of(key.removeprefix(prefix)) if key in counted else "leftovers", size) for key, size in objects.items()
    )
    found = [
        ArraySize(
            name=name, num_files=len(sizes), num_bytes=sum(sizes), bytes_per_element=_share(log, name, sum(sizes))
        )
        for name, sizes in arrays.items()
    ]
    return Sizes(
        parts=tuple(_part(log, name, parts.get(name, [])) for name in (*PARTS, "leftovers")),
        arrays=tuple(sorted(found, key=lambda array: array.num_bytes, reverse=True)),
        leftovers=tuple(Leftover(key=key, num_bytes=size) for key, size in objects.items() if key not in counted),
    )


def _grouped(named: Iterable[tuple[str, int]]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for name, size in named:
        groups.setdefault(name, []).append(size)
    return groups


def _array_of(path: str) -> str:
    parts = path.partition("/c/")[0].removesuffix(METADATA).rstrip("/").split("/")
    if parts[0] == LEDGER:
        return LEDGER
    return "/".join(parts[:2]) if parts[0] in {CHECKPOINTS, CORRECTIONS, CURVATURE} else "/".join(parts)


def _part(log: TrainingLog, name: str, sizes: list[int]) -> PartSize:
    units = {
        "samples": ("sample", len(log.table("samples/stop"))),
        "bookkeeping": ("microbatch", len(log.table("microbatches/stop"))),
        UPDATES: ("parameter and step", _num_elements(log, UPDATES)),
        GRADIENTS: ("parameter and step", _num_elements(log, GRADIENTS)),
        CHECKPOINTS: ("checkpoint", len(log.checkpoint_steps)),
        CURVATURE: ("estimate", len(log.commit.curvature)),
    }
    unit, count = units.get(name, ("", 0))
    share = sum(sizes) / count if count else None
    return PartSize(name=name, num_files=len(sizes), num_bytes=sum(sizes), unit=unit, bytes_per_unit=share)


def _num_elements(log: TrainingLog, stack: str) -> int:
    return len(log.tree.rows_of(stack, log.commit)) * log.manifest.num_elements


def _share(log: TrainingLog, name: str, num_bytes: int) -> float | None:
    stack = next((stack for stack in (UPDATES, GRADIENTS) if name.removesuffix("_scales") == stack), None)
    count = _num_elements(log, stack) if stack is not None else 0
    return num_bytes / count if count else None
