"""Compares a run that goes on with what its log says: the run as a whole, and each step that is taken again."""

import hashlib
from collections.abc import Callable
from typing import Any

import torch

from lmcleaner.formats.bits import Bits
from lmcleaner.formats.canonical import array_digest
from lmcleaner.formats.documents import Json
from lmcleaner.formats.errors import MismatchError, UsageError
from lmcleaner.formats.manifest import Manifest
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.steps import StepRecord

_DESCRIPTION = ("max_grad_norm", "loss_divisor", "padding_token", "checkpoint_every", "updates", "gradients")
_NUMERICS_HINT = "see torch.set_num_threads, set_flush_denormal, use_deterministic_algorithms and torch.backends"

# What must be the same of a step, causes before their effects, so that the first difference says most.
_PARTS: dict[str, Callable[[StepRecord], object]] = {
    "processes": lambda step: [m.rank for m in step.microbatches],
    "rows": lambda step: [sample.digest.hex()[:12] for sample in step.samples],
    "padding": lambda step: [(m.starts, m.width, m.has_mask, m.packed) for m in step.microbatches],
    "denominators": lambda step: [m.denominator for m in step.microbatches],
    "loss scale": lambda step: step.loss_scale,
    "random state": lambda step: [hashlib.sha256(m.rng).hexdigest()[:12] for m in step.microbatches],
    "losses": lambda step: [m.loss for m in step.microbatches],
    "learning rates": lambda step: step.lr,
    "gradient norm": lambda step: step.gradient_norm,
}


class RepeatedSteps:
    """The steps of an interrupted log, some of which its run takes again before it goes on.

    Attributes:
        num_steps: steps that the log holds.
        checkpoints: steps before which it holds the full state.
    """

    def __init__(self, log: TrainingLog, manifest: Manifest) -> None:
        """Checks that it is the same run.

        Args:
            log: the log, opened.
            manifest: what the run that goes on would write into a log of its own.

        Raises:
            UsageError: the run is described otherwise than it was.
            MismatchError: the model, the optimizer or what decides the last bit is another.
        """
        self._log = log
        self.num_steps, self.checkpoints = log.num_steps, log.checkpoint_steps
        _check_same_run(log.manifest.to_json(), manifest.to_json())

    def find(self, parameters: Bits, optimizer: torch.optim.Optimizer) -> int:
        """The step that the run is at.

        Parameters that didn't change in a step, as with a learning rate of 0, are told apart by the optimizer's count
        of steps; where it has none, the state of a checkpoint is the likelier one.

        Args:
            parameters: bit patterns of the model's parameters.
            optimizer: its optimizer.

        Returns:
            The step.

        Raises:
            MismatchError: the log has no step with these parameters.
        """
        digest = array_digest(parameters)
        found = [step for step in range(self.num_steps + 1) if self._log.parameters_digest(step) == digest]
        counts = {int(state["step"]) for state in optimizer.state.values() if state.get("step") is not None}
        found = [step for step in found if step in counts] if counts else found
        if not found:
            raise MismatchError(
                f"the model is at no step of the log: {self._log.location}: expected the parameters of one of the "
                f"steps 0 to {self.num_steps}, found others",
                hint="load the log's last checkpoint, or an earlier one of your own, into model and optimizer first",
            )
        return min(found, key=lambda step: (step not in self.checkpoints, step))

    def check(self, number: int, step: StepRecord, parameters: Bits) -> None:
        """Compares a step that was taken again.

        Args:
            number: of the step.
            step: what it did.
            parameters: bit patterns after it.

        Raises:
            MismatchError: the log holds something else.
        """
        logged = self._log.step(number)
        for what, part in _PARTS.items():
            if part(step) != part(logged):
                raise self._differs(number, what, part(logged), part(step))
        expected, found = self._log.parameters_digest(number + 1), array_digest(parameters)
        if found != expected:
            raise self._differs(number, "parameters after it", f"BLAKE3 {expected.hex()}", found.hex())

    def _differs(self, number: int, what: str, expected: object, found: object) -> MismatchError:
        return MismatchError(
            f"the run doesn't repeat what its log holds: {self._log.location}: step {number}, {what}: "
            f"expected {expected}, found {found}",
            hint="resume with the data, libraries and kind of machine that the run had; the log is as it was",
        )


def _check_same_run(then: Json, now: Json) -> None:
    _compare("processes", then.get("world_size", 1), now.get("world_size", 1))
    for name in _DESCRIPTION:
        if then[name] != now[name]:
            raise UsageError(f"the run is described otherwise: {name}: the log has {then[name]}, found {now[name]}")
    _compare("model", _trained_model(then["model"]), _trained_model(now["model"]))
    _compare("parameters", then["parameters"], now["parameters"])
    _compare("optimizer", _without_rates(then["optimizer"]), _without_rates(now["optimizer"]))
    for name in ("data", "tokenizer"):
        _compare(name, then[name].get("sha256"), now[name].get("sha256"))
    machine = ("device_name",)  # another one may still give the same bits
    _compare("numerics", _without(then["numerics"], *machine), _without(now["numerics"], *machine), _NUMERICS_HINT)


def _trained_model(model: Json) -> Json:
    """Without the place of the base model and the version of PEFT, which an adapter's configuration holds too."""
    adapter = model.get("adapter")
    if adapter is not None:
        adapter = adapter | {"config": _without(adapter["config"], "base_model_name_or_path", "peft_version")}
    return _without(model, "source", "fingerprint") | {"adapter": adapter}


def _without(entry: Json, *names: str) -> Json:
    return {name: value for name, value in entry.items() if name not in names}


def _without_rates(optimizer: Json) -> list[Json]:
    """Class and hyperparameters that must not change."""
    return [{"name": optimizer["name"]}, *(_without(group, "lr") for group in optimizer["groups"])]


def _compare(what: str, then: Any, now: Any, hint: str | None = None) -> None:
    """Names the first difference within dictionaries and lists."""
    if type(then) is type(now) is list and len(then) == len(now):
        then, now = dict(enumerate(then)), dict(enumerate(now))
    if type(then) is type(now) is dict:
        for name in sorted({*then, *now}):
            _compare(f"{what}.{name}", then.get(name), now.get(name), hint)
    elif then != now:
        raise MismatchError(f"not the run of this log: {what}: the log has {then}, found {now}", hint=hint)
