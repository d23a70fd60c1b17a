"""The manifest: what a log says of its run before the first step, and never changes afterwards."""

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Literal, Self, TypeVar

from lmcleaner.formats.bits import BIT_DTYPES
from lmcleaner.formats.canonical import json_digest
from lmcleaner.formats.documents import Json, problem_of
from lmcleaner.formats.errors import DamagedError, VersionError
from lmcleaner.formats.layout import SCHEMA, VERSION

CodecName = Literal["lossless", "int8", "int4", "none"]
LossName = Literal["label_smoothing", "trl_nll", "trl_dft", "own"]
Entry = TypeVar("Entry")

# A document has these only where they say something else than what holds otherwise.
_OTHERWISE: dict[tuple[str, ...], object] = {
    ("world_size",): 1,
    ("model", "adapter"): None,
    ("model", "loss"): None,
    ("numerics", "autocast"): None,
    ("numerics", "warn_only"): False,
    ("numerics", "matmul"): "ieee",
    ("numerics", "cublas_workspace"): None,
}

MAX_ELEMENTS = 1 << 38  # of a parameter vector; more than any model that is trained in one process has


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterEntry:
    """One trainable parameter, in the order of `model.parameters()`.

    Attributes:
        name: name in the model.
        shape: tensor shape.
        offset: elements before it in a parameter vector.
        group: index of its optimizer group.
        index: position within that group.
    """

    name: str
    shape: tuple[int, ...]
    offset: int
    group: int
    index: int

    @property
    def num_elements(self) -> int:
        """Number of scalars."""
        product = 1
        for extent in self.shape:
            product *= extent
        return product


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerEntry:
    """The optimizer's class and all its hyperparameters.

    Attributes:
        name: class in `torch.optim`.
        groups: hyperparameters of each parameter group, without the parameters; lr as of the first step's construction.
    """

    name: str
    groups: tuple[Json, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NumericsEntry:
    """What decides the last bit of a training step, besides the inputs.

    Attributes:
        device: device type, "cpu" or "cuda".
        device_name: processor or accelerator model.
        threads: intra-op threads of torch.
        flush_denormal: whether denormal numbers are flushed to zero.
        deterministic: whether torch was told to use deterministic algorithms.
        attention: attention implementation of the model.
        rng_bytes: bytes of one row of rng/states.
        autocast: dtype that forward passes were cast to by torch's autocast, "bfloat16" or "float16"; None without it.
        warn_only: whether it was told to warn, and take another one, where an operation has none.
        matmul: precision in which float32 matrices are multiplied on the device, "ieee", "tf32" or "bf16".
        cublas_workspace: CUBLAS_WORKSPACE_CONFIG of a run on a GPU, if it was set.
    """

    device: str
    device_name: str
    threads: int
    flush_denormal: bool
    deterministic: bool
    attention: str
    rng_bytes: int
    autocast: str | None = None
    warn_only: bool = False
    matmul: str = "ieee"
    cublas_workspace: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterEntry:
    """What PEFT put into the base model; the trained parameters are the adapter's.

    Attributes:
        config: as PEFT writes it into adapter_config.json.
        base_dtype: dtype of the base model, "float32", "bfloat16", "float16" or "float64".
    """

    config: Json
    base_dtype: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LossEntry:
    """A loss that the trainer computed from what the model returned.

    Attributes:
        name: "label_smoothing" of transformers' `LabelSmoother`; "trl_nll" or "trl_dft" of TRL's `SFTTrainer`, from the
            log-probabilities of its fused head; "own" of a function that nobody else knows, so that the run can't be
            replayed.
        smoothing: factor ε of label smoothing, at most 1; 0 with other losses.
    """

    name: LossName
    smoothing: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEntry:
    """The base model.

    Attributes:
        source: directory or name that it was loaded from.
        class_name: class in transformers.
        fingerprint: SHA-256 over names, shapes and bytes of all its tensors before training; with an adapter, of those
            that aren't trained.
        dtype: dtype of the trainable parameters, "float32", "bfloat16" or "float64".
        forward_arguments: keyword arguments besides tensors that each training forward pass was given.
        adapter: of PEFT; None where the model's own parameters are trained.
        loss: what the trainer took the gradient of; None where that was the loss that the model returned.
    """

    source: str
    class_name: str
    fingerprint: str
    dtype: str
    forward_arguments: Json
    adapter: AdapterEntry | None = None
    loss: LossEntry | None = None


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All that a log says of its run before the first step.

    Attributes:
        created: UTC time, ISO 8601.
        model: the base model.
        parameters: trainable parameters in the order of the parameter vector.
        optimizer: class and hyperparameters.
        max_grad_norm: clip threshold of the gradient's L2 norm, or None where the run doesn't clip.
        loss_divisor: what a microbatch's loss was divided by after the model returned it.
        padding_token: token id in the padding of a microbatch.
        numerics: what decides the last bit.
        updates: codec of the updates.
        gradients: codec of the gradients that the optimizer was given.
        checkpoint_every: steps between checkpoints.
        planned_steps: steps that the run means to take, or None where it didn't say.
        data: source, split, digest and template of the rows.
        tokenizer: source and digest.
        training: the run's own options, for people; replay doesn't read them.
        environment: versions of the libraries.
        world_size: processes that trained together, each on microbatches of its own; their gradients were averaged.
    """

    created: str
    model: ModelEntry
    parameters: tuple[ParameterEntry, ...]
    optimizer: OptimizerEntry
    max_grad_norm: float | None
    loss_divisor: float
    padding_token: int
    numerics: NumericsEntry
    updates: CodecName
    gradients: CodecName
    checkpoint_every: int
    planned_steps: int | None
    data: Json
    tokenizer: Json
    training: Json
    environment: Json
    world_size: int = 1

    @property
    def whole_divisor(self) -> float:
        """What a microbatch's loss is divided by in all: by its loop, and where gradients are averaged."""
        return self.loss_divisor * self.world_size

    @cached_property
    def num_elements(self) -> int:
        """Length of a parameter vector."""
        return sum(entry.num_elements for entry in self.parameters)

    @property
    def vector_bytes(self) -> int:
        """What a parameter vector takes."""
        return self.num_elements * BIT_DTYPES[self.model.dtype].itemsize

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest's canonical JSON."""
        return json_digest(self.to_json())

    def to_json(self) -> Json:
        """The manifest as it is stored in the log's root attributes."""
        plain: Json = json.loads(json.dumps(asdict(self)))  # tuples become lists, as JSON has it
        for (*parts, name), usual in _OTHERWISE.items():
            entry = plain[parts[0]] if parts else plain
            if entry[name] == usual:
                del entry[name]
        return {"schema": SCHEMA, "version": VERSION, **plain}

    @classmethod
    def from_json(cls, document: Json, where: str) -> Self:
        """Checks a stored manifest and builds the record.

        Args:
            document: the log's root attributes; unknown fields are ignored.
            where: the log, for messages.

        Returns:
            The manifest.

        Raises:
            DamagedError: the document breaks its schema.
            VersionError: it was written by a later major version.
        """
        _check(document, where)
        known = {name: document[name] for name in cls.__dataclass_fields__ if name in document}
        return cls(
            **known
            | {
                "model": _model(document["model"]),
                "parameters": tuple(
                    _entry(ParameterEntry, entry | {"shape": tuple(entry["shape"])}) for entry in document["parameters"]
                ),
                "optimizer": OptimizerEntry(
                    name=document["optimizer"]["name"], groups=tuple(document["optimizer"]["groups"])
                ),
                "numerics": _entry(NumericsEntry, document["numerics"]),
            }
        )


def _entry(kind: type[Entry], values: Json) -> Entry:
    """Builds a record from the fields that it knows; the schema was asked which must be there."""
    known = kind.__dataclass_fields__  # type: ignore[attr-defined]
    return kind(**{name: value for name, value in values.items() if name in known})


def _model(values: Json) -> ModelEntry:
    kinds: dict[str, type[AdapterEntry | LossEntry]] = {"adapter": AdapterEntry, "loss": LossEntry}
    entries = {name: _entry(kind, values[name]) for name, kind in kinds.items() if values.get(name) is not None}
    return _entry(ModelEntry, values | entries)


def _check(document: Json, where: str) -> None:
    if document.get("version") != VERSION:
        raise VersionError(
            f"unknown version of a training log: {where}: expected {VERSION}, found {document.get('version')!r}",
            hint="a later release of lmcleaner wrote this log; upgrade to read it",
        )
    problem = problem_of(document, "manifest.schema.json") or _problem_of_parameters(document)
    if problem is not None:
        raise DamagedError(f"the log's manifest is damaged: {where}: {problem}")


def _problem_of_parameters(document: Json) -> str | None:
    """What a schema can't say: each parameter has its own name and place, and begins where the one before ends."""
    expected, names, places = 0, set(), set()
    for number, entry in enumerate(document["parameters"]):
        name, place = entry["name"], (entry["group"], entry["index"])
        if entry["offset"] != expected or name in names or place in places:
            return f"$.parameters[{number}]: expected offset {expected}, and a name and a place in a group of its own"
        if entry["group"] >= len(document["optimizer"]["groups"]):
            return f"$.parameters[{number}].group: expected one of {len(document['optimizer']['groups'])} groups"
        names.add(name)
        places.add(place)
        expected += _entry(ParameterEntry, entry).num_elements
    return None if expected <= MAX_ELEMENTS else f"$.parameters: expected at most {MAX_ELEMENTS} elements"
