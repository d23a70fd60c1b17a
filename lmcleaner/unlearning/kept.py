"""States of a sweep that are kept beside the model, so that others can take the steps between them again."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lmcleaner.formats.errors import DamagedError, NotFoundError
from lmcleaner.formats.steps import Checkpoint, OptimizerVectors
from lmcleaner.formats.store import storage_errors
from lmcleaner.training.optimizers import optimizer_vectors
from lmcleaner.training.state import TrainingState
from lmcleaner.training.vectors import bits_of
from lmcleaner.unlearning.windows import Window

STATES = "states"  # folder beside the audit document
_VECTOR, _SCALAR = "optimizer/", "optimizer scalars/"


class StateKeeper:
    """Writes some of a sweep's states: those after evenly spaced steps of each window, and the one at its end."""

    def __init__(self, folder: Path, count: int) -> None:
        """Keeps nothing before the first window begins.

        Args:
            folder: where the files lie until the output is there.
            count: states of each window; 0 keeps none.
        """
        self._folder, self._count = folder, count
        self._wanted = frozenset[int]()
        self._kept = list[int]()

    def begin(self, window: Window) -> None:
        """A window begins; where its end isn't fixed, the longest that it may be."""
        count = min(self._count, window.num_carried)  # there are no more
        self._wanted = frozenset(window.first + -(-k * window.num_carried // count) for k in range(1, count + 1))
        self._kept = []

    def offer(self, step: int, state: TrainingState) -> None:
        """Keeps (θ′, o′) before a step, if that is one of those to keep."""
        if step in self._wanted:
            self._write(step, state)

    def finish(self, step: int, state: TrainingState) -> tuple[int, ...]:
        """The window ends before a step; the steps before which its states were kept."""
        if self._count and step not in self._kept:
            self._write(step, state)
        return tuple(self._kept)

    def move_to(self, output: Path) -> None:
        """Moves all states into an output folder on the same disk."""
        if self._count:
            shutil.move(self._folder, output / STATES)

    def _write(self, step: int, state: TrainingState) -> None:
        self._folder.mkdir(exist_ok=True)
        optimizer = optimizer_vectors(state.optimizer, state.parameters)
        arrays: dict[str, NDArray[Any]] = {"parameters": bits_of(state.parameters), "present": optimizer.present}
        arrays |= {_VECTOR + name: vector for name, vector in optimizer.vectors.items()}
        arrays |= {_SCALAR + name: values for name, values in optimizer.scalars.items()}
        save_file(arrays, state_file(self._folder, step), optimizer.dtypes)
        self._kept.append(step)


@contextmanager
def keeping_states(output: Path, count: int) -> Iterator[StateKeeper]:
    """Keeps states in a temporary folder beside the output, which goes unless the states are moved.

    Args:
        output: the folder that a run will make.
        count: states of each window; 0 keeps none.

    Yields:
        The keeper.

    Raises:
        ResourceError: they can't be written.
    """
    with storage_errors(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as folder:
            yield StateKeeper(Path(folder) / STATES, count)


def read_state(folder: Path, step: int) -> Checkpoint:
    """Reads a state that was kept.

    Args:
        folder: where states lie.
        step: before which.

    Returns:
        θ′ and o′.

    Raises:
        NotFoundError: there is none.
        DamagedError: the file can't be read.
    """
    path = state_file(folder, step)
    if not path.is_file():
        raise NotFoundError(f"no state of the sweep was kept there: {path}")
    try:
        with safe_open(path, "numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 -- no mapping
            dtypes = file.metadata() or {}
    except SafetensorError as error:
        raise DamagedError(f"the state of the sweep can't be read: {path}: {error}") from error
    parts = {
        kind: {name.removeprefix(kind): array for name, array in arrays.items() if name.startswith(kind)}
        for kind in (_VECTOR, _SCALAR)
    }
    missing = {"parameters", "present"} - arrays.keys() or parts[_VECTOR].keys() - dtypes.keys()
    if missing:
        raise DamagedError(f"the state of the sweep isn't whole: {path}: {sorted(missing)[0]} is missing")
    return Checkpoint(
        step=step,
        parameters=arrays["parameters"],
        optimizer=OptimizerVectors(
            vectors=parts[_VECTOR], dtypes=dtypes, scalars=parts[_SCALAR], present=arrays["present"]
        ),
    )


def state_file(folder: Path, step: int) -> Path:
    """Where the state before a step lies."""
    return folder / f"{step:09d}.safetensors"
