"""The gradients that a log holds, as tensors: as the optimizer was given them, or as they were before clipping."""

from bisect import bisect_right
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property

import numpy as np

from lmcleaner.formats.bits import Bits
from lmcleaner.formats.layout import GRADIENTS, num_spans
from lmcleaner.formats.ranges import steps_in
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.reconstruction import is_read_ahead
from lmcleaner.formats.window import Selection
from lmcleaner.training.replay import ReplayModel
from lmcleaner.training.state import Gradient, clip_scale
from lmcleaner.training.vectors import torch_dtype

# A gradient whose norm is this close to the threshold was scaled down to it.
CLIPPED = 0.999


def exact_steps(log: TrainingLog) -> frozenset[int]:
    """The steps whose gradient the log holds to the last bit, so that the optimizer can take them as the run did."""
    return frozenset(steps_in(log.commit.gradients) if log.manifest.gradients == "lossless" else ())


def unclipped_steps(log: TrainingLog) -> frozenset[int]:
    """The steps whose gradient before clipping follows from what the log holds."""
    limit, held = log.manifest.max_grad_norm, frozenset(steps_in(log.commit.gradients))
    if limit is None or not held or len(log.table("steps/unclipped_norm")):
        return held
    return held - set(np.flatnonzero(log.table("steps/gradient_norm") >= CLIPPED * limit).tolist())


class RecordedGradients:
    """Reads gradients of a log."""

    def __init__(self, log: TrainingLog, replay: ReplayModel, steps: Collection[int] = ()) -> None:
        """Reads nothing yet.

        Args:
            log: the training log.
            replay: says which dtype, shapes and device they have.
            steps: that will be asked for one after the other: with one, the next is read by another thread where
                vectors are read ahead.
        """
        self._log, self._replay = log, replay
        self._steps = steps if is_read_ahead(num_spans(log.manifest.num_elements)) else ()
        self._reader = ThreadPoolExecutor(1, "lmcleaner-gradients")
        self._coming: tuple[int, Future[Bits]] | None = None
        self._present: dict[int, list[bool]] = {}

    def given(self, step: int) -> Gradient:
        """What the optimizer was given at a step, clipped as the run clipped.

        None for a parameter of which the optimizer holds nothing at the checkpoint behind the step, though it does of
        others: the loss never reached it, and a gradient of zeros would let its weights decay.
        """
        tensors = self._replay.load(self._bits(step))
        return [part if there else None for part, there in zip(tensors, self._is_present(step), strict=True)]

    def unclipped(self, step: int) -> Gradient:
        """The gradient of one of `unclipped_steps` before clipping, but for the rounding of the division."""
        gradient, limit = self.given(step), self._log.manifest.max_grad_norm
        norms = self._log.table("steps/unclipped_norm")
        if limit is not None and len(norms):
            scale = clip_scale(float(norms[step]), limit, torch_dtype(self._log.manifest.model.dtype))
            if scale < 1:
                for part in gradient:
                    if part is not None:
                        part.div_(scale)
        return gradient

    def _bits(self, step: int) -> Bits:
        coming, self._coming = self._coming, None
        if coming is None or coming[0] != step:
            coming = step, self._reader.submit(self._read, step)
        if step + 1 in self._steps:
            self._coming = step + 1, self._reader.submit(self._read, step + 1)
        return coming[1].result()

    @cached_property
    def _read(self) -> Callable[[int], Bits]:
        assert GRADIENTS in self._log.tree.stacks
        return self._log.gradient_reader(Selection(self._log.manifest, None))

    def _is_present(self, step: int) -> list[bool]:
        later = self._log.checkpoint_steps[bisect_right(self._log.checkpoint_steps, step) :]
        if not later:
            return [True] * len(self._replay.parameters)
        if later[0] not in self._present:
            present = self._log.checkpoint_array(later[0], "present").astype(bool)
            self._present[later[0]] = (present | ~present.any()).tolist()
        return self._present[later[0]]
