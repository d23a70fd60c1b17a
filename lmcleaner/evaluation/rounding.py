"""Weights as a deployment rounds them; the model then computes with the rounded ones in its own dtype.

Axes: out, in = channels of a layer's weights.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from lmcleaner.choices import Rounding
from lmcleaner.training.adapters import is_adapted

LEVELS = {Rounding.INT8: 127, Rounding.INT4: 7}  # largest code
_TRANSPOSED = "Conv1D"  # of transformers, in GPT-2: a linear layer whose weight is `[in, out]`


def rounded_weight(weight: Tensor, levels: int, axis: int = 0) -> Tensor:
    """Rounds to the nearest of 2 · levels + 1 values, evenly spaced around 0, in each output channel.

    q = round(w / s), ŵ = q · s, with s = max |w| of the channel / levels; Jacob et al., "Quantization and Training of
    Neural Networks for Efficient Integer-Arithmetic-Only Inference", 2018, §2.1, with a zero point of 0.

    Args:
        weight: `[out, in]`, floating-point.
        levels: 127 for int8, 7 for int4.
        axis: where the output channels are; 1 for `[in, out]`.

    Returns:
        ŵ, of the same shape and dtype, at most s / 2 from the weight, and the same if it is rounded again; zeros stay.
    """
    exact = weight.detach().double()
    scales = exact.abs().amax(1 - axis, keepdim=True) / levels
    scales = torch.where(scales == 0, 1.0, scales)
    return (torch.round(exact / scales) * scales).to(weight.dtype)


def rounded_model(model: nn.Module, rounding: Rounding) -> nn.Module:
    """A copy of a model with rounded weights.

    bf16 rounds all parameters. int8 and int4 round the weights of linear layers, but neither embeddings nor the output
    head, as bitsandbytes, torchao and GPTQ do in transformers; these, norms and biases stay as they are. An adapter is
    merged into its base model first, since it would escape the rounding.

    Args:
        model: a causal language model of transformers, or one that PEFT wraps.
        rounding: which.

    Returns:
        The copy; it shares no memory with the model.
    """
    copied: Any = copy.deepcopy(model)
    if is_adapted(copied):
        copied = copied.merge_and_unload().requires_grad_(True)  # whose gradients the metrics take
    with torch.no_grad():
        if rounding is Rounding.BF16:
            for parameter in copied.parameters():
                parameter.copy_(parameter.bfloat16())
        else:
            for weight, axis in _linear_weights(copied):
                weight.copy_(rounded_weight(weight, LEVELS[rounding], axis))
    rounded: nn.Module = copied
    return rounded


def _linear_weights(model: Any) -> list[tuple[Tensor, int]]:
    """Weights of linear layers but the output head, with the axis of their output channels."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    kept = [id(end.weight) for end in ends if end is not None]
    transposed = [module for module in model.modules() if type(module).__name__ == _TRANSPOSED]
    plain = [module for module in model.modules() if isinstance(module, nn.Linear)]
    found = [(module.weight, 0) for module in plain] + [(module.weight, 1) for module in transposed]
    return [(weight, axis) for weight, axis in found if id(weight) not in kept]
