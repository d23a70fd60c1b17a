"""From what a user writes to the samples and steps of a log."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lmcleaner.data.encoding import Encoding
from lmcleaner.data.rows import RowSource, beside, is_file, read_rows
from lmcleaner.formats.digests import find_digests, is_digest, is_too_short, never_saw
from lmcleaner.formats.errors import InsufficientLogError, MismatchError, NotFoundError, UsageError
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.samples import Sample
from lmcleaner.training.models import tokenizer_digest

_STEPS = re.compile(r"steps:\d+(-\d+)?(,\d+(-\d+)?)*")


def named_steps(log: TrainingLog, forget: str) -> tuple[int, ...]:
    """The steps that `steps:10,20-25` names.

    Args:
        log: the training log.
        forget: the request.

    Returns:
        Steps of the log, ascending, at least one.

    Raises:
        UsageError: the request can't be read, or names no step.
        NotFoundError: the log holds no such step.
    """
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


def named_samples(log: TrainingLog, forget: str, load_tokenizer: Callable[[], Any]) -> set[bytes]:
    """The samples that rows, or a file or list of digests, name.

    Args:
        log: the training log.
        forget: the request.
        load_tokenizer: gives the run's tokenizer; called only for rows.

    Returns:
        Digests of samples of the log.

    Raises:
        NotFoundError: there are no such rows, or the run never saw a row or a digest.
        UsageError: something in a list of digests is none, or something in a file is no row.
        InsufficientLogError: the log doesn't say how rows became samples.
        MismatchError: the tokenizer is another one than the run's.
    """
    recorded = str(log.manifest.data.get("source", ""))
    place = _place_of_rows(recorded, forget)
    words = _words_in(place) if place is not None and is_file(Path(place)) else _words(forget)
    if words and is_digest(words[0]):
        return set(find_digests(log, words))
    if place is None:
        raise _no_such_set(forget, words, _folder(recorded))
    source = read_rows(place)
    digests = [sample.digest for sample in encode_rows(log, source, load_tokenizer())]
    unseen = [number for number, digest in enumerate(digests) if digest not in log.sample_rows]
    if unseen:
        raise never_saw(
            log,
            [f"row {number + 1}: {_excerpt(source.rows[number])}" for number in unseen],
            "`lmcleaner inspect --find TEXT` lists the samples that hold a text; rows must match to the letter",
            where=f"{source.source}: ",
        )
    return set(digests)


def _no_such_set(forget: str, words: list[str], folder: str) -> NotFoundError:
    short = next((word for word in words if is_too_short(word)), None)
    no_digest = f", nor a sample digest: expected 8 to 64 digits, found {len(short)}" if short is not None else ""
    return NotFoundError(
        f"no such forget set: {forget}: neither a file, nor one beside the recorded data in {folder}{no_digest}",
        hint="give a file of rows, sample digests (8 digits of each at least), or steps:10,20-25; "
        "`lmcleaner inspect LOG --find TEXT` lists the digests of the samples that hold a name or any other text",
    )


def _place_of_rows(recorded: str, forget: str) -> str | None:
    """A source of rows: the file itself, what lies beside the recorded data, or one with a colon as it stands."""
    if is_file(Path(forget)):
        return forget
    return forget if ":" in forget else beside(recorded, forget)


def _words(text: str) -> list[str]:
    return [word for word in re.split(r"[\s,]+", text) if word]


def _words_in(file: str) -> list[str]:
    """Words of a file; none in one that isn't text."""
    try:
        return _words(Path(file).read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        return []


def _folder(recorded: str) -> str:
    return str(Path(recorded).parent) if recorded else "a place that the log doesn't know"


def encode_rows(log: TrainingLog, source: RowSource, tokenizer: Any) -> list[Sample]:
    """Rows as the run made samples of its own.

    Args:
        log: the training log.
        source: the rows.
        tokenizer: the run's.

    Returns:
        One sample a row.

    Raises:
        InsufficientLogError: the log doesn't say how rows became samples.
        MismatchError: the tokenizer is another one than the run's.
        UsageError: a row has none of the known shapes, or nothing to learn.
    """
    encoding = log.manifest.data.get("encoding")
    if encoding is None:
        raise InsufficientLogError(
            f"the log doesn't say how rows became samples, as that of a script of one's own: {log.location}",
            hint="name the samples by their digests, which `lmcleaner inspect LOG --find TEXT` tells",
        )
    expected, found = log.manifest.tokenizer.get("sha256"), tokenizer_digest(tokenizer)
    if expected != found:
        raise MismatchError(
            f"not the tokenizer of this log: expected digest {expected}, found {found}",
            hint="give the model that the run started from with --model",
        )
    return Encoding(**encoding).samples(source.rows, tokenizer, source.source)


def _excerpt(row: dict[str, Any]) -> str:
    text = str(next(iter(row.values()), ""))
    return repr(text if len(text) <= 60 else text[:57] + "...")
