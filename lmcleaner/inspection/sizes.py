"""What a log takes, array by array."""

from dataclasses import dataclass

from lmcleaner.formats.layout import GRADIENTS, LOCK, METADATA, UPDATES
from lmcleaner.formats.reader import TrainingLog


@dataclass(frozen=True, slots=True, kw_only=True)
class ArraySize:
    """Objects of one array, or of one group of a log.

    Attributes:
        name: path of the array; "" is the manifest and the commit record, "leftovers" what nothing counts.
        num_files: objects.
        num_bytes: bytes of them.
        bytes_per_element: of updates and gradients, for each parameter and stored step; None for others.
    """

    name: str
    num_files: int
    num_bytes: int
    bytes_per_element: float | None


def sizes_of(log: TrainingLog) -> list[ArraySize]:
    """What each array of a log takes, the largest first.

    Args:
        log: the log.

    Returns:
        One entry for each array, checkpoints as a whole.
    """
    counted, prefix = {LOCK, *log.tree.objects(log.commit)}, log.tree.path("") + "/"
    files: dict[str, list[int]] = {}
    for key, size in log.store.list():
        name = _array_of(key.removeprefix(prefix)) if key in counted else "leftovers"
        files.setdefault(name, []).append(size)
    found = [
        ArraySize(
            name=name, num_files=len(sizes), num_bytes=sum(sizes), bytes_per_element=_share(log, name, sum(sizes))
        )
        for name, sizes in files.items()
    ]
    return sorted(found, key=lambda array: array.num_bytes, reverse=True)


def _array_of(path: str) -> str:
    parts = path.partition("/c/")[0].removesuffix(METADATA).rstrip("/").split("/")
    return "/".join(parts[:2]) if parts[0] in {"checkpoints", "corrections"} else "/".join(parts)


def _share(log: TrainingLog, name: str, num_bytes: int) -> float | None:
    stack = next((stack for stack in (UPDATES, GRADIENTS) if name.startswith(stack)), None)
    rows = 0 if stack is None else len(log.tree.rows_of(stack, log.commit))
    return num_bytes / rows / log.manifest.num_elements if rows else None
