"""Records any training loop through public torch hooks: model forward, before and after each optimizer step."""

import math
import time
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from lmcleaner.formats.bits import Bits
from lmcleaner.formats.errors import DivergedError, UsageError
from lmcleaner.formats.steps import MicrobatchRecord, StepRecord
from lmcleaner.formats.writer import LogWriter
from lmcleaner.recording.background import QUEUE_BYTES, BackgroundWriter
from lmcleaner.recording.describe import RunDescription, describe_run, take_checkpoint, trainable_parameters
from lmcleaner.recording.microbatches import microbatch_record
from lmcleaner.training.numerics import rng_state
from lmcleaner.training.optimizers import hyperparameters
from lmcleaner.training.vectors import bits_of

# A clipped gradient may exceed the threshold by the rounding of its norm.
_CLIP_TOLERANCE = 1e-2


class Recorder:
    """Watches a training loop and writes its log; a context manager around the loop.

    The loop stays as it is: `model(**batch).loss.backward()` as often as it accumulates, `optimizer.step()`. Leaving
    the block normally finishes the log with a last checkpoint; leaving it by an exception keeps what was complete.

    Attributes:
        num_steps: steps recorded so far.
    """

    def __init__(
        self,
        log: Path | str,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        description: RunDescription,
        *,
        overwrite: bool = False,
    ) -> None:
        """Creates the log with the state that the run starts from.

        Args:
            log: folder or URL to create the log in.
            module: the model, on its device, with θ[0].
            optimizer: AdamW, Adam or SGD over its trainable parameters.
            description: what the hooks can't see.
            overwrite: removes a log that lies there.

        Raises:
            ExistsError: the folder exists.
            UsageError: the model or the optimizer can't be recorded.
        """
        self._module, self._optimizer, self._description = module, optimizer, description
        self._manifest = describe_run(module, optimizer, description)
        self._parameters = list(trainable_parameters(module).values())
        start = take_checkpoint(0, module, optimizer)
        self._writer = BackgroundWriter(LogWriter.create(log, self._manifest, start, overwrite=overwrite))
        self._vector_bytes = start.parameters.nbytes
        self._bits = start.parameters  # shared with the writer, so that a checkpoint needs no copy of its own
        self._gradient: Bits | None = None
        self.num_steps = 0
        self._handles: list[Any] = []
        self._pending: dict[str, Any] | None = None
        self._rng_before = b""
        self._microbatches: list[MicrobatchRecord] = []
        self._step: StepRecord | None = None
        self._last_time = time.perf_counter()

    def __enter__(self) -> Self:
        """Attaches the hooks."""
        self._handles = [
            self._module.register_forward_pre_hook(self._before_forward, with_kwargs=True),
            self._module.register_forward_hook(self._after_forward, with_kwargs=True),
            self._optimizer.register_step_pre_hook(self._before_step),
            self._optimizer.register_step_post_hook(self._after_step),
        ]
        self._last_time = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Detaches the hooks and closes the log; finished only if the loop ended by itself."""
        for handle in self._handles:
            handle.remove()
        with self._writer:
            if kind is None and self.num_steps % self._manifest.checkpoint_every:
                self._write_checkpoint()
            self._writer.commit(finished=kind is None)

    def _before_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not (module.training and torch.is_grad_enabled()):
            return
        if args:
            raise UsageError("a training forward pass must be given keyword arguments, found positional ones")
        self._pending = kwargs
        self._rng_before = rng_state(self._parameters[0].device)

    def _after_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if self._pending is None:
            return
        loss = output.get("loss") if isinstance(output, dict) else getattr(output, "loss", None)
        if not isinstance(loss, Tensor):
            raise UsageError("the model returned no loss: expected labels among its arguments")
        drew = rng_state(self._parameters[0].device) != self._rng_before
        self._microbatches.append(
            microbatch_record(
                self._pending,
                dict(self._description.forward_arguments),
                self._description.padding_token,
                loss.item(),
                self._rng_before if drew else b"",
            )
        )
        self._pending = None

    def _before_step(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._microbatches:
            raise UsageError(
                f"step {self.num_steps}: an optimizer step without a forward pass of the model in train mode",
                hint="call model.train() before the loop; passes in eval mode or under no_grad aren't recorded",
            )
        self._check_hyperparameters()
        self._step = StepRecord(
            microbatches=tuple(self._microbatches),
            lr=tuple(float(group["lr"]) for group in optimizer.param_groups),
            gradient_norm=self._gradient_norm(),
            seconds=0.0,
        )
        if self._manifest.gradients != "none":
            self._writer.make_room(self._vector_bytes)
            self._gradient = bits_of(p.grad if p.grad is not None else torch.zeros_like(p) for p in self._parameters)

    def _after_step(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        assert self._step is not None
        step = replace(self._step, seconds=time.perf_counter() - self._last_time)
        self._writer.make_room(self._vector_bytes)
        self._bits = bits_of(self._parameters)
        self._writer.append(step, self._bits, self._gradient)
        self._microbatches, self._step, self._gradient = [], None, None
        self.num_steps += 1
        if self.num_steps % self._manifest.checkpoint_every == 0:
            self._write_checkpoint()
        self._last_time = time.perf_counter()  # recording itself is not part of the step

    def _write_checkpoint(self) -> None:
        self._writer.make_room(QUEUE_BYTES)
        self._writer.write_checkpoint(take_checkpoint(self.num_steps, self._module, self._optimizer, self._bits))

    def _gradient_norm(self) -> float:
        """L2 norm of the gradient that the optimizer is about to use; checked to be finite and clipped as told."""
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients))
        if not math.isfinite(norm):
            raise DivergedError(
                f"the gradient is not finite: step {self.num_steps}: found norm {norm}",
                hint="lower the learning rate; the log is complete up to the step before",
            )
        limit = self._manifest.max_grad_norm
        if limit is not None and norm > limit * (1 + _CLIP_TOLERANCE):
            raise UsageError(
                f"the loop doesn't clip as it was said to: step {self.num_steps}: expected a norm of at most {limit}, "
                f"found {norm}"
            )
        return norm

    def _check_hyperparameters(self) -> None:
        """Replay takes all but the learning rate from the manifest, so nothing else may change."""
        for number, group in enumerate(self._optimizer.param_groups):
            now, then = hyperparameters(group), self._manifest.optimizer.groups[number]
            changed = [name for name in now if name != "lr" and now[name] != then.get(name)]
            if changed:
                raise UsageError(
                    f"the optimizer's {changed[0]} changed: group {number}, step {self.num_steps}: "
                    f"expected {then.get(changed[0])}, found {now[changed[0]]}",
                    hint="only the learning rate may follow a schedule",
                )
