"""A stretch of steps, streamed: θ, and on demand the updates and the gradients, with a few vectors in memory."""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lmcleaner.formats.bits import Bits
from lmcleaner.formats.codecs import SPAN
from lmcleaner.formats.errors import NotFoundError
from lmcleaner.formats.layout import num_spans
from lmcleaner.formats.manifest import Manifest, ParameterEntry

if TYPE_CHECKING:
    from lmcleaner.formats.reader import TrainingLog

Named = Mapping[str, Bits]


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowStep:
    """One step of a window; its arrays are valid until the next one is asked for.

    Attributes:
        step: s.
        parameters: name -> bit patterns of θ[s], shaped as the parameter.
        update: name -> θ[s+1] - θ[s], float32 or float64; None unless asked for.
        gradient: name -> bit patterns of the gradient that the optimizer was given; None unless asked for.
    """

    step: int
    parameters: Named
    update: Mapping[str, NDArray[Any]] | None = None
    gradient: Named | None = None


class Selection:
    """Some parameters of a log, and the spans of the parameter vector that they lie in.

    Attributes:
        entries: the parameters.
        spans: the spans, ascending.
        is_whole: whether they are all that there are.
    """

    def __init__(self, manifest: Manifest, names: Sequence[str] | None) -> None:
        """Looks the names up.

        Args:
            manifest: of the log.
            names: of the parameters; None is all.

        Raises:
            NotFoundError: the log has no such parameter.
        """
        known = {entry.name: entry for entry in manifest.parameters}
        missing = [name for name in names or () if name not in known]
        if missing:
            raise NotFoundError(
                f"no such parameter: {missing[0]}: the log holds {len(known)}",
                hint=f"they are named as in the model, such as {next(iter(known))}",
            )
        self.entries = [known[name] for name in names] if names is not None else list(manifest.parameters)
        self.spans: Sequence[int] = range(num_spans(manifest.num_elements))
        self.is_whole = len(self.entries) == len(known)
        if not self.is_whole:
            self.spans = sorted({span for entry in self.entries for span in _spans_of(entry)})

    def named(self, values: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Name -> view of a vector that holds the selection's spans one after the other."""
        return {entry.name: self._view(entry, values) for entry in self.entries}

    def _view(self, entry: ParameterEntry, values: NDArray[Any]) -> NDArray[Any]:
        start = bisect_left(self.spans, entry.offset // SPAN) * SPAN + entry.offset % SPAN
        return values[start : start + entry.num_elements].reshape(entry.shape)


def stream(
    log: "TrainingLog", start: int, stop: int, selection: Selection, *, updates: bool, gradients: bool
) -> Iterator[WindowStep]:
    """Goes through the steps from `start` to `stop` - 1.

    Args:
        log: the training log.
        start: first step.
        stop: one after the last step.
        selection: which parameters.
        updates: whether to give θ[s+1] - θ[s].
        gradients: whether to give the gradients.

    Yields:
        Each step.
    """
    state = log.reconstruct(start, selection)
    dtype = log.manifest.model.dtype
    gradient = log.gradient_reader(selection) if gradients else None
    before = state.bits.copy() if updates else state.bits
    for step in state.steps_to(stop + 1 if updates else stop):
        if updates and step > start:
            with np.errstate(invalid="ignore", over="ignore"):  # parameters of a diverged run are no numbers
                update = float_values(state.bits, dtype) - float_values(before, dtype)
            yield _step(step - 1, selection, before, update, gradient)
            before[:] = state.bits
        elif not updates:
            yield _step(step, selection, before, None, gradient)


def float_values(bits: Bits, dtype: str) -> NDArray[Any]:
    """The numbers that bit patterns stand for.

    Args:
        bits: bit patterns.
        dtype: of the parameters.

    Returns:
        float32, or float64 of float64 parameters; same shape.
    """
    if dtype == "bfloat16":
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return bits.view(np.dtype(dtype))


def _step(step: int, selection: Selection, parameters: Bits, update: NDArray[Any] | None, gradient: Any) -> WindowStep:
    return WindowStep(
        step=step,
        parameters=selection.named(parameters),
        update=None if update is None else selection.named(update),
        gradient=None if gradient is None else selection.named(gradient(step)),
    )


def _spans_of(entry: ParameterEntry) -> range:
    return range(entry.offset // SPAN, (entry.offset + entry.num_elements - 1) // SPAN + 1)
