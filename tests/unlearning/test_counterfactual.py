"""Secant unlearning gives the bits of a training that never had the rows' labels."""

from pathlib import Path

import pytest

from independent_trainer import train_without
from lmcleaner.choices import Denominator, Level
from tiny_runs import SETTINGS, TinyRun, parameters_in, record_tiny, same_bits, unlearn_tiny

INDEPENDENT = [name for name in SETTINGS if name != "adam"]  # Trainer has no plain Adam of its own


def test_the_recorded_run_is_the_run_that_trainer_would_have_made(adamw_run: TinyRun, tmp_path: Path) -> None:
    assert same_bits(parameters_in(adamw_run.trained), train_without(adamw_run.options, tmp_path))


@pytest.mark.parametrize("setting", INDEPENDENT)
def test_secant_gives_the_bits_of_a_run_with_masked_labels(setting: str, base_model: Path, tmp_path: Path) -> None:
    run = record_tiny(base_model, tmp_path, **SETTINGS[setting])
    result = unlearn_tiny(run, tmp_path / "out", oracle=True)
    retrained = train_without(run.options, tmp_path / "scratch", forget=tmp_path / "forget.jsonl")
    assert same_bits(parameters_in(tmp_path / "out"), retrained)
    assert result.document is not None
    assert result.document["oracle"]["relative_error"] == 0.0
    assert not same_bits(retrained, parameters_in(run.trained))


@pytest.mark.parametrize("setting", ["adamw", "accumulation with a partial last step"])
def test_the_retained_denominator_gives_the_bits_of_a_run_that_recounts(
    setting: str, base_model: Path, tmp_path: Path
) -> None:
    run = record_tiny(base_model, tmp_path, **SETTINGS[setting])
    unlearn_tiny(run, tmp_path / "out", denominator=Denominator.RETAINED)
    retrained = train_without(run.options, tmp_path / "scratch", forget=tmp_path / "forget.jsonl", recount=True)
    assert same_bits(parameters_in(tmp_path / "out"), retrained)


@pytest.mark.parametrize("setting", ["adamw", "sgd with momentum"])
def test_batch_level_gives_the_bits_of_a_run_that_skips_the_steps(
    setting: str, base_model: Path, tmp_path: Path
) -> None:
    run = record_tiny(base_model, tmp_path, **SETTINGS[setting])
    result = unlearn_tiny(run, tmp_path / "out", forget="steps:2,6-7")
    assert result.forget_set.level is Level.BATCH
    retrained = train_without(run.options, tmp_path / "scratch", skip=frozenset({2, 6, 7}))
    assert same_bits(parameters_in(tmp_path / "out"), retrained)


def test_batch_level_of_rows_skips_every_step_that_holds_one(adamw_run: TinyRun, tmp_path: Path) -> None:
    result = unlearn_tiny(adamw_run, tmp_path / "out", level=Level.BATCH)
    retrained = train_without(adamw_run.options, tmp_path / "scratch", skip=frozenset(result.forget_set.steps))
    assert same_bits(parameters_in(tmp_path / "out"), retrained)


def test_a_row_of_the_last_step_alone_is_forgotten_exactly(adamw_run: TinyRun, tmp_path: Path) -> None:
    log = adamw_run.open()
    last = log.num_steps - 1
    unlearn_tiny(adamw_run, tmp_path / "out", forget=f"steps:{last}")
    retrained = train_without(adamw_run.options, tmp_path / "scratch", skip=frozenset({last}))
    assert same_bits(parameters_in(tmp_path / "out"), retrained)
    assert not same_bits(retrained, parameters_in(adamw_run.trained))


@pytest.mark.parametrize("mode", ["secant", "GGN", "exact"])
def test_a_log_without_updates_gives_the_same_result(mode: str, base_model: Path, tmp_path: Path) -> None:
    found = []
    for updates in ("lossless", "none"):
        folder = tmp_path / updates
        folder.mkdir()
        run = record_tiny(base_model, folder, updates=updates)
        unlearn_tiny(run, folder / "out", mode)
        found.append(parameters_in(folder / "out"))
    assert same_bits(*found)
