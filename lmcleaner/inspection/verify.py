"""Whether a log is sound: its digests, and whether replaying it gives the run's bits."""

from dataclasses import dataclass

from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.verify import Problem, Usable, find_problems, num_parts, usable
from lmcleaner.progress import Progress, Silent
from lmcleaner.training.numerics import restored_numerics, unrestorable
from lmcleaner.training.replay import ReplayModel, open_replay, repeat_step


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayCheck:
    """What replaying the first steps gave.

    Attributes:
        num_steps: steps replayed.
        num_exact: steps up to which every parameter had the run's bits.
        unrestorable: what this machine can't restore of the run.
    """

    num_steps: int
    num_exact: int
    unrestorable: list[str]

    @property
    def is_exact(self) -> bool:
        """Whether every replayed step gave the run's bits."""
        return self.num_exact == self.num_steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What was checked of a log.

    Attributes:
        num_parts: tables, checkpoints and updates that were read.
        problems: what is damaged, can't be reached because of it, or belongs to nothing.
        usable: what can still be done with the log.
        replay: the replay, if it was asked for.
    """

    num_parts: int
    problems: list[Problem]
    usable: Usable
    replay: ReplayCheck | None

    @property
    def is_sound(self) -> bool:
        """Whether nothing is damaged and the replay, if any, was exact."""
        return not self.damage and (self.replay is None or self.replay.is_exact)

    @property
    def damage(self) -> list[Problem]:
        """The problems that are no mere leftovers of a writer that was killed."""
        return [problem for problem in self.problems if problem.kind != "leftover"]


def verify(
    log: TrainingLog,
    *,
    replay_steps: int | None = None,
    model: str | None = None,
    device: str | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Reads everything once and, if asked, replays the run from its start; changes nothing.

    Args:
        log: the opened log.
        replay_steps: steps to replay with nothing forgotten, at most all; None replays none.
        model: where the base model lies now, if it moved.
        device: where to replay; see `replay_device`.
        progress: whom to tell how far it is.

    Returns:
        What was found.

    Raises:
        NotFoundError: a replay was asked for and the base model isn't there.
        MismatchError: the base model is not the log's.
        UsageError: no such device here.
    """
    progress = progress or Silent()
    progress.begin("verifying", num_parts(log))
    problems = []
    for problem in find_problems(log):
        if problem is not None:
            problems.append(problem)
        progress.advance()
    replay = None
    if replay_steps is not None and not any(problem.kind != "leftover" for problem in problems):
        replay = _replay(log, open_replay(log.manifest, model, device), min(replay_steps, log.num_steps), progress)
    return Verification(num_parts=num_parts(log), problems=problems, usable=usable(log, problems), replay=replay)


def _replay(log: TrainingLog, replay: ReplayModel, num_steps: int, progress: Progress) -> ReplayCheck:
    progress.begin("replaying", num_steps)
    num_exact = 0
    with restored_numerics(log.manifest.numerics):
        state = replay.state(log.checkpoint(0))
        for number in range(num_steps):
            if repeat_step(log, replay, state, number).is_exact and num_exact == number:
                num_exact += 1
            progress.advance()
    differences = unrestorable(log.manifest, replay.device)
    return ReplayCheck(num_steps=num_steps, num_exact=num_exact, unrestorable=differences)
