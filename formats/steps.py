"""What a log holds of one optimizer step, and of the state between two steps."""

from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from lmcleaner.formats.bits import Bits
from lmcleaner.formats.samples import IGNORED_LABEL, Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class MicrobatchRecord:
    """One forward and backward pass.

    Attributes:
        samples: the rows in order, without padding; where they are packed, each row's samples in order.
        starts: number of tokens before each sample in its row: padding or, where they are packed, other samples.
        width: tokens in a padded row.
        has_mask: whether the model was given an attention mask.
        denominator: what the summed loss was divided by, tokens.
        loss: what the model returned, nats.
        rng: state of the random number generators before the forward pass; empty where it drew no numbers.
        rank: of the process that it ran in, from 0.
        packed: whether a row is several samples without a gap; the model was then given `position_ids`, which begin at
            0 with each of them.
    """

    samples: tuple[Sample, ...]
    starts: tuple[int, ...]
    width: int
    has_mask: bool
    denominator: float
    loss: float
    rng: bytes
    rank: int = 0
    packed: bool = False

    @property
    def rows(self) -> tuple[int, ...]:
        """Row of the microbatch that each sample lies in; of packed ones, a sample with start 0 begins a row."""
        if not self.packed:
            return tuple(range(len(self.samples)))
        return tuple(accumulate((int(start == 0) for start in self.starts), initial=-1))[1:]

    @property
    def num_rows(self) -> int:
        """Number of rows that the model was given at once."""
        return self.rows[-1] + 1

    def num_targets(self, number: int) -> int:
        """Tokens of a sample that the loss counts; the first one too if it has a label and something before it."""
        sample = self.samples[number]
        first_counts = self.starts[number] > 0 and sample.labels[0] != IGNORED_LABEL
        return sample.num_targets + int(first_counts)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One optimizer step, without the parameters.

    Attributes:
        microbatches: in the order in which their gradients were accumulated. Several processes take a step in rounds,
            each of which ends where their gradients are averaged: the microbatches come round by round, and within a
            round by rank.
        lr: learning rate that was used, for each parameter group.
        gradient_norm: L2 norm of the gradient that the optimizer was given, after clipping.
        seconds: wall time of the step.
        unclipped_norm: the norm before clipping; None where nobody told it.
        loss_scale: what a gradient scaler multiplied the losses by before the backward passes, and divided the gradient
            by after them; 1 without one.
    """

    microbatches: tuple[MicrobatchRecord, ...]
    lr: tuple[float, ...]
    gradient_norm: float
    seconds: float
    unclipped_norm: float | None = None
    loss_scale: float = 1.0

    @property
    def samples(self) -> tuple[Sample, ...]:
        """All samples of the step in order."""
        return tuple(sample for microbatch in self.microbatches for sample in microbatch.samples)


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerVectors:
    """The optimizer's state, part by part, as flat vectors.

    Attributes:
        vectors: bit patterns `[num_elements]` of each part that is no single number, such as "exp_avg"; a part that
            is shorter than its parameter stands at the beginning of the parameter's place.
        dtypes: dtype names of `vectors`, such as "float32".
        scalars: float64 `[num_parameters]` of each part that is one number a parameter, such as "step".
        present: bool `[num_parameters]`; False where the optimizer holds nothing for the parameter yet.
    """

    vectors: dict[str, Bits]
    dtypes: dict[str, str]
    scalars: dict[str, NDArray[np.float64]]
    present: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The full state before a step.

    Attributes:
        step: the step; θ[step] is what follows.
        parameters: bit patterns of the trainable parameters, `[num_elements]`.
        optimizer: the optimizer's state.
        generators: state of the random number generators; empty where nobody gave it.
    """

    step: int
    parameters: Bits
    optimizer: OptimizerVectors
    generators: bytes = b""
