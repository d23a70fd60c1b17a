"""From the arguments of a training forward pass to what the log holds of it."""

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lmcleaner.formats.errors import UsageError
from lmcleaner.formats.samples import IGNORED_LABEL, Sample
from lmcleaner.formats.steps import MicrobatchRecord
from lmcleaner.recording.packing import BOUNDARIES, check_alone, packed_samples
from lmcleaner.training.adapters import without_adapter

# They change what the model returns beside the loss, never the loss.
HARMLESS = {"return_dict", "use_cache", "output_attentions", "output_hidden_states"}
RECORDED = {"input_ids", "labels", "attention_mask", "position_ids", "num_items_in_batch"} | BOUNDARIES

IntMatrix = NDArray[np.int64]


def arguments_of(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a forward pass by their names, however they were given.

    Args:
        module: the model.
        args: positional arguments.
        kwargs: keyword arguments.

    Returns:
        Name -> value; without those that were left to their defaults.
    """
    if not args:
        return dict(kwargs)
    names = list(inspect.signature(without_adapter(module).forward).parameters)
    return {**dict(zip(names, args, strict=False)), **kwargs}


def microbatch_record(
    arguments: dict[str, Any], known: dict[str, Any], padding_token: int, loss: float, rng: bytes
) -> MicrobatchRecord:
    """What a log holds of one forward pass.

    Args:
        arguments: keyword arguments of the forward pass: `input_ids`, `labels` and perhaps `attention_mask` or
            `position_ids`, int64 `[batch, seq]`, and perhaps `num_items_in_batch`, the number of tokens that the whole
            step counts. With `position_ids` the rows are packed.
        known: further arguments that the log's manifest already holds.
        padding_token: token id in the padding.
        loss: of the pass.
        rng: state of the generators before the pass, or empty.

    Returns:
        The record. Without `num_items_in_batch` the denominator is the number of targets of the microbatch, over which
        the model takes the mean.

    Raises:
        UsageError: an argument that replay couldn't reproduce.
    """
    _refuse_unknown(arguments, known)
    tokens, labels = _matrix(arguments, "input_ids"), _matrix(arguments, "labels")
    has_mask = arguments.get("attention_mask") is not None
    packed = arguments.get("position_ids") is not None
    if packed:
        check_alone(arguments)
        starts, samples = packed_samples(tokens, labels, _matrix(arguments, "position_ids"), padding_token)
    else:
        mask = _matrix(arguments, "attention_mask") if has_mask else np.ones_like(tokens)
        starts, samples = _unpadded(tokens, labels, mask, padding_token)
    items = arguments.get("num_items_in_batch")
    return MicrobatchRecord(
        samples=samples,
        starts=starts,
        width=tokens.shape[1],
        has_mask=has_mask,
        denominator=float(items) if items is not None else float(np.count_nonzero(labels[:, 1:] != IGNORED_LABEL)),
        loss=loss,
        rng=rng,
        packed=packed,
    )


def _refuse_unknown(arguments: dict[str, Any], known: dict[str, Any]) -> None:
    held = RECORDED if arguments.get("position_ids") is not None else RECORDED - BOUNDARIES
    for name, value in arguments.items():
        if name in held or name in HARMLESS or value is None:
            continue
        if isinstance(value, Tensor) or known.get(name) != value:
            raise UsageError(
                f"a forward argument that a log can't hold: {name}: expected only {sorted(RECORDED)}",
                hint="leave it out, or give it to the recorder as one of its forward_arguments if it never changes",
            )


def _matrix(arguments: dict[str, Any], name: str) -> IntMatrix:
    value = arguments.get(name)
    if not isinstance(value, Tensor) or value.dim() != 2 or value.dtype not in {torch.int64, torch.int32, torch.bool}:
        raise UsageError(f"{name}: expected an integer tensor [batch, seq] as keyword argument, found {type(value)}")
    return value.detach().cpu().numpy().astype(np.int64)


def _unpadded(
    tokens: IntMatrix, labels: IntMatrix, mask: IntMatrix, padding_token: int
) -> tuple[tuple[int, ...], tuple[Sample, ...]]:
    """Start and content of the one sample in each padded row."""
    seen, places = mask != 0, np.arange(mask.shape[1])
    starts = seen.argmax(axis=1)
    stops = starts + seen.sum(axis=1)
    unbroken = (places >= starts[:, np.newaxis]) & (places < stops[:, np.newaxis])
    if np.any(starts == stops) or np.any(seen != unbroken):
        raise UsageError("attention_mask: expected one unbroken run of ones in each row")
    padding, ignored = tokens[~seen], labels[~seen]
    if np.any(ignored != IGNORED_LABEL) or np.any(padding != padding_token):
        raise UsageError(
            f"padding: expected token {padding_token} and label {IGNORED_LABEL}, found {set(padding.tolist())} "
            f"and {set(ignored.tolist())}",
            hint="tell the recorder the token that the collator pads with",
        )
    pairs = zip(tokens.astype(np.int32), labels.astype(np.int32), starts.tolist(), stops.tolist(), strict=True)
    samples = tuple(Sample(row[start:stop], wanted[start:stop]) for row, wanted, start, stop in pairs)
    return tuple(starts.tolist()), samples
