"""The classic logger of LMCleaner, which is told of every step after `optimizer.step()`."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

from torch import nn

from lmcleaner.formats.errors import UsageError
from lmcleaner.recording.options import WatchOptions
from lmcleaner.recording.scaling import Scaling
from lmcleaner.recording.watch import Watch

Mode = Literal["batch", "sample"]

# The learning rate that a loop states may have gone through float32.
_RATE_TOLERANCE = 1e-6


class TrainingLogger:
    """Sees the training from where it is made, through torch's global hooks; make it before the first forward pass.

    The log holds samples, batches and updates whatever the mode, which is what the run's owner means to forget. Samples
    are found by their content, so that no number of a batch or a row need be kept for a request.
    """

    def __init__(
        self,
        log_dir: Path | str,
        max_steps: int | None = None,
        mode: Mode = "batch",
        save_interval: int = 100,
        options: WatchOptions | None = None,
    ) -> None:
        """Starts to watch.

        Args:
            log_dir: folder or URL of the new log.
            max_steps: steps that the run means to take, if known.
            mode: "batch" or "sample".
            save_interval: steps between checkpoints.
            options: what else the training can't be asked for; its checkpoints and planned steps are those given here.

        Raises:
            UsageError: no such mode.
        """
        if mode not in get_args(Mode):
            raise UsageError(f"mode: expected one of {', '.join(get_args(Mode))}, found {mode!r}")
        given = options or WatchOptions()
        chosen = replace(
            given,
            checkpoint_every=save_interval,
            planned_steps=max_steps,
            training={**given.training, "mode": mode},
        )
        self._watch: Watch | None = Watch(str(log_dir), chosen).start()

    def register_step(self, step_id: int, batch_id: object, eta: float, model: nn.Module) -> None:
        """Holds what the loop says of the step that it has just taken against what was seen.

        Args:
            step_id: number of the step, from 0.
            batch_id: the loop's own name of the batch; samples are named by content, so nothing depends on it.
            eta: learning rate of the step, of any parameter group.
            model: the model.

        A step that a gradient scaler left out isn't recorded, and may be registered like the others or not at all.

        Raises:
            UsageError: another step, model or learning rate than the one that was recorded, or none was.
        """
        recorder = self._watch.recorder if self._watch is not None else None
        scaling = self._watch.scaling if self._watch is not None else Scaling()
        if scaling.was_left_out:
            return
        if recorder is None:
            raise UsageError(
                f"step {step_id}: no optimizer step was seen", hint="make the logger before the first forward pass"
            )
        rates = recorder.last_lr
        last = recorder.num_steps - 1
        if step_id not in {last, last + scaling.num_left_out}:
            raise UsageError(f"step_id: expected {last}, the last step taken, found {step_id}")
        if model is not recorder.module and recorder.module not in set(model.modules()):
            raise UsageError(
                f"step {step_id}: expected the recorded {type(recorder.module).__name__}, found another model"
            )
        if not any(math.isclose(eta, rate, rel_tol=_RATE_TOLERANCE, abs_tol=0.0) for rate in rates):
            raise UsageError(
                f"step {step_id}: eta: expected {' or '.join(map(str, rates))}, which the optimizer used, found {eta}",
                hint="read the learning rate before the schedule moves on",
            )

    def save_to_disk(self) -> None:
        """Finishes the log; the training is over.

        Raises:
            UsageError: no step was taken, or it was saved already.
        """
        if self._watch is None:
            raise UsageError("the log is finished already")
        watch, self._watch = self._watch, None
        watch.finish()
