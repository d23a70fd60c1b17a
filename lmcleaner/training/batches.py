"""From a logged microbatch to the tensors that the model was given, with or without the forgotten rows.

Axes: batch = rows of the microbatch, seq = tokens of a padded row.
"""

from collections.abc import Callable, Iterator, Sequence, Set

import numpy as np
import torch
from torch import Tensor

from lmcleaner.choices import Denominator
from lmcleaner.formats.errors import InsufficientLogError
from lmcleaner.formats.samples import IGNORED_LABEL
from lmcleaner.formats.steps import MicrobatchRecord, StepRecord

Inputs = dict[str, Tensor]
Digests = Set[bytes]
NOTHING: Digests = frozenset()


def step_inputs(
    step: StepRecord,
    padding_token: int,
    device: torch.device,
    forgotten: Digests = NOTHING,
    denominator: Denominator = Denominator.LOGGED,
) -> list[Inputs]:
    """Forward arguments of every microbatch of a step.

    A forgotten row becomes a row of padding of the same length without labels. Its gradient is exactly zero, and since
    every shape stays as it was, so does the order of summation: the retained rows give the bits that they would have
    given beside the forgotten row's tokens with masked labels. So does a forgotten sample of a packed row, whose place
    and positions stay: no other sample of the row sees its tokens.

    Args:
        step: the logged step.
        padding_token: token id that fills padding.
        device: where the tensors shall lie.
        forgotten: digests of the samples to leave out.
        denominator: what to divide the loss by where rows are left out.

    Returns:
        For each microbatch `input_ids`, `labels` and, where the run had them, `attention_mask` or `position_ids`, int64
        `[batch, seq]`, and `num_items_in_batch`, float32 `[]`.

    Raises:
        InsufficientLogError: the logged denominator isn't a count of labels, so the retained rows' can't be known.
    """
    denominators = [microbatch.denominator for microbatch in step.microbatches]
    if denominator is Denominator.RETAINED and holds_forgotten(step, forgotten):
        denominators = _retained_denominators(step, forgotten)
    return [
        _microbatch_inputs(microbatch, divisor, padding_token, device, forgotten)
        for microbatch, divisor in zip(step.microbatches, denominators, strict=True)
    ]


def row_parts(inputs: Inputs, count: int) -> Iterator[Inputs]:
    """Cuts a microbatch into parts of its rows; losses and gradients of the parts add up to the whole's.

    Args:
        inputs: forward arguments of a microbatch.
        count: number of parts, if there are as many rows.

    Yields:
        Forward arguments of some rows, with the whole microbatch's denominator.
    """
    num_rows = len(inputs["input_ids"])
    size = -(-num_rows // count)
    for start in range(0, num_rows, size):
        yield {name: value[start : start + size] if value.dim() else value for name, value in inputs.items()}


def holds_forgotten(step: StepRecord, forgotten: Digests) -> bool:
    """Whether any row of the step is in the forget set."""
    return bool(forgotten) and any(sample.digest in forgotten for sample in step.samples)


def _microbatch_inputs(
    microbatch: MicrobatchRecord, denominator: float, padding_token: int, device: torch.device, forgotten: Digests
) -> Inputs:
    shape = microbatch.num_rows, microbatch.width
    tokens = np.full(shape, padding_token, np.int64)
    labels = np.full(shape, IGNORED_LABEL, np.int64)
    mask, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for row, sample, start in zip(microbatch.rows, microbatch.samples, microbatch.starts, strict=True):
        place = slice(start, start + len(sample.tokens))
        mask[row, place] = 1
        positions[row, place] = np.arange(len(sample.tokens))
        if sample.digest not in forgotten:
            tokens[row, place] = sample.tokens
            labels[row, place] = sample.labels
    arrays = {"input_ids": tokens, "labels": labels} | ({"attention_mask": mask} if microbatch.has_mask else {})
    arrays |= {"position_ids": positions} if microbatch.packed else {}
    inputs = {name: torch.from_numpy(values).to(device) for name, values in arrays.items()}
    return inputs | {"num_items_in_batch": torch.tensor(denominator, dtype=torch.float32, device=device)}


def _num_labels(microbatch: MicrobatchRecord, number: int) -> int:
    return int(np.count_nonzero(microbatch.samples[number].labels != IGNORED_LABEL))


def _retained_denominators(step: StepRecord, forgotten: Digests) -> list[float]:
    """Counts the retained samples as the run counted all: with or without the first token, by one of the `_parts`."""
    logged = [microbatch.denominator for microbatch in step.microbatches]
    for count in (MicrobatchRecord.num_targets, _num_labels):
        for parts in _parts(step):
            # A step, or a microbatch, without a row that counts sums over nothing: 0 / 1 rather than 0 / 0. In a
            # redacted log that is so from the start.
            if [max(1.0, value) for value in _denominators(step, count, NOTHING, parts)] == logged:
                return [max(1.0, value) for value in _denominators(step, count, forgotten, parts)]
    raise InsufficientLogError(
        f"the logged denominator is not a count of the rows' labels: found {logged}",
        hint="use --denominator logged",
    )


def _parts(step: StepRecord) -> list[list[int]]:
    """For each microbatch which part of the step it counts in: the whole step, its process's part, or itself."""
    count = len(step.microbatches)
    return [[0] * count, [microbatch.rank for microbatch in step.microbatches], list(range(count))]


def _denominators(
    step: StepRecord, count: Callable[[MicrobatchRecord, int], int], forgotten: Digests, parts: Sequence[int]
) -> list[float]:
    counts = [
        float(sum(count(microbatch, n) for n, s in enumerate(microbatch.samples) if s.digest not in forgotten))
        for microbatch in step.microbatches
    ]
    sums = dict.fromkeys(parts, 0.0)
    for part, number in zip(parts, counts, strict=True):
        sums[part] += number
    return [sums[part] for part in parts]
