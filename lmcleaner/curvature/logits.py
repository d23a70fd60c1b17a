"""The logits that the loss counts, and their derivative in a direction.

Axes: target = counted tokens of the microbatch, vocab = vocabulary.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call

from lmcleaner.curvature.kernels import twice_differentiable
from lmcleaner.formats.samples import IGNORED_LABEL
from lmcleaner.training.batches import Inputs
from lmcleaner.training.numerics import restore_rng, rng_state
from lmcleaner.training.replay import ReplayModel


def directional_logits(
    replay: ReplayModel, inputs: Inputs, vector: Sequence[Tensor], extra: Mapping[str, Any]
) -> tuple[Tensor, Tensor]:
    """Logits of the targets and their derivative in direction v, without a graph.

    Args:
        replay: the model, at the parameters that it points to.
        inputs: forward arguments.
        vector: v, one tensor for each parameter.
        extra: further forward arguments.

    Returns:
        Both `[target, vocab]`; the random number generators are left as they were.
    """
    state = rng_state(replay.device)
    names = [entry.name for entry in replay.manifest.parameters]
    without_labels = {name: value for name, value in inputs.items() if name not in {"labels", "num_items_in_batch"}}
    with torch.no_grad(), forward_ad.dual_level(), twice_differentiable(replay.module):
        duals = {
            name: forward_ad.make_dual(parameter.detach(), direction)
            for name, parameter, direction in zip(names, replay.parameters, vector, strict=True)
        }
        output = functional_call(replay.module, duals, (), {**without_labels, **extra, "use_cache": False})
        logits, tangents = forward_ad.unpack_dual(target_logits(output.logits, inputs))
    restore_rng(state, replay.device)  # the backward pass that follows must drop what this pass dropped
    return logits, tangents


def target_logits(logits: Tensor, inputs: Inputs) -> Tensor:
    """Logits that predict a counted token, in float32 at least, as the loss takes them.

    Args:
        logits: of the model, `[batch, seq, vocab]`.
        inputs: forward arguments, with `labels`.

    Returns:
        `[target, vocab]`.
    """
    targets = inputs["labels"][:, 1:] != IGNORED_LABEL
    selected = logits[:, :-1][targets]
    return selected.float() if selected.dtype in {torch.bfloat16, torch.float16} else selected
