"""Writes the log beside the training: encoding, compressing and flushing leave the training thread to train."""

import queue
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from lmcleaner.formats.bits import Bits
from lmcleaner.formats.steps import Checkpoint, StepRecord
from lmcleaner.formats.writer import LogWriter

# Steps of a small model may wait in line up to this size; of a large one, a step waits until the one before is written.
QUEUE_BYTES = 64 << 20

Job = Callable[[], None]


class BackgroundWriter:
    """Does a log writer's work in a thread of its own, in order.

    What goes wrong there is raised by the next call here, and from then on nothing more is written. A context manager:
    leaving it waits for what is in line, joins the thread and gives the log's lock back.
    """

    def __init__(self, writer: LogWriter) -> None:
        """Starts the thread.

        Args:
            writer: is used by the thread alone until this writer is closed.
        """
        self._writer = writer
        self._jobs: queue.Queue[tuple[Job, int] | None] = queue.Queue()
        self._changed = threading.Condition()
        self._waiting_bytes = 0
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="lmcleaner-writer")
        self._thread.start()

    def make_room(self, num_bytes: int) -> None:
        """Waits until so much more may stand in line; to be called before a copy is made.

        Raises:
            LmcleanerError: what went wrong in the thread.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting_bytes or self._waiting_bytes + num_bytes <= QUEUE_BYTES)
        self._raise()

    def append(self, step: StepRecord, parameters: Bits, gradient: Bits | None = None) -> None:
        """Records one step; see `LogWriter.append`."""
        size = parameters.nbytes + (0 if gradient is None else gradient.nbytes)
        self._submit(lambda: self._writer.append(step, parameters, gradient), size)

    def write_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Writes the state before the next step; see `LogWriter.write_checkpoint`."""
        state = checkpoint.optimizer.vectors.values()
        size = checkpoint.parameters.nbytes + sum(vector.nbytes for vector in state)
        self._submit(lambda: self._writer.write_checkpoint(checkpoint), size)

    def commit(self, *, finished: bool) -> None:
        """Makes visible what was recorded; see `LogWriter.commit`."""
        self._submit(lambda: self._writer.commit(finished=finished), 0)

    def close(self) -> None:
        """Waits for what is in line, and ends.

        Raises:
            LmcleanerError: what went wrong in the thread.
        """
        self._jobs.put(None)
        self._thread.join()
        self._writer.close()
        self._raise()

    def _submit(self, job: Job, num_bytes: int) -> None:
        self._raise()
        with self._changed:
            self._waiting_bytes += num_bytes
        self._jobs.put((job, num_bytes))

    def _run(self) -> None:
        while (entry := self._jobs.get()) is not None:
            job, num_bytes = entry
            del entry
            if self._error is None:
                try:
                    job()
                except BaseException as error:
                    self._error = error
            del job  # and the vectors that it holds
            with self._changed:
                self._waiting_bytes -= num_bytes
                self._changed.notify_all()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def __enter__(self) -> Self:
        """Does nothing: the thread runs since the writer was made."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends; an exception that is on its way already goes first."""
        try:
            self.close()
        except BaseException:
            if error is None:
                raise
