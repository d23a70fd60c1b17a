"""θ of a log, moving forward from a checkpoint through the updates."""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from lmcleaner.formats.bits import BIT_DTYPES, Bits
from lmcleaner.formats.canonical import little_endian_bytes
from lmcleaner.formats.chunks import ChunkError
from lmcleaner.formats.codecs import CODECS, SPAN
from lmcleaner.formats.layout import UPDATES, checkpoint_name, correction_name, damaged, num_spans
from lmcleaner.formats.parts import Parts
from lmcleaner.formats.prefetch import ahead
from lmcleaner.formats.stacks import StackReader
from lmcleaner.formats.vectors import VectorReader

if TYPE_CHECKING:
    from lmcleaner.formats.reader import TrainingLog

AHEAD = 4  # spans that are read and decompressed while others are applied; 4 MiB of float32

Stored = tuple[NDArray[Any], ...]


def is_read_ahead(spans: int) -> bool:
    """Whether vectors of so many spans are read while the step before theirs is at work: short ones alone.

    Of longer ones it would save little of their time, and cost memory beside a gradient.
    """
    return spans <= AHEAD


class Reconstruction:
    """θ[step] as the log's updates have it: the run's bits with lossless updates, within the codec's bound otherwise.

    Attributes:
        step: which step's parameters it holds.
        parts: the vector, or the chosen spans of it one after the other.
    """

    def __init__(
        self,
        log: "TrainingLog",
        step: int,
        *,
        spans: Sequence[int] | None = None,
        parts: Sequence[Bits] | None = None,
        horizon: int = 0,
    ) -> None:
        """Begins at the checkpoint of a step.

        Args:
            log: the training log.
            step: of the checkpoint.
            spans: which spans of the vector, ascending; None is all of them.
            parts: consecutive arrays that hold θ[step] from that checkpoint already, and become the reconstruction's
                memory; None takes memory and reads it.
            horizon: up to which step a thread reads updates ahead between two calls of `advance_to`, as far as the log
                holds them, see `is_read_ahead`; it is at work until the horizon is reached or `close` is called.

        Raises:
            DamagedError: the checkpoint can't be read, or a whole vector doesn't have the committed digest.
        """
        self._log, self.step = log, step
        self._is_whole = spans is None
        self._spans = range(num_spans(log.manifest.num_elements)) if spans is None else spans
        self._horizon = horizon if is_read_ahead(len(self._spans)) else 0
        self._dtype = log.manifest.model.dtype
        self._updates = StackReader(log.store, log.tree, UPDATES) if UPDATES in log.tree.stacks else None
        self._corrections = frozenset(log.commit.corrections)
        self._stored_ahead: Generator[Stored, None, None] | None = None
        self._stored_until = step
        self.parts = Parts(parts if parts is not None else [self._read_checkpoint()])
        self._edges = [*range(0, len(self.parts), SPAN), len(self.parts)]  # only the vector's last span is shorter

    @property
    def bits(self) -> Bits:
        """The vector, where it lies in one array."""
        (array,) = self.parts.arrays
        return array

    def advance_to(self, step: int) -> None:
        """Applies the updates up to θ[step].

        Args:
            step: not before the one it is at.

        Raises:
            InsufficientLogError: the log doesn't hold the updates.
            DamagedError: an update can't be read or leads to other parameters than the run's.
        """
        self._log.check_updates(self.step, step)
        try:
            while self.step < step:
                self._apply_update(self._opened(step))
        except BaseException:
            self.close()
            raise
        if self.step == self._stored_until:
            self.close()

    def close(self) -> None:
        """Ends the reading ahead, if there is any; it begins anew where it is needed."""
        if self._stored_ahead is not None:
            self._stored_ahead.close()
            self._stored_ahead = None

    def _opened(self, step: int) -> Iterator[Stored]:
        """The updates from the current step on, as far as a call and the horizon want them and the log has them."""
        if self._stored_ahead is None or self._stored_until < step:
            self.close()
            horizon = self._log.missing_update(self.step, self._horizon)
            self._stored_until = max(step, self._horizon if horizon is None else horizon)
            self._stored_ahead = ahead(self._stored(range(self.step, self._stored_until)), AHEAD)
        return self._stored_ahead

    def steps_to(self, stop: int) -> Iterator[int]:
        """Goes through the steps one by one, reading ahead.

        Args:
            stop: one after the last step.

        Yields:
            Each step from the current one to `stop` - 1, while `parts` hold its parameters.

        Raises:
            InsufficientLogError: the log doesn't hold the updates.
            DamagedError: an update can't be read or leads to other parameters than the run's.
        """
        self._log.check_updates(self.step, stop - 1)
        stored = ahead(self._stored(range(self.step, stop - 1)), AHEAD)
        try:
            yield self.step
            while self.step < stop - 1:
                self._apply_update(stored)
                yield self.step
        finally:
            stored.close()

    def _apply_update(self, stored: Iterator[Stored]) -> None:
        assert self._updates is not None
        self.step += 1
        found = self._apply(stored, self._updates.apply)
        self._check(found, self._log.reconstruction_digest(self.step), UPDATES, self.step - 1)
        if self.step in self._corrections:
            found = self._apply(self._stored_correction(), self._correct)
            self._check(found, self._log.parameters_digest(self.step), correction_name(self.step), self.step)

    def _apply(self, stored: Iterator[Stored], apply: Callable[[Bits, Stored], None]) -> bytes:
        """Changes span after span; the result's digest."""
        digest = blake3()
        for start, stop in pairwise(self._edges):
            with self.parts.span(start, stop) as before:
                apply(before, next(stored))
                digest.update(little_endian_bytes(before))
        return digest.digest()

    def _correct(self, before: Bits, stored: Stored) -> None:
        CODECS["lossless"].apply(before, stored, self._dtype)

    def _check(self, found: bytes, expected: bytes, array: str, step: int) -> None:
        if self._is_whole and found != expected:
            raise damaged(self._log.location, array, "it doesn't lead to the parameters of the run", step=step)

    def _stored(self, steps: Iterable[int]) -> Iterator[Stored]:
        """What the updates hold of each span; runs in another thread.

        Yields:
            One array for each of the codec's columns.
        """
        assert self._updates is not None
        for step in steps:
            with self._naming(UPDATES, step):
                yield from self._updates.stored(step, self._spans)

    def _stored_correction(self) -> Iterator[Stored]:
        reader = VectorReader(self._log.store, self._log.tree.correction(self.step))
        with self._naming(correction_name(self.step), self.step):
            for values in reader.read(0, self._spans):
                yield (values,)

    @contextmanager
    def _naming(self, array: str, step: int) -> Iterator[None]:
        """Gives errors their place."""
        try:
            yield
        except (ChunkError, FileNotFoundError) as error:
            raise damaged(self._log.location, array, f"can't be read ({error})", step=step) from error

    def _read_checkpoint(self) -> Bits:
        """θ from the checkpoint: whole and under its digest, or the chosen spans of it."""
        if self._is_whole:
            return self._log.checkpoint_parameters(self.step)
        commit = self._log.commit.checkpoints[self.step]
        grid = self._log.tree.vector(self.step, "parameters", commit)
        reader = VectorReader(self._log.store, grid)
        with self._naming(f"{checkpoint_name(self.step)}/parameters", self.step):
            reader.check_room(0, self._spans)
            values = np.empty(sum(map(grid.size, self._spans)), BIT_DTYPES[self._dtype])
            for number, span in enumerate(reader.read(0, self._spans)):
                values[number * SPAN : number * SPAN + len(span)] = span
        return values
