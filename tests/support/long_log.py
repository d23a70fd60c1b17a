"""A log as long as real ones, of a run that was never trained."""

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lmcleaner.formats.generation import GenerationWriter
from lmcleaner.formats.manifest import Manifest, ModelEntry, NumericsEntry, OptimizerEntry, ParameterEntry
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.samples import Sample
from lmcleaner.formats.steps import Checkpoint, MicrobatchRecord, OptimizerVectors, StepRecord
from lmcleaner.formats.store import open_store
from lmcleaner.formats.writer import LogWriter, write_commit, write_metadata

HOSTILE = "</td><script>alert(1)</script><img src=x onerror=alert(1)>\"'&amp; {{7*7}}"
NUM_SAMPLES = 400
_ROWS = 8
_PARAMETERS = np.zeros(2, np.uint32)


def write_long_log(folder: Path, num_steps: int) -> TrainingLog:
    """Writes a log with hostile names, a noisy loss that falls, a gradient norm with spikes, and two schedules.

    Args:
        folder: where to write it.
        num_steps: its length.

    Returns:
        The log.
    """
    LogWriter.create(folder, _manifest(num_steps), _checkpoint(0)).close()
    log, store = TrainingLog(folder), open_store(folder, writable=True)
    writer = GenerationWriter(store, log.tree, log)  # by itself, since a commit every few steps takes a minute
    samples = [_sample(number) for number in range(NUM_SAMPLES)]
    noise = np.random.default_rng(0).normal(size=(num_steps, 2))
    for step in range(num_steps):
        if step and step % max(1, num_steps // 20) == 0:
            writer.write_checkpoint(_checkpoint(step))
        writer.append(_step(step, num_steps, samples, noise[step]), _PARAMETERS)
    commit = writer.flush(finished=True, history=())
    write_metadata(store, log.tree, commit, {})
    write_commit(store, commit, log.manifest_digest)
    return TrainingLog(folder)


def _step(step: int, num_steps: int, samples: list[Sample], noise: NDArray[np.float64]) -> StepRecord:
    rows = tuple(samples[(step * _ROWS + row) % NUM_SAMPLES] for row in range(_ROWS))
    microbatch = MicrobatchRecord(
        samples=rows, starts=(0,) * _ROWS, width=4, has_mask=True, denominator=24.0, rng=b"",
        loss=4 * math.exp(-3 * step / num_steps) + 0.3 * float(noise[0]),
    )  # fmt: skip
    rate = 1e-3 * min(1.0, (step + 1) / (0.1 * num_steps)) * (1 - step / num_steps)
    spike = 20.0 if step % 997 == 500 else 0.0
    return StepRecord(
        microbatches=(microbatch,), lr=(rate, rate / 10), gradient_norm=abs(float(noise[1])) + spike, seconds=0.1
    )


def _sample(number: int) -> Sample:
    tokens = np.array([number, 1, 2, 3], np.int32)
    return Sample(tokens=tokens, labels=tokens)


def _checkpoint(step: int) -> Checkpoint:
    state = OptimizerVectors(vectors={}, dtypes={}, scalars={}, present=np.array([False, False]))
    return Checkpoint(step=step, parameters=_PARAMETERS, optimizer=state)


def _manifest(num_steps: int) -> Manifest:
    return Manifest(
        created="2026-01-01T00:00:00+00:00",
        model=ModelEntry(
            source=HOSTILE, class_name=HOSTILE, fingerprint="0" * 64, dtype="float32", forward_arguments={}
        ),
        parameters=tuple(
            ParameterEntry(name=f"weight {place}", shape=(1,), offset=place, group=place, index=0) for place in range(2)
        ),
        optimizer=OptimizerEntry(name=HOSTILE, groups=({"lr": 1e-3}, {"lr": 1e-4})),
        max_grad_norm=1.0, loss_divisor=1.0, padding_token=0,
        numerics=NumericsEntry(
            device="cpu", device_name="", threads=1, flush_denormal=True, deterministic=False, attention="eager",
            rng_bytes=1,
        ),
        updates="none", gradients="none", checkpoint_every=100, planned_steps=num_steps, data={"source": HOSTILE},
        tokenizer={}, training={}, environment={},
    )  # fmt: skip
