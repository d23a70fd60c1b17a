"""A sample is found by its digest or by enough of its beginning."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmcleaner.formats.digests import find_digests, is_digest
from lmcleaner.formats.errors import LmcleanerError, NotFoundError, UsageError
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.samples import Sample


def _sample(first: int) -> Sample:
    tokens = np.array([first, 1], np.int32)
    return Sample(tokens, tokens)


# Their digests begin with the same 8 digits, and no more: found among the first hundred thousand of this kind.
SAME, TWIN, OTHER = _sample(6350), _sample(74249), _sample(1)


@pytest.fixture(scope="module")
def log(make_run: Callable[..., Any], write_run: Callable[..., Path], tmp_path_factory: Any) -> TrainingLog:
    run = make_run(1)
    (step,) = run.steps
    microbatch = replace(step.microbatches[0], samples=(SAME, TWIN, OTHER), starts=(0, 0, 0), width=2)
    run = replace(run, steps=(replace(step, microbatches=(microbatch,)),))
    return TrainingLog(write_run(tmp_path_factory.mktemp("log") / "log", run))


@pytest.mark.parametrize("length", [9, 12, 64])
@pytest.mark.parametrize("sample", [SAME, TWIN], ids=["same", "twin"])
def test_a_unique_beginning_is_enough(length: int, sample: Sample, log: TrainingLog) -> None:
    assert find_digests(log, [sample.digest.hex()[:length]]) == {sample.digest}


def test_eight_digits_are_enough(log: TrainingLog) -> None:
    assert find_digests(log, [OTHER.digest.hex()[:8]]) == {OTHER.digest}


def test_the_same_sample_named_twice_is_one(log: TrainingLog) -> None:
    names = (OTHER.digest.hex(), OTHER.digest.hex()[:8], TWIN.digest.hex())
    assert find_digests(log, names) == {OTHER.digest, TWIN.digest}


def test_an_ambiguous_beginning_names_the_samples_that_begin_so(log: TrainingLog) -> None:
    with pytest.raises(UsageError, match=r"ambiguous sample digest: f1cc68e1: .*found that of 2") as caught:
        find_digests(log, ["f1cc68e1"])
    assert SAME.digest.hex() in caught.value.message
    assert TWIN.digest.hex() in caught.value.message
    assert caught.value.hint == "give more of its digits"


@pytest.mark.parametrize(
    ("digits", "kind", "message"),
    [
        ("00000000", NotFoundError, "the run never saw this: sample 00000000: it is not among the 3 samples of "),
        ("ab" * 32, NotFoundError, "never saw this: sample abab"),
        ("f1cc68e", UsageError, "expected 8 to 64 hexadecimal digits, found 'f1cc68e'"),
        ("ab" * 33, UsageError, "expected 8 to 64 hexadecimal digits"),
        ("somebody", UsageError, "found 'somebody'"),
    ],
)
def test_what_is_no_sample_is_refused(digits: str, kind: type[LmcleanerError], message: str, log: TrainingLog) -> None:
    with pytest.raises(kind, match=message):
        find_digests(log, [digits])


def test_digests_are_told_from_names() -> None:
    assert all(map(is_digest, ("f1cc68e1", "0" * 64)))
    assert not any(map(is_digest, ("", "forget10", "f1cc68e", "0" * 65, "F1CC68E1", "f1cc68e1\n")))
