"""Records a training that doesn't know of it: finds its model, its optimizer and its settings by its first step.

Until the first optimizer step torch's global hooks see every module and every optimizer of the process. The model is
the one that returned a loss and whose trainable parameters the optimizer holds. From that step on a `Recorder` watches
both.
"""

import inspect
import math
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parallel import DistributedDataParallel
from torch.optim.optimizer import register_optimizer_step_pre_hook

from lmcleaner.formats.errors import UsageError
from lmcleaner.formats.manifest import LossEntry
from lmcleaner.formats.wording import counted
from lmcleaner.recording.describe import RunDescription
from lmcleaner.recording.losses import OWN, Losses, SeenLoss, whole
from lmcleaner.recording.microbatches import HARMLESS, RECORDED, arguments_of
from lmcleaner.recording.options import WatchOptions
from lmcleaner.recording.packing import check_apart
from lmcleaner.recording.processes import Processes, averages, check_whole, wrapper_of
from lmcleaner.recording.recorder import Recorder
from lmcleaner.recording.scaling import Scaling, leaves_out
from lmcleaner.recording.unfinished import open_unfinished
from lmcleaner.training.adapters import is_adapted, without_adapter
from lmcleaner.training.numerics import autocast_dtype, rng_state


@dataclass(slots=True)
class _Pass:
    """A training forward pass before the first optimizer step.

    Attributes:
        module: whose it is.
        arguments: by keyword.
        entry: how the loss was computed; None where the model returned it.
        loss: scalar.
        rng: state of the generators before it.
        drew: whether it drew random numbers.
        averaged: whether its backward pass ends by averaging the gradients over several processes.
        slope: gradient of what the loop called `backward` on, by the loss; None until then.
    """

    module: nn.Module
    arguments: dict[str, Any]
    entry: LossEntry | None
    loss: Tensor
    rng: bytes
    drew: bool
    averaged: bool
    slope: float | None = None


class Watch:
    """Around a training, as a context manager or by `start` and `finish`; a log begins with the first optimizer step.

    Attributes:
        recorder: records since the first step; None before it.
        scaling: what a gradient scaler did.
    """

    def __init__(self, log: Path | str, options: WatchOptions | None = None) -> None:
        """Sees nothing yet.

        Args:
            log: folder or URL of the log.
            options: what the training can't be asked for.
        """
        self._log, self._options = log, options or WatchOptions()
        self._passes: list[_Pass] = []
        self._finders: list[Callable[[], None]] = []  # undo what only the search for model and settings needs
        self._step_hook: Any = None
        self.scaling = Scaling()
        self._losses = Losses(scaling=self.scaling)
        self._wrappers: list[nn.Module] = []  # what may average gradients over several processes
        self._hooked: dict[int, bytes] = {}  # id of a module in its forward pass -> the generators before it
        self._autocast: list[str | None] = []  # of the first pass, once it is known
        self._clip: float | None = None
        self._unclipped_norm: float | None = None
        self._clip_grad_norm = torch.nn.utils.clip_grad_norm_
        self._started = 0.0
        self.recorder: Recorder | None = None

    def __enter__(self) -> Self:
        """See `start`.

        Returns:
            The watch.
        """
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """See `finish`; a script that ends by `sys.exit(0)` has ended by itself."""
        self.finish(None if isinstance(error, SystemExit) and not error.code else error)

    def start(self) -> Self:
        """Attaches the global hooks.

        Returns:
            The watch.
        """
        self._step_hook = register_optimizer_step_pre_hook(self._before_step)
        self._losses.attach()
        self.scaling.attach(self._passes.clear)
        self._finders = [
            register_module_forward_pre_hook(self._before_forward).remove,
            self._restore_clipping,
            self._losses.detach,
            self.scaling.detach,
        ]
        self._clip_grad_norm = torch.nn.utils.clip_grad_norm_
        torch.nn.utils.clip_grad_norm_ = self._clipping
        return self

    def finish(self, error: BaseException | None = None) -> None:
        """Detaches everything and closes the log.

        Args:
            error: what the training ended by; None if by itself, and then the log is finished.

        Raises:
            UsageError: the training ended by itself without an optimizer step.
        """
        self._stop_finding()
        self._step_hook.remove()
        if self.recorder is not None:
            self.recorder.__exit__(type(error) if error is not None else None, error, None)
        elif error is None:
            raise UsageError(
                "nothing was recorded: the training took no optimizer step",
                hint="a model must be given labels in train mode, and one of torch's optimizers must take a step",
            )

    def _stop_finding(self) -> None:
        """Leaves only the hook that looks out for a second optimizer."""
        while self._finders:
            self._finders.pop()()

    def _restore_clipping(self) -> None:
        torch.nn.utils.clip_grad_norm_ = self._clip_grad_norm

    def _before_forward(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """A module begins a forward pass; global hooks don't see keyword arguments, its own hook behind it does."""
        check_whole(module)
        if isinstance(module, DistributedDataParallel):
            self._wrappers = [*(known for known in self._wrappers if known is not module), module]
        if self._hooked and not self._autocast:  # within a model: Accelerate begins autocast behind the model's hooks
            parameter = next(module.parameters(), None)
            if parameter is not None:
                self._autocast.append(autocast_dtype(parameter.device))
        if not (module.training and torch.is_grad_enabled() and _takes_labels(module)):
            return
        self._started = self._started or time.perf_counter()
        self._hooked[id(module)] = rng_state(next(module.parameters()).device)
        handle: Any = module.register_forward_hook(lambda *call: self._after_forward(handle, *call), with_kwargs=True)

    def _after_forward(
        self, handle: Any, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        handle.remove()
        before = self._hooked.pop(id(module))
        drew = rng_state(next(module.parameters()).device) != before
        wrapper = wrapper_of(module, self._wrappers)
        averaged = wrapper is None or averages(wrapper)

        def tell(seen: SeenLoss) -> None:
            # A copy of the loss, since Trainer multiplies it in place by the number of processes.
            copy = seen.loss.detach().clone()
            taken = _Pass(module, seen.arguments, seen.entry, copy, before, drew, averaged, seen.slope)
            if seen.loss.requires_grad:
                seen.loss.register_hook(lambda slope: setattr(taken, "slope", float(slope) / self.scaling.factor))
            self._passes.append(taken)

        arguments = arguments_of(module, args, kwargs)
        check_apart(arguments, output)
        self._losses.returned(arguments, output, tell)

    def _clipping(self, parameters: Any, max_norm: float, norm_type: float = 2.0, *args: Any, **kwargs: Any) -> Any:
        """`torch.nn.utils.clip_grad_norm_`, whose threshold nothing else tells."""
        if norm_type != 2.0:
            raise UsageError(f"unsupported clipping: expected the L2 norm, found norm_type {norm_type}")
        self._clip = float(max_norm) if math.isfinite(max_norm) else None
        norm = self._clip_grad_norm(parameters, max_norm, norm_type, *args, **kwargs)
        self._unclipped_norm = float(norm)
        return norm

    def _before_step(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The first step starts the recorder, whose own hooks see this very step too."""
        if self.recorder is None:
            if leaves_out(optimizer):
                return
            try:
                self._start_recorder(optimizer)
            except BaseException:  # a callback isn't told that its trainer failed
                self._stop_finding()
                self._step_hook.remove()
                raise
        elif self.recorder.optimizer is not optimizer:
            raise UsageError(
                f"two optimizers: a {type(optimizer).__name__} takes a step beside the recorded "
                f"{type(self.recorder.optimizer).__name__}",
                hint="a log holds the training of one model by one optimizer; close the callback of one that failed",
            )

    def _start_recorder(self, optimizer: torch.optim.Optimizer) -> None:
        module = self._find_module(optimizer)
        passes = [seen for seen in self._passes if seen.module is module]
        processes, options = Processes(module, self._wrappers), self._options
        logged = _logged(self._log) if options.resume and processes.is_first else None
        self._options = options.or_else(processes.first_said(logged) or {})
        description = self._describe(module, passes, processes)
        self._stop_finding()
        recorder = Recorder(
            self._log, module, optimizer, description,
            overwrite=options.overwrite, resume=options.resume, processes=processes,
            scaling=self.scaling,
        )  # fmt: skip
        for seen in passes:  # before there is a log, which a pass that can't be recorded would leave behind
            recorder.note(seen.arguments, seen.loss.item(), seen.rng if seen.drew else b"", seen.averaged)
        recorder.__enter__()
        recorder.begin(self._started, self._unclipped_norm)
        self.recorder = recorder
        self._passes.clear()
        self._wrappers.clear()

    def _find_module(self, optimizer: torch.optim.Optimizer) -> nn.Module:
        """The model that was trained.

        Raises:
            UsageError: none of those that returned a loss has the optimizer's parameters.
        """
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        seen = list({id(seen.module): seen.module for seen in self._passes}.values())
        # An inner one ends its pass before the one around it; an adapter's model is the one that PEFT wrapped.
        for module in sorted(seen, key=is_adapted, reverse=True):
            if {id(parameter) for parameter in module.parameters() if parameter.requires_grad} == held:
                return module
        names = ", ".join(type(module).__name__ for module in seen) or "none"
        raise UsageError(
            "no model to record: expected one that returned a loss in train mode and whose trainable parameters are "
            f"those of the optimizer, a {type(optimizer).__name__} of {counted(len(held), 'parameter')}; found {names}",
            hint="give the model its labels, and freeze the parameters that the optimizer doesn't hold",
        )

    def _describe(self, module: nn.Module, passes: list[_Pass], processes: Processes) -> RunDescription:
        options, config = self._options, getattr(module, "config", None)
        seen_padding = processes.first_said(_padding_token(passes))
        source = options.model_source or getattr(config, "_name_or_path", "")
        if not source:
            raise UsageError(
                "the base model's place isn't known: expected a model that transformers loaded from a folder or hub",
                hint="save the model before the training, load it from there, or say where it lies",
            )
        loss = _loss(passes)
        padding = options.padding_token if options.padding_token is not None else seen_padding
        if padding is None:
            padding = getattr(config, "pad_token_id", None)
        named = {name: getattr(options, name) for name in ("checkpoint_every", "updates", "gradients")}
        return RunDescription(
            model_source=source,
            max_grad_norm=self._clip,
            loss_divisor=1.0 if loss == OWN else _divisor(passes),
            padding_token=padding if padding is not None else 0,
            planned_steps=options.planned_steps,
            training=options.training,
            forward_arguments=_constants(passes[0].arguments),
            loss=loss,
            autocast=self._autocast[0] if self._autocast else None,
            **{name: value for name, value in named.items() if value is not None},
        )


def _logged(location: Path | str) -> dict[str, Any]:
    """What an interrupted log says of its run."""
    manifest = open_unfinished(location).manifest
    names = ("padding_token", "checkpoint_every", "updates", "gradients", "planned_steps")
    return {"model_source": manifest.model.source} | {name: getattr(manifest, name) for name in names}


def _takes_labels(module: nn.Module) -> bool:
    return "labels" in _parameters_of(type(without_adapter(module)).forward)


@cache
def _parameters_of(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


def _loss(passes: list[_Pass]) -> LossEntry | None:
    """How the losses were computed; the trainer's own where it called `backward` on something else than was seen."""
    entries = {seen.entry for seen in passes}
    entry = entries.pop() if len(entries) == 1 and any(seen.slope for seen in passes) else OWN
    if entry == OWN:
        warnings.warn(
            "the log will say that it can't be replayed: the training computes its loss itself, by a function that no "
            "log can name",
            stacklevel=2,
        )
    return entry


def _divisor(passes: list[_Pass]) -> float:
    """What the loop divided each loss by before it called `backward`.

    Raises:
        UsageError: not all by the same, or `backward` was called on something else.
    """
    slopes = sorted({seen.slope or 0.0 for seen in passes})
    if len(slopes) != 1 or not slopes[0] > 0:
        raise UsageError(
            "the loop must call backward on the model's loss, divided by one number: found the factors "
            f"{slopes} in one step",
            hint="a loss that the loop computes itself can't be replayed",
        )
    return whole(1 / slopes[0])


def _padding_token(passes: list[_Pass]) -> int | None:
    """The token that lies outside of an attention mask, if there is any."""
    for seen in passes:
        tokens, mask = seen.arguments.get("input_ids"), seen.arguments.get("attention_mask")
        if isinstance(tokens, Tensor) and isinstance(mask, Tensor) and mask.shape == tokens.shape:
            outside = tokens[mask == 0]
            if len(outside):
                return int(outside[0])
    return None


def _constants(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that a manifest holds, because every pass is given the same."""
    return {
        name: value
        for name, value in arguments.items()
        if name not in RECORDED | HARMLESS and isinstance(value, bool | int | float | str)
    }
