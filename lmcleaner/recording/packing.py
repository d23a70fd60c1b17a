"""Packed rows: several samples one behind the other, told apart by `position_ids` that begin again at 0 with each."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmcleaner.formats.errors import UsageError
from lmcleaner.formats.samples import IGNORED_LABEL, Sample

# What collators say beside `position_ids`; it follows from them, so that a log needn't hold it.
BOUNDARIES = {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx"}
_PADDED = "train without packing: with a collator that pads, and packing=False and padding_free=False of TRL"

IntMatrix = NDArray[np.int64]


def packed_samples(
    tokens: IntMatrix, labels: IntMatrix, positions: IntMatrix, padding_token: int
) -> tuple[tuple[int, ...], tuple[Sample, ...]]:
    """Start and content of each sample, row by row.

    Args:
        tokens: int64 `[batch, seq]`.
        labels: likewise.
        positions: likewise, of each token in its sample.
        padding_token: token id of what may stand at the end of a row, with position 0 and without a label.

    Returns:
        Tokens of the row before each sample, and the samples.

    Raises:
        UsageError: the positions are others, or the loss of a sample isn't its own.
    """
    if positions.shape != tokens.shape:
        raise UsageError(f"position_ids: expected the shape of input_ids, {tokens.shape}, found {positions.shape}")
    starts, samples = list[int](), list[Sample]()
    for row, (content, targets, places) in enumerate(zip(tokens, labels, positions, strict=True)):
        is_padding = (content == padding_token) & (targets == IGNORED_LABEL) & (places == 0)
        stop = int(np.flatnonzero(~is_padding).max(initial=-1)) + 1
        begins = np.flatnonzero(places[:stop] == 0)
        _check_positions(row, places[:stop])
        _check_labels(row, targets, begins[1:])
        for start, end in zip(begins, [*begins[1:], stop], strict=True):
            samples.append(Sample(content[start:end].astype(np.int32), targets[start:end].astype(np.int32)))
        starts += begins.tolist()
    return tuple(starts), tuple(samples)


def check_alone(arguments: Mapping[str, Any]) -> None:
    """Makes sure that nothing but `position_ids` says which tokens see each other.

    Args:
        arguments: of a forward pass with `position_ids`, by name.

    Raises:
        UsageError: there is a mask, or the boundaries of the samples are said to be others.
    """
    if arguments.get("attention_mask") is not None:
        raise UsageError(
            "position_ids beside an attention mask, with which the samples of a packed row attend to each other: "
            "expected one or the other",
            hint=f"leave the mask out where rows are packed, or {_PADDED}",
        )
    positions = arguments["position_ids"]
    for name in sorted(BOUNDARIES & set(arguments)):
        found, expected = arguments[name], _boundary(name, positions)
        if found is not None and not torch.equal(torch.as_tensor(found).cpu().long(), expected):
            raise UsageError(f"{name}: expected what follows from position_ids, {expected.tolist()}, found {found}")


def check_apart(arguments: Mapping[str, Any], output: Any) -> None:
    """Makes sure that the samples of packed rows didn't see each other.

    Args:
        arguments: of a forward pass, by name.
        output: what the model returned.

    Raises:
        UsageError: the model filled a cache, beside which transformers ignores where `position_ids` begin again.
    """
    if arguments.get("position_ids") is not None and getattr(output, "past_key_values", None) is not None:
        raise UsageError(
            "packed rows, and a model that fills a cache: with one the samples of a row attend to each other",
            hint="give the model use_cache=False, or set model.config.use_cache = False, as Trainer does",
        )


def _check_positions(row: int, places: NDArray[np.int64]) -> None:
    goes_on = (np.diff(places) == 1) | (places[1:] == 0)
    if not len(places) or places[0] or not goes_on.all():
        raise UsageError(
            f"position_ids: row {row}: expected them to begin at 0 with each sample and to rise by one, found "
            f"{places[:8].tolist()}",
            hint=_PADDED,
        )


def _check_labels(row: int, labels: NDArray[np.int64], later: NDArray[np.int64]) -> None:
    """Of the first tokens of the samples that stand behind another one."""
    labelled = later[labels[later] != IGNORED_LABEL]
    if len(labelled):
        raise UsageError(
            f"packed rows: row {row}, token {labelled[0]}: expected label {IGNORED_LABEL} on the first token of a "
            f"sample behind another, which would have to predict it, found {labels[labelled[0]]}",
            hint="mask that label, as DataCollatorWithFlattening and TRL do",
        )


def _boundary(name: str, positions: Tensor) -> Tensor:
    """What a collator says of one row's samples; every padding token counts as one."""
    begins = positions.cpu() == 0
    if name == "seq_idx":
        return begins.cumsum(-1) - 1
    edges = torch.cat([begins.flatten().nonzero().flatten(), torch.tensor([begins.numel()])])
    return edges if name.startswith("cu_seq_lens") else edges.diff().max()
