"""What a request names: the forget set as samples or whole steps of a log."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmcleaner.choices import Level
from lmcleaner.data.encoding import Encoding
from lmcleaner.data.rows import RowSource, read_rows
from lmcleaner.formats.canonical import json_digest
from lmcleaner.formats.digests import find_digests, is_digest
from lmcleaner.formats.errors import InsufficientLogError, MismatchError, NotFoundError, UsageError
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.wording import counted
from lmcleaner.training.models import tokenizer_digest

_STEPS = re.compile(r"steps:\d+(-\d+)?(,\d+(-\d+)?)*")


@dataclass(frozen=True)
class ForgetSet:
    """The occurrences in a log that a request is about.

    Attributes:
        level: what happens to their steps.
        digests: digests of the forgotten samples; at batch level of all that made a step be skipped.
        steps: steps that hold a forgotten row, in order.
        num_occurrences: rows of all microbatches that are forgotten, or that lie in a skipped step.
    """

    level: Level
    digests: frozenset[bytes]
    steps: tuple[int, ...]
    num_occurrences: int

    @cached_property
    def skipped(self) -> frozenset[int]:
        """Steps whose optimizer step is left out; none at sample level."""
        return frozenset(self.steps) if self.level is Level.BATCH else frozenset()

    @property
    def masked(self) -> frozenset[bytes]:
        """Samples that contribute no gradient where their step is taken; none at batch level."""
        return self.digests if self.level is Level.SAMPLE else frozenset()

    @property
    def sha256(self) -> str:
        """Digest of the request's content: level, samples and steps."""
        return json_digest({
            "level": self.level.value,
            "samples": sorted(d.hex() for d in self.digests),
            "steps": list(self.steps),
        })


def find_forget_set(log: TrainingLog, forget: str, level: Level | None, load_tokenizer: Callable[[], Any]) -> ForgetSet:
    """Looks up what a request names.

    Args:
        log: the training log.
        forget: name of a file beside the recorded data, a file of rows, a file or comma-separated list of sample
            digests or their beginnings, or `steps:10,20-25`. A file wins over a digest that begins with its name.
        level: what happens to the steps; None means batch level for `steps:` and sample level otherwise.
        load_tokenizer: gives the run's tokenizer; called only for rows.

    Returns:
        The forget set, with at least one occurrence.

    Raises:
        NotFoundError: a row, a digest or a step that the run never saw, by name.
        UsageError: the request can't be read, names nothing, or names everything.
        MismatchError: the tokenizer is another one than the run's.
    """
    if forget.startswith("steps:"):
        steps = _parse_steps(forget, log)
        if (level or Level.BATCH) is Level.BATCH:
            return _checked(log, _of_steps(log, steps))
        digests = {sample.digest for step in steps for sample in log.step(step).samples}
    else:
        digests = _sample_digests(log, forget, load_tokenizer)
    return _checked(log, _of_samples(log, frozenset(digests), level or Level.SAMPLE))


def occurrences_in(log: TrainingLog, digests: frozenset[bytes], steps: Sequence[int]) -> int:
    """How often samples with these digests were used in these steps."""
    return int((_is_one_of(log, digests) & np.isin(log.occurrence_steps, steps)).sum())


def _is_one_of(log: TrainingLog, digests: frozenset[bytes]) -> NDArray[np.bool_]:
    """Which rows of the occurrence table are samples with these digests, bool `[num_occurrences]`."""
    return np.isin(log.table("occurrences/sample"), [log.sample_rows[digest] for digest in digests])


def _of_samples(log: TrainingLog, digests: frozenset[bytes], level: Level) -> ForgetSet:
    is_forgotten = _is_one_of(log, digests)
    steps = np.unique(log.occurrence_steps[is_forgotten])
    return ForgetSet(level, digests, tuple(int(s) for s in steps), int(is_forgotten.sum()))


def _of_steps(log: TrainingLog, steps: tuple[int, ...]) -> ForgetSet:
    digests = frozenset(sample.digest for step in steps for sample in log.step(step).samples)
    return ForgetSet(Level.BATCH, digests, steps, occurrences_in(log, digests, steps))


def _checked(log: TrainingLog, found: ForgetSet) -> ForgetSet:
    """Refuses a request after which nothing of the run would be left."""
    is_everything = (
        len(found.steps) == log.num_steps
        if found.level is Level.BATCH
        else found.num_occurrences == len(log.table("occurrences/sample"))
    )
    if is_everything:
        raise UsageError(
            f"the request names everything that the run was trained on: {log.location}: "
            f"{counted(len(found.digests), 'sample')} in {len(found.steps)} of {counted(log.num_steps, 'step')}",
            hint="to forget the whole run, use the base model; at batch level a step counts if it holds any named row",
        )
    return found


def _parse_steps(forget: str, log: TrainingLog) -> tuple[int, ...]:
    if not _STEPS.fullmatch(forget):
        raise UsageError(f"can't read the steps: expected a form like steps:10,20-25, found {forget!r}")
    steps: set[int] = set()
    for part in forget.removeprefix("steps:").split(","):
        first, _, last = part.partition("-")
        highest = max(int(first), int(last or first))
        if highest >= log.num_steps:
            raise NotFoundError(
                f"no such step: {log.location}: expected 0 to {log.num_steps - 1}, found {highest}",
                hint="`lmcleaner inspect` shows how many steps the log holds",
            )
        steps.update(range(int(first), int(last or first) + 1))
    if not steps:
        raise UsageError(f"the request names no step: {forget!r}")
    return tuple(sorted(steps))


def _sample_digests(log: TrainingLog, forget: str, load_tokenizer: Callable[[], Any]) -> set[bytes]:
    file = _row_file(log, forget)
    words = _words(forget if file is None else file.read_text(encoding="utf-8"))
    if words and is_digest(words[0]):
        return set(find_digests(log, words))
    if file is None:
        raise NotFoundError(
            f"no such forget set: {forget}: neither a file, nor one beside the recorded data in {_beside(log)}",
            hint="give a file of rows, sample digests (8 digits of each at least), or steps:10,20-25",
        )
    source = read_rows(str(file))
    samples = _encode(log, source, load_tokenizer())
    return {
        _known(log, sample.digest, f"{source.source}: row {number}: {_excerpt(row)}")
        for number, (row, sample) in enumerate(zip(source.rows, samples, strict=True), start=1)
    }


def _words(text: str) -> list[str]:
    return [word for word in re.split(r"[\s,]+", text) if word]


def _row_file(log: TrainingLog, forget: str) -> Path | None:
    """The file itself, or the file of that stem beside the recorded data, if there is one."""
    beside = [_beside(log) / f"{forget}{suffix}" for suffix in ("", ".jsonl", ".json")]
    return next((path for path in (Path(forget), *beside) if _is_file(path)), None)


def _beside(log: TrainingLog) -> Path:
    return Path(str(log.manifest.data.get("source", ""))).parent


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a list of digests may be longer than any file name
        return False


def _encode(log: TrainingLog, source: RowSource, tokenizer: Any) -> list[Any]:
    encoding = log.manifest.data.get("encoding")
    if encoding is None:
        raise InsufficientLogError(
            f"the log doesn't say how rows became samples: {log.location}", hint="name the samples by their digests"
        )
    expected, found = log.manifest.tokenizer.get("sha256"), tokenizer_digest(tokenizer)
    if expected != found:
        raise MismatchError(
            f"not the tokenizer of this log: expected digest {expected}, found {found}",
            hint="give the model that the run started from with --model",
        )
    return Encoding(**encoding).samples(source.rows, tokenizer, source.source)


def _known(log: TrainingLog, digest: bytes, name: str) -> bytes:
    if digest not in log.sample_rows:
        raise NotFoundError(
            f"the run never saw this: {name}: it is not among the "
            f"{counted(len(log.sample_rows), 'sample')} of {log.location}",
            hint="`lmcleaner inspect --find TEXT` lists the samples that hold a text; rows must match to the letter",
        )
    return digest


def _excerpt(row: dict[str, Any]) -> str:
    text = str(next(iter(row.values()), ""))
    return repr(text if len(text) <= 60 else text[:57] + "...")
