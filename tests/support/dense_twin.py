"""Dense matrices in float64, built row by row without padding or batches, and the tiny Llama that they are of."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
import transformers.models.llama.modeling_llama as llama
from torch import Tensor, nn
from torch.func import functional_call
from transformers import LlamaConfig, LlamaForCausalLM

from lmcleaner.choices import HessianMode
from lmcleaner.curvature.linearized import OPERATORS, curvature_product
from lmcleaner.formats.manifest import LossEntry, Manifest
from lmcleaner.formats.samples import IGNORED_LABEL, Sample
from lmcleaner.formats.steps import MicrobatchRecord, StepRecord
from lmcleaner.recording.describe import RunDescription, describe_run
from lmcleaner.training.replay import ReplayModel

CPU = torch.device("cpu")
MODES = list(OPERATORS)
TOLERANCE = 1e-8  # relative, L2

# Axes: batch = rows of a microbatch, seq = tokens of a padded row, target = counted tokens, vocab = vocabulary.


@dataclass(frozen=True)
class Size:
    """Size of a tiny Llama, and how its labels are smoothed."""

    layers: int
    tied: bool
    hidden: int = 8
    vocab: int = 11
    dropout: float = 0.0
    smoothing: float = 0.0

    @property
    def tolerance(self) -> float:
        """The label smoothing of transformers sums in float32."""
        return 1e-6 if self.smoothing else TOLERANCE


ONE_LAYER = Size(layers=1, tied=False)
TWO_LAYERS = Size(layers=2, tied=True)
SMALLEST = Size(layers=1, tied=False, hidden=4, vocab=5)
SMOOTHED = Size(layers=1, tied=False, smoothing=0.2)
DROPPING = Size(layers=1, tied=False, dropout=0.4)


def float64_norm(norm: Any, states: Tensor) -> Tensor:
    """LlamaRMSNorm without its detour through float32, which would hide errors below 1e-7."""
    scale: Tensor = norm.weight * states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)
    return scale


def float64_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_: object,
) -> tuple[Tensor, Tensor]:
    """Eager attention of transformers with its softmax in float64."""
    keys, values = (llama.repeat_kv(states, module.num_key_value_groups) for states in (key, value))
    scores = query @ keys.transpose(2, 3) * scaling
    weights = (scores if mask is None else scores + mask).softmax(dim=-1)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ values).transpose(1, 2).contiguous(), weights


def float64_loss(logits: Tensor, labels: Tensor, vocab_size: int, num_items_in_batch: Tensor, **_: object) -> Tensor:
    """The causal language model's loss of transformers, which would round logits to float32."""
    shifted = nn.functional.cross_entropy(
        logits[:, :-1].reshape(-1, vocab_size), labels[:, 1:].flatten(), reduction="sum"
    )
    return shifted / num_items_in_batch


def build_model(size: Size, attention: str) -> Any:
    """A Llama at a random point, where nothing is at a minimum and no weight is special."""
    config = LlamaConfig(
        vocab_size=size.vocab,
        hidden_size=size.hidden,
        intermediate_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=16,
        tie_word_embeddings=size.tied,
        attention_dropout=size.dropout,
    )
    config._attn_implementation = attention
    model: Any = LlamaForCausalLM(config).double()
    model.loss_function = float64_loss
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(0.4 * noise + (parameter.dim() == 1))  # a norm's weight is near one
    return model


def describe(model: Any, loss_divisor: float = 1.0, smoothing: float = 0.0) -> Manifest:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = LossEntry(name="label_smoothing", smoothing=smoothing) if smoothing else None
    return describe_run(model, optimizer, RunDescription(model_source="tiny", loss_divisor=loss_divisor, loss=loss))


@cache
def manifest_of(size: Size, attention: str, loss_divisor: float) -> Manifest:
    return describe(build_model(size, attention), loss_divisor, size.smoothing)


def build_replay(size: Size, attention: str, loss_divisor: float = 1.0) -> ReplayModel:
    return ReplayModel(build_model(size, attention), manifest_of(size, attention, loss_divisor), CPU)


def make_sample(length: int, num_unlabelled: int, vocab: int, seed: int) -> Sample:
    tokens = np.random.default_rng(seed).integers(1, vocab, length).astype(np.int32)
    return Sample(tokens, np.where(np.arange(length) < num_unlabelled, IGNORED_LABEL, tokens).astype(np.int32))


def make_samples(vocab: int) -> tuple[Sample, ...]:
    """Four rows with 4, 3, 1 and 0 targets."""
    return tuple(make_sample(length, n, vocab, seed=length) for length, n in ((6, 2), (4, 1), (5, 4), (3, 3)))


STARTS = (0, 2, 0, 1)  # padding left, right, on both sides, and none
DENOMINATOR = 8.0  # all targets of `make_samples`


def microbatch(
    samples: Sequence[Sample], starts: Sequence[int], width: int, *, has_mask: bool = True, rng: bytes = b""
) -> MicrobatchRecord:
    return MicrobatchRecord(
        samples=tuple(samples),
        starts=tuple(starts),
        width=width,
        has_mask=has_mask,
        denominator=DENOMINATOR,
        loss=0.0,
        rng=rng,
    )


def step_of(*microbatches: MicrobatchRecord) -> StepRecord:
    return StepRecord(microbatches=microbatches, lr=(0.1,), gradient_norm=0.0, seconds=0.0)


def whole_step(vocab: int, rng: bytes = b"") -> StepRecord:
    """All four rows in one microbatch."""
    return step_of(microbatch(make_samples(vocab), STARTS, 6, rng=rng))


def parameters_of(replay: ReplayModel) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in replay.parameters]


def random_vector(replay: ReplayModel, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in replay.parameters]


def flat(tensors: Sequence[Tensor | None]) -> Tensor:
    """One vector; fails on a gradient that is missing."""
    assert all(part is not None for part in tensors)
    return torch.cat([part.reshape(-1) for part in tensors if part is not None])


def shaped(replay: ReplayModel, vector: Tensor) -> list[Tensor]:
    entries = replay.manifest.parameters
    return [vector[e.offset : e.offset + e.num_elements].view(e.shape) for e in entries]


def multiply(
    replay: ReplayModel, mode: HessianMode, step: StepRecord, vector: Sequence[Tensor], **options: Any
) -> Tensor:
    """The product under test, as one vector."""
    damping = options.pop("damping", 0.0)
    return flat(curvature_product(replay, mode, step, parameters_of(replay), vector, damping, **options))


def assert_close(found: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    assert (found - expected).norm() <= tolerance * expected.norm()


@dataclass(frozen=True)
class Twin:
    """Dense gradient and curvature of the same loss, the slow and obvious way."""

    gradient: Tensor
    matrices: dict[HessianMode, Tensor]


def row_logits(replay: ReplayModel, vector: Tensor, sample: Sample, start: int) -> Tensor:
    """Logits that predict the row's targets, from the row alone without padding; `[target, vocab]`."""
    names = [entry.name for entry in replay.manifest.parameters]
    arguments = {
        "input_ids": torch.from_numpy(sample.tokens.astype(np.int64))[None],
        "position_ids": torch.arange(start, start + len(sample.tokens))[None],
        "use_cache": False,
    }
    parameters = dict(zip(names, shaped(replay, vector), strict=True))
    logits: Tensor = functional_call(replay.module, parameters, (), arguments).logits[0]
    return logits[:-1][torch.from_numpy(sample.labels[1:] != IGNORED_LABEL)]


def summed_loss(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Summed over the targets; smoothed, each is shared with the whole vocabulary."""
    wanted = (1 - smoothing) * nn.functional.one_hot(targets, logits.shape[-1]) + smoothing / logits.shape[-1]
    return -(wanted * logits.log_softmax(dim=-1)).sum()


def row_loss(logits: Tensor, sample: Sample, smoothing: float) -> Tensor:
    labels = torch.from_numpy(sample.labels[1:].astype(np.int64))
    return summed_loss(logits, labels[labels != IGNORED_LABEL], smoothing)


@cache
def make_twin(size: Size, kept: tuple[int, ...] = (0, 1, 2, 3)) -> Twin:
    replay = build_replay(size, "eager")
    samples = make_samples(size.vocab)
    labels = np.concatenate([samples[row].labels[1:] for row in kept])
    targets = torch.from_numpy(labels[labels != IGNORED_LABEL].astype(np.int64))

    def logits(vector: Tensor) -> Tensor:
        return torch.cat([row_logits(replay, vector, samples[row], STARTS[row]) for row in kept])

    def loss(vector: Tensor) -> Tensor:
        return summed_loss(logits(vector), targets, size.smoothing) / DENOMINATOR

    def row_losses(vector: Tensor) -> Tensor:
        return torch.stack([
            row_loss(row_logits(replay, vector, samples[row], STARTS[row]), samples[row], size.smoothing)
            for row in kept
        ])

    point = flat(parameters_of(replay))
    hessian = torch.autograd.functional.hessian(loss, point, vectorize=True)
    jacobian = torch.autograd.functional.jacobian(logits, point, vectorize=True).reshape(-1, len(point))
    outputs = logits(point).detach().softmax(dim=-1)
    blocks = torch.block_diag(*(torch.diag(p) - torch.outer(p, p) for p in outputs)) / DENOMINATOR
    gradient = torch.autograd.functional.jacobian(loss, point)
    of_rows = torch.autograd.functional.jacobian(row_losses, point, vectorize=True)
    matrices = {
        HessianMode.EXACT: hessian,
        HessianMode.GGN: jacobian.T @ blocks @ jacobian,
        HessianMode.EMPIRICAL_FISHER: of_rows.T @ of_rows / DENOMINATOR,
    }
    return Twin(gradient=gradient, matrices=matrices)
