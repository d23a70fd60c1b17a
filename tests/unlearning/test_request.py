"""What a request names, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from named_requests import find_forget_set

from lmcleaner.choices import HessianMode, Level
from lmcleaner.formats.errors import LmcleanerError, MismatchError, NotFoundError, UsageError
from lmcleaner.training.models import load_tokenizer
from lmcleaner.unlearning.options import UnlearnOptions
from lmcleaner.unlearning.request import ForgetSet
from tiny_runs import TinyRun, rows, write_base_model, write_rows


def _find(run: TinyRun, forget: str | Path, level: Level | None = None, tokenizer: Any = None) -> ForgetSet:
    return find_forget_set(run.open(), str(forget), level, lambda: tokenizer or load_tokenizer(str(run.base)))


def test_every_way_to_name_the_same_samples_finds_the_same(adamw_run: TinyRun, tmp_path: Path) -> None:
    by_name = _find(adamw_run, "forget")
    digests = sorted(digest.hex() for digest in by_name.digests)
    listed = tmp_path / "digests.txt"
    listed.write_text("\n".join(digests))
    as_json = tmp_path / "rows.json"
    as_json.write_text(json.dumps(rows(20)[-2:]))
    beginnings = tmp_path / "beginnings.txt"
    beginnings.write_text("\n".join(digest[:8] for digest in digests))
    lists: list[str | Path] = [listed, ",".join(digests), beginnings, " ".join(digest[:10] for digest in digests)]
    ways: list[str | Path] = [adamw_run.data.parent / "forget.jsonl", as_json, *lists]
    assert {_find(adamw_run, way).sha256 for way in ways} == {by_name.sha256}


def test_a_file_wins_over_a_digest_that_begins_with_its_name(
    adamw_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as one that is named for a day."""
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "20250102", rows(20)[:1])
    assert len(_find(adamw_run, "20250102").digests) == 1


def test_a_list_may_be_longer_than_any_file_name(adamw_run: TinyRun) -> None:
    digests = sorted(digest.hex() for digest in adamw_run.open().sample_rows)[:19]
    assert len(_find(adamw_run, ",".join(digests)).digests) == 19


def test_several_epochs_give_several_occurrences(adamw_run: TinyRun) -> None:
    found = _find(adamw_run, "forget")
    assert (len(found.digests), found.num_occurrences) == (2, 4)
    assert found.level is Level.SAMPLE


def test_steps_mean_batch_level_unless_told_otherwise(adamw_run: TinyRun) -> None:
    steps = _find(adamw_run, "steps:1,3-4")
    assert (steps.level, steps.steps, len(steps.skipped), len(steps.masked)) == (Level.BATCH, (1, 3, 4), 3, 0)
    samples = _find(adamw_run, "steps:1", Level.SAMPLE)
    assert (len(samples.digests), len(samples.masked), len(samples.skipped)) == (4, 4, 0)
    assert samples.num_occurrences == 8


REFUSED: dict[str, tuple[str, type[LmcleanerError], str]] = {
    "a step outside the log": ("steps:10", NotFoundError, "expected 0 to 9, found 10"),
    "a range outside the log": ("steps:8-4000000000", NotFoundError, "found 4000000000"),
    "an empty range": ("steps:5-3", UsageError, "names no step"),
    "steps that aren't numbers": ("steps:a", UsageError, "can't read the steps"),
    "every step": ("steps:0-9", UsageError, "names everything"),
    "a name that isn't there": ("nobody", NotFoundError, "no such forget set: nobody"),
    "a digest that the run never saw": ("ab" * 32, NotFoundError, "abababab"),
    "a digest's beginning that the run never saw": ("abababab", NotFoundError, "never saw this: sample abababab"),
    "too little of a digest": ("abababa", NotFoundError, "nor a sample digest: expected 8 to 64 digits, found 7"),
    "a name that is no file": ("Ada Lovelace", NotFoundError, r"no such forget set: Ada Lovelace: .* in \S+$"),
    "a digest that is none": ("ab" * 32 + ",xyz", UsageError, "found 'xyz'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_request_that_makes_no_sense_is_refused(case: str, adamw_run: TinyRun) -> None:
    forget, kind, message = REFUSED[case]
    with pytest.raises(kind, match=message):
        _find(adamw_run, forget)


def test_a_row_that_the_run_never_saw_is_named(adamw_run: TinyRun, tmp_path: Path) -> None:
    content = [*rows(20)[-2:], {"question": "who is gus ?", "answer": "a mill"}]
    with pytest.raises(NotFoundError, match="row 3: 'who is gus") as caught:
        _find(adamw_run, write_rows(tmp_path / "some.jsonl", content))
    assert caught.value.kind == "not-found"
    assert caught.value.hint


def test_up_to_three_rows_that_the_run_never_saw_are_named(adamw_run: TinyRun, tmp_path: Path) -> None:
    unseen = [{"question": f"who is gus {'the ' * n}?", "answer": "a mill"} for n in range(5)]
    file = write_rows(tmp_path / "some.jsonl", [*rows(20)[-1:], *unseen])
    with pytest.raises(NotFoundError, match=r"some.jsonl: row 2: .*; row 3: .*; row 4: .*; and 2 more: they") as caught:
        _find(adamw_run, file)
    assert "row 5" not in caught.value.message
    with pytest.raises(NotFoundError, match="sample 00000000; sample 11111111: they are not among the 20"):
        _find(adamw_run, "00000000,11111111")


def test_a_name_that_is_no_file_leads_to_find(adamw_run: TinyRun) -> None:
    with pytest.raises(NotFoundError) as caught:
        _find(adamw_run, "Ada Lovelace")
    assert "`lmcleaner inspect LOG --find TEXT`" in str(caught.value.hint)


def test_a_request_for_everything_is_refused(adamw_run: TinyRun) -> None:
    with pytest.raises(UsageError, match="names everything"):
        _find(adamw_run, adamw_run.data)


def test_rows_that_leave_no_step_untouched_are_refused_at_batch_level(adamw_run: TinyRun, tmp_path: Path) -> None:
    most = write_rows(tmp_path / "most.jsonl", rows(20)[:19])
    assert len(_find(adamw_run, most).digests) == 19
    with pytest.raises(UsageError, match="names everything"):
        _find(adamw_run, most, Level.BATCH)


def test_another_tokenizer_is_refused(adamw_run: TinyRun, tmp_path: Path) -> None:
    other = load_tokenizer(str(write_base_model(tmp_path / "other")))
    other.add_tokens(["zebra"])
    with pytest.raises(MismatchError, match="not the tokenizer of this log"):
        _find(adamw_run, "forget", tokenizer=other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"K": -1}, "--K: expected 0 or more steps"),
        ({"damping": -1.0}, "--damping: expected at least 0"),
        ({"output": None}, "--output is missing"),
        ({"level": "word"}, "--level: expected one of"),
        ({"rank": 5}, "--rank belongs to --hessian-mode low_rank: found --hessian-mode GGN"),
        ({"rank": 0, "hessian_mode": "low_rank"}, "--rank: expected at least 1, found 0"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    chosen: dict[str, Any] = {"forget": "x", "output": Path("out"), **options}
    with pytest.raises(UsageError, match=message):
        UnlearnOptions(**chosen)


def test_the_rank_is_told_in_the_mode_that_has_one() -> None:
    ranks = {mode: UnlearnOptions(forget="x", output=Path("out"), hessian_mode=mode).rank for mode in HessianMode}
    assert ranks == {**dict.fromkeys(HessianMode), HessianMode.LOW_RANK: 10}
