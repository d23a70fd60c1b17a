"""From the windows' deviations to the unlearned parameters: θ̂ = θ[τ] - Σ δ, and what rounding leaves of it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


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


class Correction:
    """Sums up the windows' results in at most one parameter vector for those that end before τ, and θ′[τ] itself."""

    def __init__(self) -> None:
        """Begins without any window."""
        self._total: list[Tensor] | None = None
        self._counterfactual: list[Tensor] | None = None

    def add(self, deviation: list[Tensor]) -> None:
        """Adds δ of a window; the tensors are kept and changed."""
        if self._total is None:
            self._total = deviation
            return
        for total, part in zip(self._total, deviation, strict=True):
            total.add_(part)

    def set_counterfactual(self, parameters: list[Tensor]) -> None:
        """Takes θ′[τ] of the window that ends at τ as it is: θ[τ] - (θ[τ] - θ′[τ]) would round."""
        self._counterfactual = parameters

    def apply(self, final: Sequence[Tensor]) -> tuple[list[Tensor], Change]:
        """The unlearned parameters.

        Args:
            final: θ[τ], in the order of the manifest.

        Returns:
            θ̂ in the dtype of `final`, and what rounding left of the change.
        """
        base = self._counterfactual if self._counterfactual is not None else final
        unlearned: list[Tensor] = []
        wanted_squared = got_squared = inner = 0.0
        for index, (before, start) in enumerate(zip(final, base, strict=True)):
            start = start.to(before.device)
            exact = start if self._total is None else start.to(self._total[index].dtype) - self._total[index]
            after = exact.to(before.dtype, copy=True)
            wanted, got = exact.double() - before.double(), after.double() - before.double()
            wanted_squared += float(torch.sum(wanted**2))
            got_squared += float(torch.sum(got**2))
            inner += float(torch.sum(wanted * got))
            unlearned.append(after)
        return unlearned, _change(wanted_squared**0.5, got_squared**0.5, inner)


def _change(wanted: float, got: float, inner: float) -> Change:
    if not wanted:
        return Change(norm=got, norm_ratio=1.0, cosine=1.0)
    return Change(norm=got, norm_ratio=got / wanted, cosine=inner / (wanted * got) if got else 0.0)
