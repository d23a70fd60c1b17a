"""Records curvature into a finished log: the estimates that `unlearn` would otherwise make on demand."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

from torch import Tensor

from lmcleaner.choices import DEFAULT_RANK, CurvatureKind, HessianMode, choose
from lmcleaner.curvature.estimates import Estimate
from lmcleaner.curvature.linearized import curvature_product
from lmcleaner.curvature.segments import StepProduct, estimate_segment, num_products
from lmcleaner.curvature.stored import as_stored
from lmcleaner.formats.commit import Change
from lmcleaner.formats.curvature import curvature_writer
from lmcleaner.formats.errors import ExistsError, InsufficientLogError, UsageError
from lmcleaner.formats.generations import open_to_rewrite
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.steps import StepRecord
from lmcleaner.formats.store import Store
from lmcleaner.progress import Progress, Silent
from lmcleaner.training.numerics import restored_numerics, unrestorable
from lmcleaner.training.replay import ReplayModel, open_replay


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvatureOptions:
    """Which curvature `record_curvature` shall record.

    Attributes:
        kind: a diagonal of the GGN or of the Hessian, or the largest eigenpairs of the GGN.
        rank: eigenpairs.
        model: where the base model lies now, or None for where it lay.
        device: where to compute; see `replay_device`.
    """

    kind: CurvatureKind
    rank: int = DEFAULT_RANK
    model: str | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        """Checks ranges.

        Raises:
            UsageError: a value is out of its range.
        """
        object.__setattr__(self, "kind", choose(CurvatureKind, self.kind, "kind"))
        if self.kind is CurvatureKind.NONE:
            raise UsageError("--kind: expected a curvature to record, found none")
        if not 1 <= self.rank <= 65536:
            raise UsageError(f"--rank: expected 1 to 65536, found {self.rank}")


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvatureResult:
    """What was recorded.

    Attributes:
        log: where the log lies.
        kind: of the curvature.
        steps: from which on an estimate serves, each until the next.
        captured: the share of its matrix's trace that each estimate holds; None of a diagonal.
        products: curvature products that it took.
        num_bytes: bytes of the estimates in the log.
        log_root: digest of the log's whole content.
    """

    log: str
    kind: CurvatureKind
    steps: tuple[int, ...]
    captured: tuple[float | None, ...]
    products: int
    num_bytes: int
    log_root: str


def record_curvature(
    location: Store | Path | str, options: CurvatureOptions, progress: Progress | None = None
) -> CurvatureResult:
    """Estimates the curvature at every checkpoint of a log but the last, and writes it into the log, all at once.

    An estimate is made from all rows of two steps up to the next checkpoint, and so holds a trace of each of them until
    it is dropped; `unlearn --redact` drops it.

    Args:
        location: folder, URL or store of the log.
        options: what to record.
        progress: whom to tell how far it is.

    Returns:
        What was recorded.

    Raises:
        NotFoundError: no log lies there, or the base model isn't there.
        UsageError: the place can't be written, or there is no such device.
        ExistsError: somebody writes the log, or it holds curvature already.
        InsufficientLogError: the run was interrupted, or took no step.
        MismatchError: the base model is not the log's.
        DivergedError: the curvature isn't finite.
        DamagedError: a part of the log that is needed can't be trusted.
    """
    progress = progress or Silent()
    with open_to_rewrite(location) as log:
        _check(log)
        replay = open_replay(log.manifest, options.model, options.device)
        for difference in unrestorable(log.manifest, replay.device):
            progress.say(f"estimates may differ in the last bits from those of the run's machine: {difference}")
        estimating = _Estimating(log, replay, options, progress)
        shares = []
        with restored_numerics(log.manifest.numerics), curvature_writer(log) as writer:
            for start, estimate in estimating.estimates():
                writer.write(start, as_stored(estimate, HessianMode(options.kind.value), options.rank))
                shares.append(estimate.captured)
            writer.commit(_change(log, options))
    written = TrainingLog(location)
    return CurvatureResult(
        log=written.location,
        kind=options.kind,
        steps=tuple(sorted(written.commit.curvature)),
        captured=tuple(shares),
        products=estimating.products,
        num_bytes=written.bytes_on_disk()["curvature"],
        log_root=written.root,
    )


class _Estimating:
    """Makes the estimates one after the other, and counts the products."""

    def __init__(self, log: TrainingLog, replay: ReplayModel, options: CurvatureOptions, progress: Progress) -> None:
        self._log, self._replay, self._progress = log, replay, progress
        self._mode, self._rank = HessianMode(options.kind.value), options.rank
        self.products = 0

    def estimates(self) -> Iterator[tuple[int, Estimate]]:
        log, replay = self._log, self._replay
        segments = list(pairwise(sorted({*log.checkpoint_steps, log.num_steps})))
        counts = [num_products(self._mode, self._rank, log.manifest.num_elements, b - a) for a, b in segments]
        self._progress.begin("estimating the curvature", sum(counts))
        for start, stop in segments:
            parameters = replay.load(log.checkpoint_parameters(start))
            yield (
                start,
                estimate_segment(log, self._mode, start, stop, parameters, self._rank, self._product_at(parameters)),
            )

    def _product_at(self, parameters: Sequence[Tensor]) -> StepProduct:
        def product(mode: HessianMode, step: StepRecord, vector: Sequence[Tensor]) -> list[Tensor]:
            self.products += 1
            self._progress.advance()
            return curvature_product(self._replay, mode, step, parameters, vector, 0.0)

        return product


def _check(log: TrainingLog) -> None:
    if not log.commit.finished:
        raise InsufficientLogError(
            f"the run was interrupted: {log.location}: found {log.num_steps} steps",
            hint="`lmcleaner record LOG --resume` brings it to its end",
        )
    if log.commit.curvature:
        kinds = sorted({entry.kind for entry in log.commit.curvature.values()})
        raise ExistsError(
            f"the log holds curvature already: {log.location}: {', '.join(kinds)}",
            hint="`lmcleaner prune LOG --drop-curvature --apply` removes it",
        )
    if not log.num_steps:
        raise InsufficientLogError(f"the run took no step: {log.location}")


def _change(log: TrainingLog, options: CurvatureOptions) -> Change:
    """The entry of the log's history."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    details = {"kind": options.kind.value, "rank": options.rank}
    return Change(kind="curvature", time=now, root_before=log.root, details=details)
