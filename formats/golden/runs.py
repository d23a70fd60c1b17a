"""The made-up runs of the golden logs.

All numbers come from SHA-256 of a counter, so that neither a clock nor a library's random numbers decide them.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lmcleaner.formats.bits import Bits
from lmcleaner.formats.commit import EstimateKind
from lmcleaner.formats.curvature import StoredEstimate
from lmcleaner.formats.manifest import (
    AdapterEntry,
    CodecName,
    LossEntry,
    Manifest,
    ModelEntry,
    NumericsEntry,
    OptimizerEntry,
    ParameterEntry,
)
from lmcleaner.formats.samples import IGNORED_LABEL, Sample
from lmcleaner.formats.steps import Checkpoint, MicrobatchRecord, OptimizerVectors, StepRecord

PADDING, RNG_BYTES, GENERATOR_BYTES = 3, 24, 40
SMALL = {"embedding": (20, 13), "norm": (12,), "head": (7, 13)}
LARGE = {"embedding": (1 << 10, 1 << 8), "head": (3,)}  # three elements in a second span

# In float32: NaN with a payload, both infinities, -0.0, the smallest and the largest denormal.
STRANGE = (0x7FC12345, 0x7F800000, 0xFF800000, 0x80000000, 0x00000001, 0x807FFFFF)


@dataclass(frozen=True, slots=True, kw_only=True)
class Golden:
    """How one log is made.

    Attributes:
        name: of its folder.
        updates: codec of the updates.
        gradients: codec of the gradients.
        dtype: of the parameters.
        shapes: parameter name -> shape.
        num_steps: steps of the run.
        checkpoint_every: steps between checkpoints.
        stride: only every so many elements of a parameter vector aren't zero.
        is_redacted: whether the log was written anew without one sample.
        curvature: kind of the curvature that was estimated at each checkpoint but the last, if any; then the log also
            tells the norms before clipping.
        has_codes: whether the optimizer keeps a part of its state as codes of 8 bits.
        world_size: processes that trained together.
        has_adapter: whether the parameters are an adapter's, trained under autocast.
        loss: what the trainer took the gradient of, if that wasn't the model's own loss.
        is_packed: whether microbatches of two rows or more are packed ones, but for the first step's.
        is_scaled: whether it ran under autocast to float16 and scaled its losses, but for the first step's.
    """

    name: str
    updates: CodecName = "lossless"
    gradients: CodecName = "none"
    dtype: str = "float32"
    shapes: dict[str, tuple[int, ...]]
    num_steps: int
    checkpoint_every: int = 3
    stride: int = 1
    is_redacted: bool = False
    curvature: EstimateKind | None = None
    has_codes: bool = False
    world_size: int = 1
    has_adapter: bool = False
    loss: LossEntry | None = None
    is_packed: bool = False
    is_scaled: bool = False


GOLDEN = (
    Golden(name="v1-lossless", shapes=SMALL, num_steps=20, checkpoint_every=7),
    Golden(name="v1-int8-gradients", updates="int8", gradients="int8", shapes=SMALL, num_steps=8),
    Golden(name="v1-int4-bfloat16", updates="int4", gradients="lossless", dtype="bfloat16", shapes=SMALL, num_steps=8),
    Golden(name="v1-none", updates="none", dtype="float64", shapes=SMALL, num_steps=5),
    Golden(name="v1-two-spans", updates="int4", shapes=LARGE, num_steps=17, checkpoint_every=9, stride=4099),
    Golden(name="v1-redacted", shapes=SMALL, num_steps=4, is_redacted=True),
    Golden(name="v1-low-rank", gradients="lossless", shapes=SMALL, num_steps=5, curvature="low_rank"),
    Golden(
        name="v1-diagonal",
        dtype="float64",
        updates="none",
        gradients="lossless",
        shapes=SMALL,
        num_steps=4,
        curvature="diag_hessian",
    ),
    Golden(name="v1-codes", shapes=SMALL, num_steps=4, has_codes=True),
    Golden(name="v1-processes", shapes=SMALL, num_steps=4, world_size=2),
    Golden(name="v1-adapter", shapes=SMALL, num_steps=3, has_adapter=True),
    Golden(name="v1-loss", shapes=SMALL, num_steps=3, loss=LossEntry(name="label_smoothing", smoothing=0.1)),
    Golden(name="v1-packed", shapes=SMALL, num_steps=5, is_packed=True),
    Golden(name="v1-scaled", shapes=SMALL, num_steps=5, is_scaled=True),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A whole run in memory.

    Attributes:
        manifest: what its log says before the first step.
        steps: the steps in order.
        parameters: bit patterns of θ[0] to θ[τ].
        gradients: bit patterns of the gradient of each step.
        checkpoints: step -> full state.
        curvature: step -> estimate.
    """

    manifest: Manifest
    steps: tuple[StepRecord, ...]
    parameters: tuple[Bits, ...]
    gradients: tuple[Bits, ...]
    checkpoints: dict[int, Checkpoint]
    curvature: dict[int, StoredEstimate]


class Numbers:
    """Numbers that look random: SHA-256 of a seed and a counter."""

    def __init__(self, seed: str) -> None:
        """Begins at counter 0."""
        self._seed, self._counter = seed, 0

    def data(self, count: int) -> bytes:
        """Bytes."""
        blocks = [self._block() for _ in range(-(-count // 32))]
        return b"".join(blocks)[:count]

    def whole(self, low: int, high: int, count: int) -> NDArray[np.int64]:
        """Whole numbers from `low` to `high`, both included."""
        values = np.frombuffer(self.data(4 * count), "<u4").astype(np.int64)
        return np.asarray(low + values % (high - low + 1))

    def one(self, low: int, high: int) -> int:
        """One whole number."""
        return int(self.whole(low, high, 1)[0])

    def fraction(self) -> float:
        """A number from 0 to 1 that every float format of 32 bits or more holds exactly."""
        return self.one(0, 1 << 16) / (1 << 16)

    def _block(self) -> bytes:
        self._counter += 1
        return hashlib.sha256(f"{self._seed} {self._counter}".encode()).digest()


def make_run(golden: Golden) -> Run:
    """The run that a golden log is made of.

    Args:
        golden: how.

    Returns:
        The run.
    """
    numbers, manifest = Numbers(golden.name), make_manifest(golden)
    pool = [_sample(numbers, length) for length in (5, 1, 2, 3, 4, 6, 6)]
    parameters = tuple(_walk(numbers, golden, manifest.num_elements))
    kept = sorted({*range(0, golden.num_steps, golden.checkpoint_every), golden.num_steps})
    run = Run(
        manifest=manifest,
        steps=tuple(_step(numbers, pool, golden.world_size) for _ in range(golden.num_steps)),
        parameters=parameters,
        gradients=tuple(_vector(numbers, golden, manifest.num_elements) for _ in range(golden.num_steps)),
        checkpoints={step: _checkpoint(numbers, golden, step, parameters[step]) for step in kept},
        curvature={},
    )
    run = _packed(run) if golden.is_packed else run
    run = _scaled(run) if golden.is_scaled else run
    return run if golden.curvature is None else _with_curvature(run, numbers, golden)


def _with_curvature(run: Run, numbers: Numbers, golden: Golden) -> Run:
    assert golden.curvature is not None
    steps = tuple(replace(step, unclipped_norm=step.gradient_norm * 2) for step in run.steps)
    last = max(run.checkpoints)
    estimates = {step: _estimate(numbers, golden, run.manifest.num_elements) for step in run.checkpoints if step < last}
    return replace(run, steps=steps, curvature=estimates)


def _packed(run: Run) -> Run:
    """The first two samples of a microbatch in its first row, each other one in a row of its own."""

    def packed(microbatch: MicrobatchRecord) -> MicrobatchRecord:
        lengths = [len(sample.tokens) for sample in microbatch.samples]
        if len(lengths) < 2:
            return microbatch
        starts, width = (0, lengths[0], *(0 for _ in lengths[2:])), max(sum(lengths[:2]), *lengths) + 1
        return replace(microbatch, starts=starts, width=width, has_mask=False, packed=True)

    first, *others = run.steps
    steps = [replace(step, microbatches=tuple(packed(m) for m in step.microbatches)) for step in others]
    return replace(run, steps=(first, *steps))


def _scaled(run: Run) -> Run:
    """By factors of which one is no power of two, and one is 1."""
    factors = (1.0, 65536.0, 65536.0, 0.7 * 65536, 1.0)
    steps = zip(run.steps, factors, strict=True)
    return replace(run, steps=tuple(replace(step, loss_scale=factor) for step, factor in steps))


def _estimate(numbers: Numbers, golden: Golden, count: int) -> StoredEstimate:
    """Three eigenpairs of five that were asked for, or a diagonal; they needn't be any matrix's."""
    dtype = np.float64 if golden.dtype == "float64" else np.float32
    rows = np.stack([_vector(numbers, golden, count, "float32").view(np.float32).astype(dtype) for _ in range(3)])
    assert golden.curvature is not None
    if golden.curvature != "low_rank":
        return StoredEstimate(kind=golden.curvature, rank=0, trace=numbers.fraction(), arrays={"diagonal": rows[0]})
    arrays = {"values": np.array([3, 1.5, 0.25], dtype), "vectors": rows}
    return StoredEstimate(kind=golden.curvature, rank=5, trace=8 + numbers.fraction(), arrays=arrays)


def redacted(run: Run, golden: Golden) -> Run:
    """The run as a log holds it after its first sample was forgotten: another trajectory, and a tombstone.

    Args:
        run: with the sample.
        golden: how it was made.

    Returns:
        The run without it.
    """
    other = make_run(replace(golden, name=f"{golden.name} after"))
    gone = run.steps[0].samples[0]
    size = len(gone.tokens)
    tombstone = Sample(np.full(size, PADDING, np.int32), np.full(size, IGNORED_LABEL, np.int32), tombstone=gone.digest)
    steps = []
    for step in run.steps:
        microbatches = tuple(
            replace(m, samples=tuple(tombstone if sample is gone else sample for sample in m.samples))
            for m in step.microbatches
        )
        steps.append(replace(step, microbatches=microbatches))
    parameters, checkpoints = (run.parameters[0], *other.parameters[1:]), other.checkpoints | {0: run.checkpoints[0]}
    return replace(other, steps=tuple(steps), parameters=parameters, checkpoints=checkpoints)


def make_manifest(golden: Golden) -> Manifest:
    """The manifest; the second parameter group comes first in the parameter vector.

    Args:
        golden: how the run is made.

    Returns:
        The manifest.
    """
    offsets = np.cumsum([0, *(int(np.prod(shape)) for shape in golden.shapes.values())]).tolist()
    places = [(1, 0), (0, 0), (0, 1)]
    entries = zip(golden.shapes.items(), offsets[:-1], places, strict=False)
    groups = ({"lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-8}, {"lr": 1e-4, "betas": [0.9, 0.999], "eps": 1e-8})
    return Manifest(
        created="2026-01-02T03:04:05+00:00",
        model=ModelEntry(
            source="somewhere/model",
            class_name="Model",
            fingerprint="ab" * 32,
            dtype=golden.dtype,
            forward_arguments={"use_cache": False},
            adapter=AdapterEntry(config={"peft_type": "LORA", "r": 4}, base_dtype="bfloat16")
            if golden.has_adapter
            else None,
            loss=golden.loss,
        ),
        parameters=tuple(
            ParameterEntry(name=name, shape=shape, offset=offset, group=group, index=index)
            for (name, shape), offset, (group, index) in entries
        ),
        optimizer=OptimizerEntry(name="AdamW8bit" if golden.has_codes else "AdamW", groups=groups),
        max_grad_norm=1.0,
        loss_divisor=2.0,
        padding_token=PADDING,
        numerics=NumericsEntry(
            device="cpu",
            device_name="a processor",
            threads=1,
            flush_denormal=False,
            deterministic=True,
            attention="eager",
            rng_bytes=RNG_BYTES,
            autocast="bfloat16" if golden.has_adapter else "float16" if golden.is_scaled else None,
        ),
        updates=golden.updates,
        gradients=golden.gradients,
        checkpoint_every=golden.checkpoint_every,
        planned_steps=golden.num_steps,
        data={"source": "rows.jsonl", "template": "Frage: {question}\nAntwort: „{answer}“"},
        tokenizer={"source": "somewhere/model"},
        training={"epochs": 2},
        environment={"lmcleaner": "0.1.0"},
        world_size=golden.world_size,
    )


def _sample(numbers: Numbers, length: int) -> Sample:
    tokens = numbers.whole(4, 19, length).astype(np.int32)
    return Sample(tokens, np.where(numbers.whole(0, 1, length), tokens, IGNORED_LABEL).astype(np.int32))


def _step(numbers: Numbers, pool: Sequence[Sample], world_size: int) -> StepRecord:
    ranks = range(world_size)
    return StepRecord(
        microbatches=tuple(_microbatch(numbers, pool, rank) for _ in range(numbers.one(1, 3)) for rank in ranks),
        lr=(numbers.fraction() / 1000, numbers.fraction() / 1000),
        gradient_norm=numbers.fraction(),
        seconds=numbers.fraction(),
    )


def _microbatch(numbers: Numbers, pool: Sequence[Sample], rank: int) -> MicrobatchRecord:
    """The first sample of the pool is in every one; padding comes before and behind."""
    samples = (pool[0], *(pool[number] for number in numbers.whole(0, len(pool) - 1, numbers.one(0, 2))))
    width = max(len(sample.tokens) for sample in samples) + numbers.one(0, 2)
    return MicrobatchRecord(
        samples=samples,
        starts=tuple(numbers.one(0, width - len(sample.tokens)) for sample in samples),
        width=width,
        has_mask=bool(numbers.one(0, 1)),
        denominator=float(numbers.one(1, 30)),
        loss=numbers.fraction() * 5,
        rng=numbers.data(RNG_BYTES) if numbers.one(0, 1) else b"",
        rank=rank,
    )


def _walk(numbers: Numbers, golden: Golden, count: int) -> Iterator[Bits]:
    """θ[0] to θ[τ]: multiples of 2^-16, each step a small one; every third θ holds strange numbers as well.

    Yields:
        Bit patterns.
    """
    values = numbers.whole(-(1 << 16), 1 << 16, -(-count // golden.stride))
    is_lossy = golden.updates in {"int8", "int4"}
    for step in range(golden.num_steps + 1):
        wide = np.zeros(count, np.float32)
        wide[:: golden.stride] = values * np.float32(2.0**-16)
        if step % 3 == 0:
            strange = STRANGE[3:] if is_lossy else STRANGE
            wide.view(np.uint32)[: len(strange)] = strange
        yield _bits(wide, golden.dtype)
        values = values + numbers.whole(-99, 99, len(values)) * (1 + np.arange(len(values)) // 100)


def _vector(numbers: Numbers, golden: Golden, count: int, dtype: str | None = None) -> Bits:
    values = np.zeros(count, np.float32)
    values[:: golden.stride] = numbers.whole(-999, 999, -(-count // golden.stride)) * np.float32(2.0**-14)
    return _bits(values, dtype or golden.dtype)


def _bits(values: NDArray[np.float32], dtype: str) -> Bits:
    """Bit patterns in the dtype; bfloat16 cuts the lower half off, uint8 takes a byte from the middle."""
    bits = values.view(np.uint32)
    if dtype == "uint8":
        return (bits >> 12).astype(np.uint8)
    if dtype == "bfloat16":
        return (bits >> 16).astype(np.uint16)
    if dtype == "float64":
        return np.asarray((bits.astype(np.uint64) << np.uint64(32)) | bits)
    return bits


def _checkpoint(numbers: Numbers, golden: Golden, step: int, parameters: Bits) -> Checkpoint:
    """As AdamW leaves it: no state before the first step, and none ever for the last parameter."""
    dtypes = {"exp_avg": golden.dtype, "exp_avg_sq": "float32"} if step else {}
    dtypes |= {"exp_avg_uint8": "uint8"} if step and golden.has_codes else {}
    present = np.full(len(golden.shapes), step > 0)
    present[-1] = False
    return Checkpoint(
        step=step,
        parameters=parameters,
        optimizer=OptimizerVectors(
            vectors={part: _vector(numbers, golden, len(parameters), dtype) for part, dtype in dtypes.items()},
            dtypes=dtypes,
            scalars={"step": np.where(present, float(step), 0.0)} if step else {},
            present=present,
        ),
        generators=numbers.data(GENERATOR_BYTES),
    )
