"""From the windows' deviations to the unlearned parameters: θ̂ = θ[τ] - Σ δ, and what rounding leaves of it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lmcleaner.training.vectors import global_norm
from lmcleaner.unlearning.sweep import SweptWindow


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """The change of the parameters that was wanted, against the one that their dtype could hold.

    Attributes:
        norm: ‖θ̂ - θ[τ]‖.
        norm_ratio: ‖θ̂ - θ[τ]‖ / ‖wanted‖.
        cosine: of the angle between both.
    """

    norm: float
    norm_ratio: float
    cosine: float


def unlearned_parameters(
    final: Sequence[Tensor], swept: Sequence[SweptWindow], num_steps: int
) -> tuple[list[Tensor], Change]:
    """The unlearned parameters.

    Where a window ends at τ its θ′[τ] is taken as it is: θ[τ] - (θ[τ] - θ′[τ]) would round.

    Args:
        final: θ[τ], in the order of the manifest.
        swept: every window's result.
        num_steps: τ.

    Returns:
        θ̂ in the dtype of `final`, and what rounding left of the change.
    """
    whole = next((s.counterfactual for s in swept if s.report.window.end == num_steps and s.counterfactual), None)
    truncated = [s.deviation for s in swept if whole is None or s.counterfactual is not whole]
    base = whole if whole is not None else final
    result, sums = [], [0.0, 0.0, 0.0]
    for index, (before, start) in enumerate(zip(final, base, strict=True)):
        deviation = torch.stack([parts[index] for parts in truncated]).sum(dim=0) if truncated else None
        exact = start if deviation is None else start.to(deviation.dtype) - deviation
        after = exact.to(before.dtype).clone()
        wanted, got = exact.double() - before.double(), after.double() - before.double()
        sums = [
            s + float(x) for s, x in zip(sums, ((wanted**2).sum(), (got**2).sum(), (wanted * got).sum()), strict=True)
        ]
        result.append(after)
    return result, _change(*sums)


def _change(wanted_squared: float, got_squared: float, inner: float) -> Change:
    wanted, got = wanted_squared**0.5, got_squared**0.5
    if not wanted:
        return Change(norm=got, norm_ratio=1.0, cosine=1.0)
    return Change(norm=got, norm_ratio=got / wanted, cosine=inner / (wanted * got) if got else 0.0)


def distance(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    """L2 distance of two lists of tensors."""
    return global_norm(a.double() - b.double() for a, b in zip(left, right, strict=True))
