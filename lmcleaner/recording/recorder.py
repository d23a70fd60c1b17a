"""Records any training loop through public torch hooks: model forward, before and after each optimizer step."""

import os
import time
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lmcleaner.formats.bits import BIT_DTYPES, Bits
from lmcleaner.formats.commit import SelfCheck
from lmcleaner.formats.errors import ExistsError, MismatchError, UsageError
from lmcleaner.formats.places import check_place
from lmcleaner.formats.steps import MicrobatchRecord, StepRecord
from lmcleaner.formats.store import Store, open_store
from lmcleaner.formats.wording import counted
from lmcleaner.formats.writer import LogWriter
from lmcleaner.recording.background import BackgroundWriter
from lmcleaner.recording.checks import check_hyperparameters, given_gradients, gradient_norm, learning_rates
from lmcleaner.recording.describe import RunDescription, describe_run, take_checkpoint, trainable_parameters
from lmcleaner.recording.losses import OWN, Losses, SeenLoss
from lmcleaner.recording.microbatches import arguments_of, microbatch_record
from lmcleaner.recording.packing import check_apart
from lmcleaner.recording.processes import NoWriter, Processes, check_whole
from lmcleaner.recording.repeated import RepeatedSteps
from lmcleaner.recording.scaling import Scaling, leaves_out
from lmcleaner.recording.self_check import record_self_check
from lmcleaner.recording.unclipped import UnclippedNorm
from lmcleaner.recording.unfinished import open_unfinished
from lmcleaner.recording.untouched import Untouched
from lmcleaner.training.numerics import autocast_dtype, rng_state
from lmcleaner.training.vectors import bits_of, host_vector

_MAX_COMPRESSORS = 4  # more threads wait for the one that codes


class Recorder:
    """Watches a training loop and writes its log; a context manager around the loop.

    The loop stays as it is: `model(**batch).loss.backward()` as often as it accumulates, `optimizer.step()`. Leaving
    the block normally finishes the log with a last checkpoint; leaving it by an exception keeps what was complete.

    A run that was interrupted can go on in the same log. The model may be at any step that the log holds: the steps up
    to the log's end are compared with what it says of them, those behind it are recorded.

    Attributes:
        num_steps: steps that the run has taken, with those before it was interrupted.
        self_check: whether the log can be replayed; None until the run has ended, and where that wasn't tried.
        module: the model.
        optimizer: whose steps it records.
        last_lr: learning rates of the parameter groups in the last step; empty before the first.
    """

    def __init__(
        self,
        log: Store | Path | str,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        description: RunDescription,
        *,
        overwrite: bool = False,
        resume: bool = False,
        step: int | None = None,
        self_check: bool = True,
        processes: Processes | None = None,
        scaling: Scaling | None = None,
    ) -> None:
        """Checks that the run can be recorded.

        Args:
            log: folder, URL or store of the log; of a new one, unless the run resumes.
            module: the model, on its device, with θ[0] or, to resume, with θ[step]; `DistributedDataParallel` around it
                where several processes train, each with a recorder of its own for the same log.
            optimizer: one of torch's over its trainable parameters, but LBFGS and SparseAdam.
            description: what the hooks can't see.
            overwrite: removes a log that lies there.
            resume: goes on with an interrupted log.
            step: the step that a resumed run is at; None finds it by the model's parameters.
            self_check: takes up to six steps again when the run has ended, with the base model from where it lies.
            processes: those that train together; None finds out by the module.
            scaling: what was seen of a gradient scaler in passes before the hooks were attached.

        Raises:
            ExistsError: a log lies there, or there is nothing to resume.
            NotFoundError: there is no log to resume.
            InsufficientLogError: the log to resume was changed since it was recorded.
            UsageError: the model or the optimizer can't be recorded, or the run was described otherwise.
            MismatchError: the run isn't the one to resume.
        """
        self._store, self._overwrite, self._self_check = open_store(log, writable=True), overwrite, self_check
        check_whole(module)
        wrappers = [module]
        module = module.module if isinstance(module, DistributedDataParallel) else module
        self._processes = processes or Processes(module, wrappers)
        self.module, self.optimizer, self._description = module, optimizer, description
        described, world_size = describe_run(module, optimizer, description), self._processes.world_size
        self._manifest = replace(described, world_size=world_size)
        named = trainable_parameters(module)
        self._parameters, self._untouched = list(named.values()), Untouched(named, optimizer)
        is_first = self._processes.is_first
        self._past = RepeatedSteps(open_unfinished(self._store), self._manifest) if resume and is_first else None
        if is_first and not resume:
            check_place(self._store, overwrite)
        self.num_steps = self._resumed_step(step) if resume else 0
        self.self_check: SelfCheck | None = None
        self.last_lr: tuple[float, ...] = ()
        self._idle_cores = _idle_cores(self._parameters[0].device, world_size)
        self._last_checkpoint = self._past.checkpoints[-1] if self._past else 0
        self._gradient: Bits | None = None
        is_clipped = self._manifest.max_grad_norm is not None and self._manifest.gradients != "none"
        # What DistributedDataParallel puts in place no hook sees, and before that each process only its own part.
        self._unclipped = UnclippedNorm(self._parameters) if is_clipped and not self._processes.is_wrapped else None
        self._scaling = scaling or Scaling()
        self._losses = Losses(self._manifest.model.loss, self._scaling)
        self._handles: list[Any] = []
        self._pending: dict[str, Any] | None = None
        self._rng_before = b""
        self._autocast: str | None = None
        self._microbatches: list[MicrobatchRecord] = []
        self._averaged: list[bool] = []
        self._step: StepRecord | None = None

    def __enter__(self) -> Self:
        """Takes the log's lock, writes the state that a new run starts from, and attaches the hooks.

        Returns:
            The recorder.

        Raises:
            ExistsError: somebody writes the log.
            ResourceError: the place can't be written.
        """
        fresh = partial(host_vector, device=self._parameters[0].device)
        dtype = BIT_DTYPES[self._manifest.model.dtype]
        start = bits_of(self._parameters, fresh(sum(part.numel() for part in self._parameters), dtype))
        is_first = self._processes.is_first
        self._writer = BackgroundWriter(self._open_log(start), start, fresh) if is_first else NoWriter(start)
        self._handles = [
            self.module.register_forward_pre_hook(self._before_forward, with_kwargs=True),
            self.module.register_forward_hook(self._after_forward, with_kwargs=True),
            *(child.register_forward_pre_hook(self._inside_forward) for child in self.module.children()),
            self.optimizer.register_step_pre_hook(self._before_step),
            self.optimizer.register_step_post_hook(self._after_step),
            *(self._unclipped.attach() if self._unclipped is not None else ()),
        ]
        self._losses.attach()
        self._scaling.attach(self._begin_next, self.optimizer)
        self._last_time = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Detaches the hooks and closes the log; finished only if the loop ended by itself."""
        for handle in self._handles:
            handle.remove()
        self._losses.detach()
        self._scaling.detach()
        finished = False
        try:
            if error is None:
                finished = self._end()
        finally:
            self._close(finished, error)
        if finished and self._self_check and self.num_steps and self._processes.is_first:
            self._check_log()

    def wait(self) -> None:
        """Waits until the steps so far are written; those since the last commit may still be lost with the process.

        Raises:
            LmcleanerError: what went wrong while they were written.
        """
        self._writer.wait()

    def note(self, arguments: dict[str, Any], loss: float, rng: bytes, averaged: bool = True) -> None:
        """Takes a training forward pass into the current step, as the hooks do; for passes before they were attached.

        Args:
            arguments: of the pass, by name.
            loss: what it returned.
            rng: state of the generators before it; empty where it drew no random numbers.
            averaged: whether its backward pass ends by averaging the gradients over several processes.

        Raises:
            UsageError: an argument that replay couldn't reproduce.
        """
        known, padding = dict(self._description.forward_arguments), self._description.padding_token
        self._microbatches.append(microbatch_record(arguments, known, padding, loss, rng))
        self._averaged.append(averaged)

    def begin(self, moment: float, unclipped_norm: float | None = None) -> None:
        """Says of the current step what was seen of it before the hooks were attached.

        Args:
            moment: when it began, by `time.perf_counter`.
            unclipped_norm: the gradient's norm before the loop clipped it, if it did.
        """
        self._last_time = moment
        if self._unclipped is not None and unclipped_norm is not None:
            self._unclipped.tell(unclipped_norm)

    def _resumed_step(self, step: int | None) -> int:
        """The step that the run is at, which the first process tells the others."""
        if step is None and self._past is not None:
            step = self._past.find(bits_of(self._parameters), self.optimizer)
        found = self._processes.first_said(step)
        assert found is not None
        return found

    def _open_log(self, start: Bits) -> LogWriter:
        threads = min(self._idle_cores or torch.get_num_threads(), _MAX_COMPRESSORS)
        if self._past is None:
            checkpoint = take_checkpoint(0, self._parameters, self.optimizer, start)
            return LogWriter.create(self._store, self._manifest, checkpoint, overwrite=self._overwrite, threads=threads)
        writer = LogWriter.resume(self._store, threads=threads)
        if writer.num_steps != self._past.num_steps:
            writer.close()
            raise ExistsError(f"another process has gone on with the log: {self._store.location}", hint="try again")
        return writer

    def _check_log(self) -> None:
        """Lets the log say whether it can be replayed; the training is over and must not fail for it."""
        try:
            self.self_check = record_self_check(self._store, self._description.model_source)
        except (MemoryError, torch.OutOfMemoryError) as error:
            warnings.warn(f"the log doesn't know whether it can be replayed: out of memory: {error}", stacklevel=3)

    def _end(self) -> bool:
        """Writes the last checkpoint; False where the run's last state isn't there any more."""
        if self._past is not None and self.num_steps < self._past.num_steps:
            raise MismatchError(
                f"the loop ended too early: {self._store.location}: expected at least the log's "
                f"{counted(self._past.num_steps, 'step')}, found {self.num_steps}",
                hint="resume with the same number of steps; the log is as it was",
            )
        changed = self._untouched.changed()
        if changed is not None:
            warnings.warn(
                f"the log ends like that of an interrupted run, without a last checkpoint: {changed} was changed after "
                f"the last step, {self.num_steps - 1}, whose model is the one that the log is about",
                stacklevel=3,
            )
            return False
        self._write_checkpoint()
        return True

    def _close(self, finished: bool, error: BaseException | None) -> None:
        """Closes the log; an error that is on its way already goes first."""
        try:
            self._writer.close(finished=finished)
        except Exception:
            if error is None:
                raise

    def _before_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not (module.training and torch.is_grad_enabled()):
            return
        self._pending = arguments_of(module, args, kwargs)
        self._rng_before = rng_state(self._parameters[0].device)
        self._autocast = autocast_dtype(self._parameters[0].device)

    def _inside_forward(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Accelerate wraps the model's `forward`, so that autocast begins behind the model's own hooks."""
        self._autocast = autocast_dtype(self._parameters[0].device)

    def _after_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if self._pending is None:
            return
        if self._autocast != self._manifest.numerics.autocast:
            raise UsageError(
                f"a forward pass under another autocast than the run was said to have: step {self.num_steps}: expected "
                f"{self._manifest.numerics.autocast}, found {self._autocast}",
                hint='RunDescription(autocast="bfloat16") says that all training passes run under it',
            )
        drew = rng_state(self._parameters[0].device) != self._rng_before
        rng, averaged = self._rng_before if drew else b"", self._processes.averages
        arguments, self._pending = self._pending, None
        check_apart(arguments, output)
        self._losses.returned(arguments, output, lambda seen: self._see(seen, rng, averaged))
        if self._manifest.model.loss is None:
            self._check_losses()

    def _check_losses(self) -> None:
        if self._losses.is_waiting:
            raise UsageError("the model returned no loss: expected labels among its arguments")

    def _see(self, seen: SeenLoss, rng: bytes, averaged: bool) -> None:
        if self._manifest.model.loss not in {OWN, seen.entry}:
            raise UsageError(
                f"another loss than the run was said to have: step {self.num_steps}: expected "
                f"{self._manifest.model.loss or 'what the model returns'}, found {seen.entry or 'that'}",
                hint="RunDescription(loss=...) names the loss of all training passes",
            )
        self.note(seen.arguments, seen.loss.item(), rng, averaged)

    def _before_step(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._check_losses()
        if leaves_out(optimizer):
            return
        if not self._microbatches:
            raise UsageError(
                f"step {self.num_steps}: an optimizer step without a forward pass of the model in train mode",
                hint="call model.train() before the loop; passes in eval mode or under no_grad aren't recorded",
            )
        self._untouched.check(self.num_steps)
        check_hyperparameters(optimizer, self._manifest, self.num_steps)
        limit = self._manifest.max_grad_norm
        scale, divisor = self._scaling.take(optimizer, self.num_steps, is_clipped=limit is not None)
        norm = gradient_norm(self._parameters, limit, self.num_steps, divisor)
        self._step = StepRecord(
            microbatches=self._processes.gather(self._microbatches, self._averaged, self.num_steps),
            lr=learning_rates(optimizer, self.num_steps),
            gradient_norm=norm,
            seconds=0.0,
            unclipped_norm=self._unclipped.take(norm, limit, self.num_steps, scale)
            if self._unclipped and limit
            else None,
            loss_scale=scale,
        )
        if self._manifest.gradients != "none":
            self._gradient = bits_of(given_gradients(self._parameters, divisor), self._writer.take())

    def _after_step(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._untouched.note()
        if self._step is None:  # a fused optimizer that left it out
            return
        step = replace(self._step, seconds=time.perf_counter() - self._last_time)
        if self._past is not None and self.num_steps < self._past.num_steps:
            self._past.check(self.num_steps, step, bits_of(self._parameters))
        else:
            self._writer.append(step, bits_of(self._parameters, self._writer.take()), self._gradient)
        self._step, self._gradient, self.last_lr = None, None, step.lr
        self.num_steps += 1
        if self.num_steps % self._manifest.checkpoint_every == 0:
            self._write_checkpoint()
        if not self._idle_cores:
            self._writer.wait()
        self._begin_next()

    def _begin_next(self) -> None:
        """The next step begins, whether this one was taken or not; recording itself is not part of it."""
        self._microbatches, self._averaged = [], []
        self._last_time = time.perf_counter()

    def _write_checkpoint(self) -> None:
        """Writes the state before the next step, unless the log holds it or is further already."""
        if self.num_steps == self._last_checkpoint or (self._past and self.num_steps < self._past.num_steps):
            return
        self._writer.wait()
        bits = bits_of(self._parameters, self._writer.take())
        self._writer.write_checkpoint(take_checkpoint(self.num_steps, self._parameters, self.optimizer, bits))
        self._last_checkpoint = self.num_steps


def _idle_cores(device: torch.device, world_size: int) -> int:
    """Cores that the training leaves to the writer.

    Where it leaves none, the training's threads, which wait for each other, would each wait for the writer's too: the
    same work costs half as much if all cores do it between two steps.
    """
    busy = torch.get_num_threads() * world_size if device.type == "cpu" else 0
    return max(0, len(os.sched_getaffinity(0)) - busy)
