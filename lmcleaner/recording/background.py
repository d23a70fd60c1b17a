"""Writes the log beside the training: encoding, compressing and flushing leave the training thread to train."""

import atexit
import queue
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from lmcleaner.formats.bits import Bits
from lmcleaner.formats.generation import FLUSH_STEPS
from lmcleaner.formats.steps import Checkpoint, StepRecord
from lmcleaner.formats.writer import LogWriter

# Vectors of a small model may wait in line up to this size; those of a large one wait until the step before is written.
QUEUE_BYTES = 64 << 20
# What stands in line is lost with the process, as are the steps since the last commit; so it is no more than those.
QUEUE_JOBS = FLUSH_STEPS

Job = Callable[[], None]


class BackgroundWriter:
    """Does a log writer's work in a thread of its own, in order, until it is closed.

    What goes wrong there is raised by the next call here, and from then on nothing more is written.

    Vectors go round: fresh memory costs a page fault every 4 KiB, which takes several times as long as the copy.
    """

    def __init__(self, writer: LogWriter, spare: Bits, fresh: Callable[[int, np.dtype[Any]], Bits] = np.empty) -> None:
        """Starts the thread.

        Args:
            writer: is the thread's own from now on, which also closes it.
            spare: a vector as long as the parameters, for `take` to give.
            fresh: makes another one, from its length and dtype.
        """
        self._writer, self._spare, self._fresh = writer, [spare], fresh
        self._num_elements, self._dtype = len(spare), spare.dtype
        self._jobs: queue.Queue[tuple[Job, list[Bits]] | None] = queue.Queue()
        self._changed = threading.Condition()
        self._waiting_jobs = self._waiting_vectors = 0
        self._has_ended = False
        self._error: BaseException | None = None
        # Python waits for other threads before it calls what `atexit` holds, and this one doesn't end by itself.
        self._thread = threading.Thread(target=self._run, name="lmcleaner-writer", daemon=True)
        self._thread.start()
        atexit.register(self._end)

    def take(self) -> Bits:
        """Waits until another vector may stand in line.

        Returns:
            The vector, to be filled and to be given to `append` or `write_checkpoint`.

        Raises:
            LmcleanerError: what went wrong in the thread.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting_jobs or self._has_room())
            self._raise()
            return self._spare.pop() if self._spare else self._fresh(self._num_elements, self._dtype)

    def wait(self) -> None:
        """Waits until nothing stands in line.

        Raises:
            LmcleanerError: what went wrong in the thread.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting_jobs)
        self._raise()

    def append(self, step: StepRecord, parameters: Bits, gradient: Bits | None = None) -> None:
        """Records one step; see `LogWriter.append`. The vectors may not be used after it."""
        vectors = [parameters] if gradient is None else [parameters, gradient]
        self._submit(lambda: self._writer.append(step, parameters, gradient), vectors)

    def write_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Writes the state before the next step; see `LogWriter.write_checkpoint`. Its θ may not be used after it."""
        self._submit(lambda: self._writer.write_checkpoint(checkpoint), [checkpoint.parameters])

    def close(self, *, finished: bool) -> None:
        """Waits until all that is in line is written and committed and the log's lock given back.

        Whoever is interrupted here leaves the thread at work, which does all that before the process ends.

        Args:
            finished: whether the run came to its own end.

        Raises:
            LmcleanerError: what went wrong in the thread.
        """
        with self._changed:
            self._waiting_jobs += 1
            self._jobs.put((lambda: self._writer.commit(finished=finished), []))
            self._jobs.put(None)
            self._changed.wait_for(lambda: self._has_ended)  # join, interrupted, takes a thread at work for ended
        self._thread.join()
        atexit.unregister(self._end)
        self._raise()

    def _end(self) -> None:
        """The process ends, and nobody has closed the log: what is in line is written and committed."""
        self._jobs.put((lambda: self._writer.commit(finished=False), []))
        self._jobs.put(None)
        self._thread.join()

    def _has_room(self) -> bool:
        vector_bytes = self._num_elements * self._dtype.itemsize
        return self._waiting_jobs < QUEUE_JOBS and (self._waiting_vectors + 1) * vector_bytes <= QUEUE_BYTES

    def _submit(self, job: Job, vectors: list[Bits]) -> None:
        self._raise()
        if self._has_ended:
            raise ValueError("the log was closed")
        with self._changed:
            self._waiting_jobs += 1
            self._waiting_vectors += len(vectors)
            self._jobs.put((job, vectors))

    def _run(self) -> None:
        for job, vectors in iter(self._jobs.get, None):
            if self._error is None:
                self._try(job)
            del job  # and the optimizer's state, if it holds one
            with self._changed:
                self._waiting_jobs -= 1
                self._waiting_vectors -= len(vectors)
                self._spare += vectors
                self._changed.notify_all()
        self._try(self._writer.close)
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()

    def _try(self, job: Job) -> None:
        try:
            job()
        except BaseException as error:
            self._error = self._error or error

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error
