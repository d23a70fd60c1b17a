"""Reads a training log, never changes it, and trusts nothing that its digests don't cover."""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from lmcleaner.formats.bits import Bits
from lmcleaner.formats.canonical import array_digest, json_digest
from lmcleaner.formats.chunks import ChunkError
from lmcleaner.formats.commit import Commit
from lmcleaner.formats.consistency import problem_of_commit, problem_of_table
from lmcleaner.formats.documents import metadata_key, read_attributes
from lmcleaner.formats.errors import InsufficientLogError, NotFoundError, UsageError
from lmcleaner.formats.layout import COMMIT, GRADIENTS, checkpoint_name, curvature_name, damaged
from lmcleaner.formats.manifest import Manifest
from lmcleaner.formats.ranges import readable_steps, steps_in
from lmcleaner.formats.reconstruction import Reconstruction
from lmcleaner.formats.rows import RowReader
from lmcleaner.formats.samples import Sample
from lmcleaner.formats.stacks import StackReader
from lmcleaner.formats.states import assemble, read_array
from lmcleaner.formats.steps import Checkpoint, StepRecord
from lmcleaner.formats.store import Store, open_store
from lmcleaner.formats.tables import NO_ROWS, read_table
from lmcleaner.formats.tree import PARTS, Tree
from lmcleaner.formats.vectors import read_rows
from lmcleaner.formats.window import Selection, WindowStep, stream

Value = TypeVar("Value")


class TrainingLog:
    """An opened training log.

    Attributes:
        store: where the log lies, open for reading.
        place: what the log was opened with, so that it can be opened for writing.
        manifest: what the log says of its run before the first step.
        manifest_digest: SHA-256 of the manifest as it is stored.
        commit: what the log vouches for; rows beyond it are not there for a reader.
        tree: where everything lies.
    """

    def __init__(self, location: Store | Path | str) -> None:
        """Opens the log and checks its manifest and its commit record.

        Args:
            location: folder, zip file or URL of the log.

        Raises:
            UsageError: it isn't a place, or nothing can read it.
            NotFoundError: no log lies there.
            DamagedError: the manifest or the commit record is damaged.
            VersionError: a later release wrote it.
        """
        self.store, self.place = open_store(location), location
        document = self._attributes("")
        self.manifest = Manifest.from_json(document, self.location)
        self.manifest_digest = json_digest(document)
        self.commit = Commit.from_json(self._attributes(COMMIT), self.manifest_digest, self.location)
        self.tree = Tree(self.manifest, self.commit.generation)
        problem = problem_of_commit(self.commit, self.manifest)
        if problem is not None:
            raise damaged(self.location, COMMIT, problem)
        self._cache: dict[str, NDArray[Any]] = {}
        self._rows = RowReader(self.table, self.location)

    @property
    def location(self) -> str:
        """Where the log lies, as it was given."""
        return self.store.location

    @property
    def num_steps(self) -> int:
        """τ, the number of committed steps."""
        return self.commit.steps

    @property
    def root(self) -> str:
        """SHA-256 that names the log's whole committed content."""
        return self.commit.root(self.manifest_digest)

    @property
    def checkpoint_steps(self) -> tuple[int, ...]:
        """Steps before which the full state is stored, in order."""
        return tuple(sorted(self.commit.checkpoints))

    @property
    def has_updates(self) -> bool:
        """Whether θ after every step can be read."""
        return self.missing_update(0, self.num_steps) is None

    @cached_property
    def readable_steps(self) -> frozenset[int]:
        """Steps before which θ can be read: at a checkpoint, and wherever the updates lead from there."""
        return readable_steps(self.commit.checkpoints, steps_in(self.commit.updates))

    @cached_property
    def sample_rows(self) -> dict[bytes, int]:
        """Digest of each sample -> its row of the sample table."""
        return {digest.tobytes(): row for row, digest in enumerate(self.table("samples/digest"))}

    @cached_property
    def occurrence_steps(self) -> NDArray[np.int64]:
        """Step of each row of the occurrence table, int64 `[num_occurrences]`."""
        microbatches = np.searchsorted(
            self.table("microbatches/stop"), np.arange(len(self.table("occurrences/sample"))), side="right"
        )
        return np.asarray(np.searchsorted(self.table("steps/stop"), microbatches, side="right"), dtype=np.int64)

    def table(self, name: str) -> NDArray[Any]:
        """All committed rows of a table, checked against their digest.

        Args:
            name: path of the table, see `layout.TABLES`.

        Returns:
            Array with the dtype that the layout states.

        Raises:
            DamagedError: the bytes can't be read or don't have the committed digest.
        """
        if name not in self._cache:
            path, layout = self.tree.path(name), self.tree.tables[name]
            committed = self.commit.tables.get(name, NO_ROWS)
            rows = self._sound(name, None, read_table, self.store, path, layout, committed)
            problem = problem_of_table(name, rows, self.commit, self.manifest)
            if problem is not None:
                raise damaged(self.location, name, problem)
            self._cache[name] = rows
        return self._cache[name]

    def objects(self) -> Iterator[str]:
        """The key of every object that the log counts; every table is read first, so that its rows can be believed."""
        for name in self.tree.tables:
            self.table(name)
        return self.tree.objects(self.commit)

    def sample(self, row: int) -> Sample:
        """The sample in row `row` of the sample table."""
        return self._rows.sample(row)

    def step(self, step: int) -> StepRecord:
        """What step `step` did; the content of its samples is read when somebody looks at it.

        Raises:
            NotFoundError: the log holds no such step.
        """
        self._check_step(step, self.num_steps - 1)
        return self._sound("occurrences/start", step, self._rows.step, step)

    def nearest_checkpoint(self, step: int) -> int:
        """The last checkpoint at or before `step`.

        Raises:
            InsufficientLogError: all checkpoints lie behind it.
        """
        before = [stored for stored in self.checkpoint_steps if stored <= step]
        if not before:
            raise InsufficientLogError(
                f"no checkpoint at or before step {step}: {self.location}: found {list(self.checkpoint_steps)}"
            )
        return before[-1]

    def checkpoint(self, step: int) -> Checkpoint:
        """The full state before step `step`, checked against its digests.

        Raises:
            NotFoundError: there is no checkpoint of that step.
            DamagedError: the bytes can't be read or don't have the committed digest.
        """
        self._check_checkpoint(step)
        committed = self.commit.checkpoints[step]
        return assemble(step, committed, {name: self.checkpoint_array(step, name) for name in committed.blake3})

    def checkpoint_parameters(self, step: int) -> Bits:
        """θ[step] from its checkpoint, bit patterns `[num_elements]`, checked against its digest."""
        return self.checkpoint_array(step, "parameters")

    def checkpoint_array(self, step: int, name: str) -> NDArray[Any]:
        """One array of a checkpoint, checked against its digest.

        Args:
            step: of the checkpoint.
            name: of the array, such as "parameters".

        Returns:
            Its elements.

        Raises:
            NotFoundError: there is no checkpoint of that step.
            DamagedError: the bytes can't be read or don't have the committed digest.
        """
        self._check_checkpoint(step)
        where, committed = f"{checkpoint_name(step)}/{name}", self.commit.checkpoints[step]
        return self._sound(where, step, read_array, self.store, self.tree, step, name, committed)

    def curvature_array(self, step: int, name: str) -> NDArray[Any]:
        """One array of a recorded estimate of the curvature; see `read_curvature`."""
        entry, where = self.commit.curvature[step], f"{curvature_name(step)}/{name}"
        grid, rows = self.tree.curvature(step, name, entry)
        values = self._sound(where, step, read_rows, self.store, grid, rows, entry.blake3[name])
        return values if grid.layout.row else values[0]

    def parameters(self, step: int) -> Bits:
        """θ[step], bit patterns `[num_elements]`: from its checkpoint, or as the updates have it.

        Raises:
            NotFoundError: the log holds no such step.
            InsufficientLogError: the log doesn't hold the updates.
            DamagedError: what it is read from is damaged.
        """
        self._check_step(step, self.num_steps)
        return self.checkpoint_parameters(step) if step in self.commit.checkpoints else self.reconstruction(step)

    def named_parameters(self, step: int, names: Sequence[str]) -> dict[str, Bits]:
        """Some parameters of θ[step], reading no more than the spans that they lie in.

        A span is checked by the checksums of its chunks; the digests cover whole vectors only.

        Args:
            step: before which step.
            names: of the parameters.

        Returns:
            Name -> bit patterns in the parameter's shape.

        Raises:
            NotFoundError: the log holds no such step or parameter.
            InsufficientLogError: the log doesn't hold the updates.
            DamagedError: what it is read from is damaged.
        """
        self._check_step(step, self.num_steps)
        selection = Selection(self.manifest, names)
        return selection.named(self.reconstruct(step, selection).bits)

    def reconstruction(self, step: int) -> Bits:
        """θ[step] as the updates have it: the run's bits with lossless updates, within the codec's bound otherwise."""
        return self.reconstruct(step).bits

    def reconstruct(self, step: int, selection: Selection | None = None) -> Reconstruction:
        """θ[step] as the updates have it, able to move forward.

        Args:
            step: before which step.
            selection: which parameters; None is all.

        Returns:
            The reconstruction.

        Raises:
            NotFoundError: the log holds no such step.
            InsufficientLogError: the log doesn't hold the updates.
            DamagedError: what it is read from is damaged.
        """
        self._check_step(step, self.num_steps)
        start = self.nearest_checkpoint(step)
        self.check_updates(start, step)
        spans = None if selection is None or selection.is_whole else selection.spans
        found = Reconstruction(self, start, spans=spans)
        found.advance_to(step)
        return found

    def window(
        self,
        start: int,
        stop: int,
        *,
        names: Sequence[str] | None = None,
        updates: bool = False,
        gradients: bool = False,
    ) -> Iterator[WindowStep]:
        """Streams the steps from `start` to `stop` - 1, reading ahead, with a few vectors in memory.

        Args:
            start: first step.
            stop: one after the last step; at most τ + 1, or τ with updates or gradients.
            names: parameters to read; None is all.
            updates: whether to give θ[s+1] - θ[s].
            gradients: whether to give the gradients that the optimizer was given.

        Returns:
            An iterator over the steps.

        Raises:
            NotFoundError: the log holds no such step or parameter.
            InsufficientLogError: the log doesn't hold the updates or the gradients.
        """
        self._check_step(start, self.num_steps)
        self._check_step(stop - 1, self.num_steps - 1 if updates or gradients else self.num_steps)
        return stream(self, start, stop, Selection(self.manifest, names), updates=updates, gradients=gradients)

    def gradient(self, step: int) -> Bits:
        """The gradient that the optimizer was given at a step, as its codec has it; bit patterns `[num_elements]`.

        Raises:
            NotFoundError: the log holds no such step.
            InsufficientLogError: the log holds no gradients.
            DamagedError: it can't be read or doesn't have the committed digest.
        """
        self._check_step(step, self.num_steps - 1)
        return self.gradient_reader(Selection(self.manifest, None))(step)

    def gradient_reader(self, selection: Selection) -> Callable[[int], Bits]:
        """A function that reads the selection's spans of a step's gradient; a whole one is checked by its digest.

        Raises:
            InsufficientLogError: the log holds no gradients.
        """
        if GRADIENTS not in self.tree.stacks:
            raise InsufficientLogError(f"the log holds no gradients: {self.location}", hint="record with --gradients")
        reader, digests = StackReader(self.store, self.tree, GRADIENTS), self.table("steps/gradient_blake3")

        def read(step: int) -> Bits:
            if not any(first <= step < stop for first, stop in self.commit.gradients):
                raise InsufficientLogError(f"the log doesn't hold the gradient any more: {self.location}: step {step}")
            values = reader.decoded(step, selection.spans)
            if selection.is_whole and array_digest(values) != digests[step].tobytes():
                raise ChunkError("it doesn't have the committed digest")
            return values

        return lambda step: self._sound(GRADIENTS, step, read, step)

    def missing_update(self, start: int, stop: int) -> int | None:
        """The first step from `start` to `stop` - 1 whose update the log doesn't hold, or None."""
        step = start
        for first, last in self.commit.updates:
            if first <= step < last:
                step = last
        return step if step < stop else None

    def check_updates(self, start: int, stop: int) -> None:
        """Makes sure that the updates of the steps from `start` to `stop` - 1 are there.

        Raises:
            InsufficientLogError: the log doesn't hold one of them.
        """
        missing = self.missing_update(start, stop)
        if missing is not None:
            raise InsufficientLogError(
                f"the log doesn't hold the update: {self.location}: step {missing}",
                hint="record with --updates lossless; `lmcleaner inspect` shows which steps' updates the log holds",
            )

    def parameters_digest(self, step: int) -> bytes:
        """BLAKE3 of the run's θ[step], 32 bytes."""
        if step == 0:
            return bytes.fromhex(self.commit.checkpoints[0].blake3["parameters"])
        digest: NDArray[np.uint8] = self.table("steps/parameters_blake3")[step - 1]
        return digest.tobytes()

    def reconstruction_digest(self, step: int) -> bytes:
        """BLAKE3 of θ[step] as the updates have it, 32 bytes."""
        digests = self.table("steps/reconstruction_blake3")
        return digests[step - 1].tobytes() if step and len(digests) else self.parameters_digest(step)

    def bytes_on_disk(self) -> dict[str, int]:
        """Bytes of the log's files by part: samples, bookkeeping, updates, gradients, checkpoints, curvature."""
        parts = dict.fromkeys(PARTS, 0)
        for key, size in self.store.list():
            parts[self.tree.part(key)] += size
        return parts

    def _attributes(self, group: str) -> dict[str, Any]:
        try:
            return read_attributes(self.store, group)
        except FileNotFoundError as error:
            if group:
                raise damaged(
                    self.location, metadata_key(group), "it is missing: the run was killed before its first commit"
                ) from error
            raise NotFoundError(
                f"no training log: {self.location}",
                hint="give the log's folder, or set LMCLEANER_LOG; `record` makes one",
            ) from error

    def _check_step(self, step: int, last: int) -> None:
        if not isinstance(step, int | np.integer):
            raise UsageError(f"a step: expected a whole number, found {step!r}")
        if not 0 <= step <= last:
            raise NotFoundError(
                f"no such step: {self.location}: expected 0 to {last}, found {step}",
                hint="`lmcleaner inspect` shows how many steps the log holds",
            )

    def _check_checkpoint(self, step: int) -> None:
        if step not in self.commit.checkpoints:
            raise NotFoundError(f"no checkpoint of step {step}: {self.location}: found {list(self.checkpoint_steps)}")

    def _sound(self, array: str, step: int | None, read: Callable[..., Value], *arguments: Any) -> Value:
        """What `read` gives; its errors with the place."""
        try:
            return read(*arguments)
        except (ChunkError, FileNotFoundError) as error:
            raise damaged(self.location, array, f"can't be read ({error})", step=step) from error
