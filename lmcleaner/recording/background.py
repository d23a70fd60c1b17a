"""Writes the log beside the training: encoding, compressing and flushing leave the training thread to train."""

import queue
import threading
from collections.abc import Callable

from lmcleaner.formats.bits import Bits
from lmcleaner.formats.generation import FLUSH_STEPS
from lmcleaner.formats.steps import Checkpoint, StepRecord
from lmcleaner.formats.writer import LogWriter

# Steps of a small model may wait in line up to this size; of a large one, a step waits until the one before is written.
QUEUE_BYTES = 64 << 20
# What stands in line is lost with the process, as are the steps since the last commit; so it is no more than those.
QUEUE_JOBS = FLUSH_STEPS

Job = Callable[[], None]


class BackgroundWriter:
    """Does a log writer's work in a thread of its own, in order, until it is closed.

    What goes wrong there is raised by the next call here, and from then on nothing more is written.
    """

    def __init__(self, writer: LogWriter) -> None:
        """Starts the thread.

        Args:
            writer: is the thread's own from now on, which also closes it.
        """
        self._writer = writer
        self._jobs: queue.Queue[tuple[Job, int] | None] = queue.Queue()
        self._changed = threading.Condition()
        self._waiting_jobs = self._waiting_bytes = 0
        self._has_ended = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="lmcleaner-writer")
        self._thread.start()

    def make_room(self, num_bytes: int) -> None:
        """Waits until so much more may stand in line; to be called before a copy is made.

        Args:
            num_bytes: of the copy.

        Raises:
            LmcleanerError: what went wrong in the thread.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._has_room(num_bytes))
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

    def close(self, *, finished: bool) -> None:
        """Waits until all that is in line is written and committed and the log's lock given back.

        Whoever is interrupted here leaves the thread at work, which does all that and ends by itself.

        Args:
            finished: whether the run came to its own end.

        Raises:
            LmcleanerError: what went wrong in the thread.
        """
        with self._changed:
            self._waiting_jobs += 1
            self._jobs.put((lambda: self._writer.commit(finished=finished), 0))
            self._jobs.put(None)
            self._changed.wait_for(lambda: self._has_ended)  # join, interrupted, takes a thread at work for ended
        self._thread.join()
        self._raise()

    def _has_room(self, num_bytes: int) -> bool:
        fits = self._waiting_jobs < QUEUE_JOBS and self._waiting_bytes + num_bytes <= QUEUE_BYTES
        return not self._waiting_jobs or fits

    def _submit(self, job: Job, num_bytes: int) -> None:
        self._raise()
        if self._has_ended:
            raise ValueError("the log was closed")
        with self._changed:
            self._waiting_jobs += 1
            self._waiting_bytes += num_bytes
            self._jobs.put((job, num_bytes))

    def _run(self) -> None:
        for job, num_bytes in iter(self._jobs.get, None):
            if self._error is None:
                self._try(job)
            del job  # and the vectors that it holds
            with self._changed:
                self._waiting_jobs -= 1
                self._waiting_bytes -= num_bytes
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
