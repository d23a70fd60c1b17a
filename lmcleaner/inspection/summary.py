"""What was trained, and what the log of it takes."""

from dataclasses import dataclass
from typing import Any

from lmcleaner.formats.lock import holder
from lmcleaner.formats.reader import TrainingLog


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A log at a glance.

    Attributes:
        log: folder of the log.
        root: digest of its whole content.
        is_finished: whether the run came to its own end.
        created: UTC time, ISO 8601.
        model: class, source, dtype and fingerprint of the base model.
        num_parameters: trainable scalars.
        optimizer: class and hyperparameters of each group.
        max_grad_norm: clip threshold, or None.
        data: source, split and digest of the rows.
        num_steps: committed steps.
        planned_steps: steps that the run meant to take, if it said.
        num_microbatches: forward and backward passes.
        num_samples: distinct samples.
        num_occurrences: rows over all microbatches.
        checkpoint_steps: steps with a checkpoint.
        updates: how θ after each step is stored.
        kept_updates: [first, stop) of each range of steps whose updates the log holds.
        gradients: how the gradients are stored.
        kept_gradients: likewise of the gradients.
        curvature: kind of the recorded curvature; "none" without.
        curvature_steps: from which on an estimate of it serves, each until the next.
        replayable: "exact", "close" or "no", as steps taken again when the run ended told; None where nobody tried.
        replay_problem: why it isn't exact.
        history: kind and time of what was done to the log since.
        writer: who writes the log now, or None.
        loss: loss of each step, nats.
        seconds: wall time of all steps.
        bytes_on_disk: by part.
    """

    log: str
    root: str
    is_finished: bool
    created: str
    model: dict[str, Any]
    num_parameters: int
    optimizer: dict[str, Any]
    max_grad_norm: float | None
    data: dict[str, Any]
    num_steps: int
    planned_steps: int | None
    num_microbatches: int
    num_samples: int
    num_occurrences: int
    checkpoint_steps: tuple[int, ...]
    updates: str
    kept_updates: tuple[tuple[int, int], ...]
    gradients: str
    kept_gradients: tuple[tuple[int, int], ...]
    curvature: str
    curvature_steps: tuple[int, ...]
    replayable: str | None
    replay_problem: str
    history: tuple[tuple[str, str], ...]
    writer: str | None
    loss: tuple[float, ...]
    seconds: float
    bytes_on_disk: dict[str, int]


def summarize(log: TrainingLog) -> Summary:
    """Reads a log's bookkeeping, none of its parameters.

    Args:
        log: the opened log.

    Returns:
        The summary.

    Raises:
        DamagedError: a table can't be trusted.
    """
    manifest = log.manifest
    plain = manifest.to_json()
    return Summary(
        log=log.location,
        root=log.root,
        is_finished=log.commit.finished,
        created=manifest.created,
        model=plain["model"],
        num_parameters=manifest.num_elements,
        optimizer=plain["optimizer"],
        max_grad_norm=manifest.max_grad_norm,
        data=plain["data"],
        num_steps=log.num_steps,
        planned_steps=manifest.planned_steps,
        num_microbatches=len(log.table("microbatches/stop")),
        num_samples=len(log.table("samples/stop")),
        num_occurrences=len(log.table("occurrences/sample")),
        checkpoint_steps=log.checkpoint_steps,
        updates=manifest.updates,
        kept_updates=log.commit.updates,
        gradients=manifest.gradients,
        kept_gradients=log.commit.gradients,
        curvature=next((entry.kind for entry in log.commit.curvature.values()), "none"),
        curvature_steps=tuple(sorted(log.commit.curvature)),
        replayable=log.commit.self_check.state if log.commit.self_check else None,
        replay_problem=log.commit.self_check.why if log.commit.self_check else "",
        history=tuple((change.kind, change.time) for change in log.commit.history),
        writer=_writer(log),
        loss=tuple(float(loss) for loss in log.table("steps/loss")),
        seconds=float(log.table("steps/seconds").sum()),
        bytes_on_disk=log.bytes_on_disk(),
    )


def _writer(log: TrainingLog) -> str | None:
    found = holder(log.store)
    return None if found is None else str(found)
