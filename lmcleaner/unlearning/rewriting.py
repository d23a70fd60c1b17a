"""Replays a counterfactual run from step 0, and writes what it does into a log's next generation."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lmcleaner.formats.bits import Bits
from lmcleaner.formats.canonical import array_digest
from lmcleaner.formats.errors import MismatchError
from lmcleaner.formats.generations import NextGeneration
from lmcleaner.formats.steps import Checkpoint, StepRecord
from lmcleaner.progress import Progress
from lmcleaner.training.optimizers import optimizer_vectors
from lmcleaner.training.state import Gradient
from lmcleaner.training.vectors import bits_of, joined_norm
from lmcleaner.unlearning.counterfactual import Counterfactual

NOTHING_CHANGED = "the log is as it was; redact it on the kind of machine and with the libraries that the run had"


class Rewriting:
    """Replays the counterfactual run, and writes what it does."""

    def __init__(self, wanted: Counterfactual, generation: NextGeneration) -> None:
        """Writes the state that the run starts from.

        Args:
            wanted: the run.
            generation: where to write it, empty.
        """
        self._wanted, self._generation = wanted, generation
        self._checkpoints = wanted.checkpoints
        start = wanted.log.checkpoint(0)
        self._state = wanted.replay.state(start)
        generation.write_checkpoint(replace(start, generators=self._generators(0)))

    def run(self, progress: Progress) -> Bits:
        """Takes and writes all steps.

        Args:
            progress: is told of every step.

        Returns:
            Bit patterns of the parameters in the end.

        Raises:
            MismatchError: a step before the first occurrence doesn't give the logged bits.
        """
        bits = self._wanted.log.checkpoint_parameters(0)
        for number in range(self._wanted.log.num_steps):
            if number not in self._wanted.forget_set.skipped:
                bits = self._take(number)
            progress.advance()
        commit, then = self._generation.flush(), self._wanted.log.commit
        for step, before in self._checkpoints.items():
            if (
                before == step <= self._wanted.forget_set.steps[0]
                and commit.checkpoints[step] != then.checkpoints[step]
            ):
                raise self._inexact(f"the optimizer's state before step {step}")
        return bits

    def _take(self, number: int) -> Bits:
        step = self._wanted.step(number)
        replay = self._wanted.replay
        gradient, losses = replay.gradient_and_losses(step, self._state.parameters, replay.inputs(step))
        norms = [torch.linalg.vector_norm(part) for part in gradient if part is not None]
        unclipped = joined_norm(norms) if step.unclipped_norm is not None else None
        self._state.clip(gradient)
        norm = float(torch.nn.utils.get_total_norm([part for part in gradient if part is not None]))
        given = self._to_record(gradient)
        self._state.apply_given(gradient, step.lr)
        bits = bits_of(self._state.parameters)
        if number >= self._wanted.forget_set.steps[0]:
            step = replace(_with_losses(step, losses), gradient_norm=norm, unclipped_norm=unclipped)
        elif array_digest(bits) != self._wanted.log.parameters_digest(number + 1):
            raise self._inexact(f"the parameters after step {number}")
        self._generation.append(step, bits, given)
        if self._generation.num_steps in self._checkpoints:
            self._write_checkpoint(bits)
        return bits

    def _to_record(self, gradient: Gradient) -> Bits | None:
        """Bit patterns of what the optimizer is given, if the log holds gradients; the step may change it."""
        if self._wanted.log.manifest.gradients == "none":
            return None
        pairs = zip(gradient, self._state.parameters, strict=True)
        return bits_of(torch.zeros_like(p) if part is None else part for part, p in pairs)

    def _write_checkpoint(self, bits: Bits) -> None:
        step, state = self._generation.num_steps, self._state
        optimizer = optimizer_vectors(state.optimizer, state.parameters)
        generators = self._generators(step)
        self._generation.write_checkpoint(
            Checkpoint(step=step, parameters=bits, optimizer=optimizer, generators=generators)
        )

    def _generators(self, step: int) -> bytes:
        """The logged state of the random number generators, which don't depend on what is forgotten."""
        log, before = self._wanted.log, self._checkpoints[step]
        has_any = log.commit.checkpoints[before].generator_bytes > 0
        return log.checkpoint_array(before, "generators").tobytes() if has_any else b""

    def _inexact(self, what: str) -> MismatchError:
        return MismatchError(
            f"the log can't be redacted: {self._wanted.log.location}: this machine doesn't replay the run bit for bit: "
            f"{what} differ from the log's",
            hint=NOTHING_CHANGED,
        )


def _with_losses(step: StepRecord, losses: Sequence[Tensor]) -> StepRecord:
    measured = tuple(replace(m, loss=loss.item()) for m, loss in zip(step.microbatches, losses, strict=True))
    return replace(step, microbatches=measured)
