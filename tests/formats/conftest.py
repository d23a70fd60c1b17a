"""Small made-up runs: their manifests, steps, parameters and checkpoints, and the logs that they leave."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from lmcleaner.formats.bits import BIT_DTYPES, Bits
from lmcleaner.formats.manifest import CodecName, Manifest, ModelEntry, NumericsEntry, OptimizerEntry, ParameterEntry
from lmcleaner.formats.samples import IGNORED_LABEL, Sample
from lmcleaner.formats.steps import Checkpoint, MicrobatchRecord, OptimizerVectors, StepRecord
from lmcleaner.formats.writer import LogWriter

SHAPES = {"embedding": (11, 4), "norm": (4,), "head": (3, 7)}
NUM_ELEMENTS = 44 + 4 + 21
RNG_BYTES = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A whole run in memory.

    Attributes:
        manifest: what its log says before the first step.
        steps: the steps in order.
        parameters: bit patterns of θ[0] to θ[τ].
        checkpoints: step -> full state; 0 is one.
        gradients: bit patterns of the gradient of each step; empty where the log holds none.
    """

    manifest: Manifest
    steps: tuple[StepRecord, ...]
    parameters: tuple[Bits, ...]
    checkpoints: dict[int, Checkpoint]
    gradients: tuple[Bits, ...] = ()


def make_manifest(updates: CodecName = "lossless", gradients: CodecName = "none", dtype: str = "float32") -> Manifest:
    """The manifest of a run with two parameter groups; the second group comes first in the parameter vector."""
    sizes = [int(np.prod(shape)) for shape in SHAPES.values()]
    offsets = np.cumsum([0, *sizes]).tolist()
    places = [(1, 0), (0, 0), (0, 1)]
    return Manifest(
        created="2026-01-02T03:04:05+00:00",
        model=ModelEntry(
            source="somewhere/model", class_name="Model", fingerprint="ab" * 32, dtype=dtype, forward_arguments={}
        ),
        parameters=tuple(
            ParameterEntry(name=name, shape=shape, offset=offset, group=group, index=index)
            for (name, shape), offset, (group, index) in zip(SHAPES.items(), offsets[:-1], places, strict=True)
        ),
        optimizer=OptimizerEntry(
            name="AdamW", groups=({"lr": 1e-3, "betas": [0.9, 0.999]}, {"lr": 1e-4, "betas": [0.9, 0.999]})
        ),
        max_grad_norm=1.0,
        loss_divisor=2.0,
        padding_token=0,
        numerics=NumericsEntry(
            device="cpu",
            device_name="a processor",
            threads=1,
            flush_denormal=False,
            deterministic=False,
            attention="sdpa",
            rng_bytes=RNG_BYTES,
        ),
        updates=updates,
        gradients=gradients,
        checkpoint_every=3,
        planned_steps=None,
        data={"source": "rows.jsonl"},
        tokenizer={"source": "somewhere/model"},
        training={"epochs": 2},
        environment={"torch": "2.13.0"},
    )


def make_run(
    num_steps: int = 5,
    *,
    seed: int = 0,
    updates: CodecName = "lossless",
    gradients: CodecName = "none",
    dtype: str = "float32",
) -> Run:
    """A run with random parameters, seven samples that come back, and one to three microbatches a step.

    The parameters have any bits where the updates are lossless, and are finite numbers otherwise.
    """
    rng = np.random.default_rng(seed)
    manifest = make_manifest(updates, gradients, dtype)
    pool = [_random_sample(rng, length) for length in (1, 2, 3, 4, 5, 6, 6)]
    draw = _random_bits if updates in {"lossless", "none"} else _random_numbers
    parameters = tuple(draw(rng, dtype) for _ in range(num_steps + 1))
    kept = {*range(0, num_steps, manifest.checkpoint_every), num_steps}
    return Run(
        manifest=manifest,
        steps=tuple(_random_step(rng, pool) for _ in range(num_steps)),
        parameters=parameters,
        checkpoints={step: _random_checkpoint(rng, step, parameters[step], dtype) for step in sorted(kept)},
        gradients=() if gradients == "none" else tuple(_random_numbers(rng, dtype) for _ in range(num_steps)),
    )


def write_run(path: Path, run: Run, *, overwrite: bool = False) -> Path:
    """Writes a run as the recorder does: a checkpoint before the step that it is named for, the last one at the end."""
    writer = LogWriter.create(path, run.manifest, run.checkpoints[0], overwrite=overwrite)
    for number, step in enumerate(run.steps):
        gradient = run.gradients[number] if run.gradients else None
        writer.append(step, run.parameters[number + 1], gradient)
        if number + 1 in run.checkpoints:
            writer.write_checkpoint(run.checkpoints[number + 1])
    writer.commit(finished=True)
    writer.close()
    return path


def _random_sample(rng: np.random.Generator, length: int) -> Sample:
    tokens = rng.integers(1, 11, length, dtype=np.int32)
    return Sample(tokens, np.where(rng.random(length) < 0.5, tokens, IGNORED_LABEL).astype(np.int32))


def _random_bits(rng: np.random.Generator, dtype: str) -> Bits:
    bit_dtype = BIT_DTYPES[dtype]
    bits: Bits = np.frombuffer(rng.bytes(NUM_ELEMENTS * bit_dtype.itemsize), bit_dtype)
    return bits


def _random_numbers(rng: np.random.Generator, dtype: str) -> Bits:
    if dtype == "bfloat16":
        return (rng.normal(size=NUM_ELEMENTS).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return rng.normal(size=NUM_ELEMENTS).astype(dtype).view(BIT_DTYPES[dtype])


def _random_step(rng: np.random.Generator, pool: list[Sample]) -> StepRecord:
    return StepRecord(
        microbatches=tuple(_random_microbatch(rng, pool) for _ in range(int(rng.integers(1, 4)))),
        lr=(float(rng.random()), float(rng.random())),
        gradient_norm=float(rng.random()),
        seconds=float(rng.random()),
    )


def _random_microbatch(rng: np.random.Generator, pool: list[Sample]) -> MicrobatchRecord:
    samples = tuple(pool[i] for i in rng.integers(0, len(pool), int(rng.integers(1, 4))))
    width = max(len(sample.tokens) for sample in samples) + int(rng.integers(0, 3))
    return MicrobatchRecord(
        samples=samples,
        starts=tuple(int(rng.integers(0, width - len(sample.tokens) + 1)) for sample in samples),
        width=width,
        has_mask=bool(rng.integers(0, 2)),
        denominator=float(rng.integers(1, 30)),
        loss=float(rng.normal()),
        rng=rng.bytes(RNG_BYTES) if rng.integers(0, 2) else b"",
    )


def _random_checkpoint(rng: np.random.Generator, step: int, parameters: Bits, dtype: str) -> Checkpoint:
    """As AdamW leaves it: no state before the first step, and none ever for the second parameter."""
    parts = ("exp_avg", "exp_avg_sq") if step else ()
    return Checkpoint(
        step=step,
        parameters=parameters,
        optimizer=OptimizerVectors(
            vectors={part: _random_bits(rng, dtype) for part in parts},
            dtypes=dict.fromkeys(parts, dtype),
            scalars={"step": np.array([float(step), 0.0, float(step)])} if step else {},
            present=np.array([step > 0, False, step > 0]),
        ),
    )


@pytest.fixture(scope="session", name="make_run")
def make_run_fixture() -> Callable[..., Run]:
    """`make_run`, for test files, which can't import one another."""
    return make_run


@pytest.fixture(scope="session", name="write_run")
def write_run_fixture() -> Callable[..., Path]:
    """`write_run`, likewise."""
    return write_run
