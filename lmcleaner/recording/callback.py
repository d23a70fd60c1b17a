"""Records a training by Hugging Face `Trainer` or one of its subclasses, in one line."""

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from transformers import TrainerCallback

from lmcleaner.formats.errors import UsageError
from lmcleaner.recording.options import WatchOptions
from lmcleaner.recording.watch import Watch


class LMCleanerCallback(TrainerCallback):
    """Give it to a trainer: `Trainer(..., callbacks=[LMCleanerCallback("my-log")])`, or by `trainer.add_callback`.

    The log is finished when `train()` ends by itself. Where it ends by an exception, of which a trainer tells nobody,
    all complete steps are in it; `close`, or the next training that is recorded so, makes it an interrupted one.
    """

    _open: ClassVar[list["LMCleanerCallback"]] = []  # whose training has begun and not ended

    def __init__(self, log: Path | str, options: WatchOptions | None = None) -> None:
        """Records nothing yet.

        Args:
            log: folder or URL of the new log.
            options: what the trainer can't be asked for.
        """
        self._log, self._options = str(log), options or WatchOptions()
        self._watch: Watch | None = None
        self._state: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Starts to watch, with what the trainer knows of its run; another one that is still open has failed.

        Raises:
            UsageError: another callback records this training.
        """
        for other in [*self._open]:
            if other._state is state:
                raise UsageError(f"one training can't write two logs: found {other._log} and {self._log}")
            other.close()
        tokenizer = others.get("processing_class")
        padding = getattr(tokenizer, "pad_token_id", None)
        known = replace(
            self._options,
            padding_token=padding if self._options.padding_token is None else self._options.padding_token,
            planned_steps=state.max_steps if self._options.planned_steps is None else self._options.planned_steps,
        )
        self._watch, self._state = Watch(self._log, known).start(), state
        self._open.append(self)

    def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Finishes the log."""
        self._finish(None)

    def close(self, error: BaseException | None = None) -> None:
        """Closes the log of a training that ended by an exception.

        Args:
            error: the exception.
        """
        self._finish(error or KeyboardInterrupt())

    def _finish(self, error: BaseException | None) -> None:
        if self._watch is not None:
            watch, self._watch, self._state = self._watch, None, None
            self._open.remove(self)
            watch.finish(error)
