"""Kernels that curvature can differentiate through, instead of those that it can't, or only slowly."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from lmcleaner.curvature.attention import attention
from lmcleaner.curvature.constants import add, multiply
from lmcleaner.curvature.softmax import log_softmax, logsumexp, softmax
from lmcleaner.formats.errors import UsageError


@contextmanager
def twice_differentiable(module: nn.Module) -> Iterator[None]:
    """Makes attention, layer norms and the loss differentiable twice, backwards and forwards, inside the block.

    Fused attention kernels have neither a double backward nor a forward derivative: `attention` stands for torch's, and
    a transformers model that computes with none of torch's takes `eager` attention. Where a function of torch's calls
    its own attention out of our sight, as that of `nn.MultiheadAttention` does, it takes its unfused kernel.

    Args:
        module: the model.

    Yields:
        Nothing.

    Raises:
        UsageError: the model has a function of its own without such derivatives.
    """
    before = getattr(getattr(module, "config", None), "_attn_implementation", None)
    choose = getattr(module, "set_attn_implementation", None) if before not in {None, "sdpa"} else None
    try:
        if choose is not None:
            choose("eager")
        with sdpa_kernel(SDPBackend.MATH), _Kernels():
            yield
    except (NotImplementedError, RuntimeError) as error:
        if not isinstance(error, NotImplementedError) and "derivative for" not in str(error):
            raise
        raise UsageError(
            f"the model computes with something that can't be differentiated twice: {type(module).__name__}: {error}",
            hint="use --hessian-mode secant, which takes plain gradients alone",
        ) from error
    finally:
        if choose is not None:
            choose(before)


class _Kernels(TorchFunctionMode):
    """Takes softmax and its kin, layer norms, products and sums by our own functions."""

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Calls the function, or ours for it."""
        return _OWN.get(func, func)(*args, **(kwargs or {}))


def _cross_entropy(logits: Tensor, labels: Tensor, **options: Any) -> Tensor:
    """All options come by name: so torch hands on its call."""
    is_plain = options["weight"] is None and not options["label_smoothing"] and options["reduction"] != "none"
    if not is_plain or logits.dim() != 2 or labels.dim() != 1:
        return nn.functional.cross_entropy(logits, labels, **options)
    counted = labels != options["ignore_index"]
    losses: Tensor = _CrossEntropy.apply(logits[counted], labels[counted])  # type: ignore[no-untyped-call]
    return losses.mean() if options["reduction"] == "mean" else losses.sum()


class _CrossEntropy(torch.autograd.Function):
    """-log p of the labels, `[target]`, from logits `[target, vocab]`.

    The slope in direction t is ⟨p, t⟩ less t's entry at the label. Three tensors of the logits' size at once, where
    torch's forward derivative takes eight.
    """

    @staticmethod
    def forward(logits: Tensor, labels: Tensor) -> Tensor:
        """Log of the sum less the label's logit."""
        return logits.logsumexp(-1) - _at(logits, labels)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keeps logits and labels."""
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *vectors: Tensor) -> tuple[Tensor, None]:
        """The softmax less 1 at the label."""
        logits, labels = ctx.saved_tensors
        derivative = logits.softmax(-1)
        derivative[torch.arange(len(labels), device=labels.device), labels] -= 1
        return derivative.mul_(vectors[0].unsqueeze(-1)), None

    @staticmethod
    def jvp(ctx: Any, *vectors: Tensor) -> Tensor:
        """The slope, which can be differentiated in turn."""
        logits, labels = ctx.saved_tensors
        slopes: Tensor = torch.linalg.vecdot(softmax(logits, -1), vectors[0])
        return slopes - _at(vectors[0], labels)


def _at(values: Tensor, labels: Tensor) -> Tensor:
    """Each row's entry at its label."""
    return values.gather(-1, labels.unsqueeze(-1)).squeeze(-1)


def _layer_norm(
    input: Tensor,  # noqa: A002 -- torch's name
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """`torch.nn.functional.layer_norm` of plain operations; as there, statistics are taken in float32 at least.

    The forward derivative of torch's fused kernel takes the mean and the deviation that the kernel saved for constants,
    so that its own derivative is silently wrong (pytorch/pytorch#196700, open in torch 2.13).
    """
    wide = input.float() if input.element_size() < 4 else input
    axes = tuple(range(-len(normalized_shape), 0))
    centred = wide - wide.mean(axes, keepdim=True)
    scaled = centred * torch.rsqrt(add(centred.square().mean(axes, keepdim=True), eps))
    scaled = scaled if weight is None else scaled * weight
    return (scaled if bias is None else scaled + bias).to(input.dtype)


_OWN: Mapping[Any, Callable[..., Tensor]] = {
    nn.functional.scaled_dot_product_attention: attention,
    **dict.fromkeys((nn.functional.softmax, torch.softmax, Tensor.softmax), softmax),
    **dict.fromkeys((nn.functional.log_softmax, torch.log_softmax, Tensor.log_softmax), log_softmax),
    **dict.fromkeys((torch.logsumexp, Tensor.logsumexp), logsumexp),
    nn.functional.cross_entropy: _cross_entropy,
    nn.functional.layer_norm: _layer_norm,
    **dict.fromkeys((torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__), multiply),
    **dict.fromkeys((torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__), add),
}
