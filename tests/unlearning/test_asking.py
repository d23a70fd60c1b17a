"""A request from Python: options, or what to forget with the others by their names, of a log or of where it lies."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from lmcleaner import HessianMode, TrainingLog, UnlearnOptions, UsageError, unlearn
from lmcleaner.formats.ledger import read_ledger
from lmcleaner.unlearning.options import DEFAULT_TOLERANCE
from tiny_runs import TinyRun

EXACTLY: dict[str, Any] = {"K": None, "hessian_mode": "secant", "ledger": False}


def test_every_way_to_ask_means_the_same(adamw_run: TinyRun, tmp_path: Path) -> None:
    first, second = sorted(TrainingLog(adamw_run.log).sample_rows)[:2]
    names = [first.hex(), second.hex()]
    file = tmp_path / "names.txt"
    file.write_text("\n".join(names))
    options = UnlearnOptions(forget=names, output=tmp_path / "options", **EXACTLY)
    ways = (
        unlearn(adamw_run.log, options),
        unlearn(str(adamw_run.log), forget=names, output=tmp_path / "names", **EXACTLY),
        unlearn(TrainingLog(adamw_run.log), file, output=str(tmp_path / "file"), **EXACTLY),
        unlearn(TrainingLog(adamw_run.log), [file], output=tmp_path / "files", **EXACTLY),
        unlearn(adamw_run.log, options, output=tmp_path / "replaced"),
    )
    assert all(way.document is not None for way in ways)
    models = {path.parent.name: path.read_bytes() for path in tmp_path.glob("*/model.safetensors")}
    assert len(models) == len(ways)
    assert set(models.values()) == {models["options"]}


@pytest.mark.parametrize(
    ("words", "values"),
    [
        ({"hessian_mode": "ggn"}, {"hessian_mode": HessianMode.GGN, "tolerance": None}),
        ({"hessian_mode": "auto"}, {"hessian_mode": HessianMode.SECANT, "tolerance": DEFAULT_TOLERANCE}),
        ({"hessian_mode": "auto", "tolerance": 0.3}, {"hessian_mode": HessianMode.SECANT, "tolerance": 0.3}),
        ({"K": "all"}, {"K": None}),
        ({"K": "auto"}, {"K": "auto"}),
    ],
)
def test_words_mean_what_they_mean_on_the_command_line(words: dict[str, Any], values: dict[str, Any]) -> None:
    options = UnlearnOptions(forget="steps:3", dry_run=True, **words)
    assert {name: getattr(options, name) for name in values} == values


def test_a_dry_run_needs_no_output(adamw_run: TinyRun) -> None:
    planned = unlearn(TrainingLog(adamw_run.log), "steps:3", dry_run=True, hessian_mode=HessianMode.GGN)
    assert planned.document is None
    assert planned.plan.mode is HessianMode.GGN


def test_no_more_states_are_kept_than_there_are(adamw_run: TinyRun, tmp_path: Path) -> None:
    document = unlearn(adamw_run.log, "steps:3", output=tmp_path / "out", keep_states=10**9, **EXACTLY).document
    assert document is not None
    (window,) = document["windows"]
    assert window["states"] == list(range(4, adamw_run.open().num_steps + 1))


def test_what_was_asked_of_an_open_log_is_in_its_ledger(adamw_run: TinyRun, tmp_path: Path) -> None:
    log = TrainingLog(shutil.copytree(adamw_run.log, tmp_path / "log"))
    digest = min(log.sample_rows)
    unlearn(log, digest.hex(), output=tmp_path / "out", K=3)
    (entry,) = read_ledger(TrainingLog(tmp_path / "log")).entries
    assert entry.requests[0].samples == (digest.hex(),)


def test_a_redaction_is_asked_of_an_open_log_as_well(adamw_run: TinyRun, tmp_path: Path) -> None:
    """Which was opened to be read alone."""
    log = TrainingLog(shutil.copytree(adamw_run.log, tmp_path / "log"))
    digest = min(log.sample_rows)
    unlearn(log, digest.hex(), output=tmp_path / "out", redact=True, **EXACTLY | {"ledger": True})
    redacted = TrainingLog(tmp_path / "log")
    assert redacted.sample(redacted.sample_rows[digest]).is_redacted


@pytest.mark.parametrize("forget", [None, 3, b"abc", {"steps:3": 1}])
def test_what_names_nothing_is_refused(forget: Any) -> None:
    with pytest.raises(UsageError, match="expected a file, digests or steps"):
        unlearn("no log", forget, dry_run=True)


def test_an_iterator_is_read_once(adamw_run: TinyRun) -> None:
    assert unlearn(adamw_run.log, (f"steps:{n}" for n in (3, 5)), dry_run=True).forget_set.steps == (3, 5)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"mode": "GGN"}, TypeError),
        ({"K": -1}, UsageError),
        ({"K": "some"}, UsageError),
        ({"rank": 3}, UsageError),
        ({"hessian_mode": "newton"}, UsageError),
        ({"hessian_mode": "GGN", "tolerance": 0.1}, UsageError),
        ({"hessian_mode": None}, UsageError),
        ({"tolerance": 0.1}, UsageError),
        ({"thresholds": None}, UsageError),
        ({"thresholds": {"settled": 1}}, UsageError),
        ({"K": True}, UsageError),
        ({"keep_states": 1.5}, UsageError),
        ({"damping": "1"}, UsageError),
        ({"oracle_sample": None}, UsageError),
    ],
)
def test_options_are_checked_before_the_log_is_opened(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        unlearn("no log", "steps:3", dry_run=True, **options)
    with pytest.raises(error):
        unlearn("no log", UnlearnOptions(forget="steps:3", dry_run=True), **options)
