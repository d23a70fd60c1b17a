"""Appends steps and checkpoints to the arrays of one generation of a log."""

import numpy as np

from lmcleaner.formats.bits import Bits
from lmcleaner.formats.canonical import array_digest
from lmcleaner.formats.codecs import CODECS
from lmcleaner.formats.commit import Change, CheckpointCommit, Commit
from lmcleaner.formats.layout import GRADIENTS, OPTIONAL_TABLES, UPDATES
from lmcleaner.formats.parallel import in_order
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.rows import RowWriter
from lmcleaner.formats.stacks import StackWriter, spans_of
from lmcleaner.formats.states import write_checkpoint
from lmcleaner.formats.steps import Checkpoint, StepRecord
from lmcleaner.formats.store import Store
from lmcleaner.formats.tables import TableWriter
from lmcleaner.formats.tree import Tree
from lmcleaner.formats.vectors import VectorWriter

FLUSH_STEPS = 16  # steps between two flushes; a kill loses at most these


class GenerationWriter:
    """Appends steps and checkpoints to one generation of a log; what it commits is a record, for the caller to write.

    Attributes:
        num_steps: steps appended so far.
    """

    def __init__(self, store: Store, tree: Tree, log: TrainingLog | None = None, *, threads: int = 1) -> None:
        """Begins an empty generation, or goes on behind the committed steps of a log.

        Args:
            store: where the log lies.
            tree: of the generation.
            log: the log to go on with, opened at the same generation.
            threads: that compress.
        """
        self._store, self._tree, self._threads = store, tree, threads
        self.num_steps = log.num_steps if log else 0
        self._tables = {
            name: TableWriter(store, tree.path(name), layout, log.table(name) if log else None)
            for name, layout in tree.tables.items()
        }
        self._rows = RowWriter(self._tables, log.sample_rows if log else {}, tree.manifest)
        self._stacks = {name: StackWriter(store, tree, name, self.num_steps, threads) for name in tree.stacks}
        self._checkpoints: dict[int, CheckpointCommit] = dict(log.commit.checkpoints) if log else {}
        self._corrections = list(log.commit.corrections) if log else []
        # What a reader reconstructs of the last step.
        self._bits: Bits | None = log.reconstruction(self.num_steps) if log and UPDATES in tree.stacks else None
        self._is_lossy = UPDATES in tree.stacks and CODECS[tree.codec(UPDATES)].is_lossy

    def append(self, step: StepRecord, parameters: Bits, gradient: Bits | None = None) -> None:
        """Adds one step.

        Args:
            step: what the step did.
            parameters: bit patterns of θ after the step, `[num_elements]`.
            gradient: bit patterns of the gradient that the optimizer was given, where the log holds gradients.
        """
        self._rows.append(step)
        self._append_parameters(parameters)
        if GRADIENTS in self._stacks:
            assert gradient is not None
            spans = ((np.zeros_like(gradient[span]), gradient[span]) for span in spans_of(len(gradient)))
            self._append_digest("steps/gradient_blake3", self._stacks[GRADIENTS].append(spans))
        self.num_steps += 1
        if self._is_lossy and self.num_steps % self._tree.manifest.checkpoint_every == 0:
            self._correct(parameters)

    def write_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Writes the state before step `checkpoint.step`, which must be the next one."""
        assert checkpoint.step == self.num_steps, (checkpoint.step, self.num_steps)
        if self._is_lossy and self.num_steps and self.num_steps not in self._corrections:
            self._correct(checkpoint.parameters)
        if UPDATES in self._stacks and self._bits is None:
            self._bits = checkpoint.parameters.copy()
        self._checkpoints[self.num_steps] = write_checkpoint(self._store, self._tree, checkpoint, self._threads)

    def flush(self, *, finished: bool, history: tuple[Change, ...]) -> Commit:
        """Writes what waits.

        Args:
            finished: whether the run came to its own end.
            history: what was done to the log since.

        Returns:
            The record of everything that is written now.
        """
        for stack in self._stacks.values():
            stack.flush()
        optional = {table.name for table in OPTIONAL_TABLES if not self._tables[table.name].num_rows}
        return Commit(
            generation=self._tree.generation,
            steps=self.num_steps,
            finished=finished,
            tables={name: table.flush() for name, table in self._tables.items() if name not in optional},
            checkpoints=dict(self._checkpoints),
            updates=((0, self.num_steps),) if UPDATES in self._stacks else (),
            gradients=((0, self.num_steps),) if GRADIENTS in self._stacks else (),
            corrections=tuple(self._corrections),
            history=history,
        )

    def _append_parameters(self, parameters: Bits) -> None:
        if UPDATES in self._stacks:
            bits = self._bits
            assert bits is not None
            digest = self._stacks[UPDATES].append((bits[span], parameters[span]) for span in spans_of(len(bits)))
            if not self._is_lossy:
                self._append_digest("steps/parameters_blake3", digest)
                return
            self._append_digest("steps/reconstruction_blake3", digest)
        self._append_digest("steps/parameters_blake3", array_digest(parameters))

    def _append_digest(self, table: str, digest: bytes) -> None:
        self._tables[table].append([np.frombuffer(digest, np.uint8)])

    def _correct(self, parameters: Bits) -> None:
        """Takes a lossy reconstruction to the run's own bits, and writes how."""
        bits = self._bits
        assert bits is not None
        exact, dtype = CODECS["lossless"], self._tree.manifest.model.dtype
        writer = VectorWriter(self._store, self._tree.correction(self.num_steps))
        updates = (exact.encode(bits[span], parameters[span], dtype)[0] for span in spans_of(len(bits)))
        in_order(writer.compress, updates, writer.add, self._threads)
        self._corrections.append(self.num_steps)
