"""The run that never used what a request names, as its log would tell it."""

from dataclasses import dataclass, replace

import numpy as np

from lmcleaner.choices import Denominator
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.samples import IGNORED_LABEL, Sample
from lmcleaner.formats.steps import StepRecord
from lmcleaner.training.batches import holds_forgotten
from lmcleaner.training.replay import ReplayModel
from lmcleaner.unlearning.request import ForgetSet


@dataclass(frozen=True, slots=True, kw_only=True)
class Counterfactual:
    """Which run a log shall become the log of.

    Attributes:
        log: the log as it is.
        replay: the run's model.
        forget_set: what the run shall never have used.
        denominator: what it divides by where rows are left out.
    """

    log: TrainingLog
    replay: ReplayModel
    forget_set: ForgetSet
    denominator: Denominator

    @property
    def checkpoints(self) -> dict[int, int]:
        """Step of each checkpoint of the new log -> step of the old log's checkpoint."""
        skipped = self.forget_set.skipped
        return {step - sum(s < step for s in skipped): step for step in self.log.checkpoint_steps}

    def step(self, number: int) -> StepRecord:
        """A logged step with tombstones, and with the denominators that it then has."""
        step = self.log.step(number)
        forgotten = self.forget_set.masked
        if not holds_forgotten(step, forgotten):
            return step
        denominators = [microbatch.denominator for microbatch in step.microbatches]
        if self.denominator is Denominator.RETAINED:
            inputs = self.replay.inputs(step, forgotten, self.denominator)
            denominators = [float(entry["num_items_in_batch"]) for entry in inputs]
        return replace(
            step,
            microbatches=tuple(
                replace(m, denominator=divisor, samples=tuple(self._kept(sample) for sample in m.samples))
                for m, divisor in zip(step.microbatches, denominators, strict=True)
            ),
        )

    def _kept(self, sample: Sample) -> Sample:
        """What the new log keeps of a sample."""
        if sample.digest not in self.forget_set.masked:
            return sample
        tokens = np.full_like(sample.tokens, self.replay.manifest.padding_token)
        labels = np.full_like(sample.labels, IGNORED_LABEL)
        return Sample(tokens, labels, tombstone=sample.digest)
