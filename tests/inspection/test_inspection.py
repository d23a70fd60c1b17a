"""What `inspect` finds in a log."""

import shutil
from pathlib import Path

import pytest

from lmcleaner.formats.errors import MismatchError, NotFoundError
from lmcleaner.inspection.find import find_text
from lmcleaner.inspection.summary import summarize
from lmcleaner.inspection.verify import verify
from lmcleaner.training.models import load_tokenizer
from tiny_runs import TinyRun, record_tiny, rows, write_base_model


def test_the_summary_counts_what_was_trained(adamw_run: TinyRun) -> None:
    summary = summarize(adamw_run.open())
    assert (summary.num_steps, summary.planned_steps, summary.num_microbatches) == (10, 10, 10)
    assert (summary.num_samples, summary.num_occurrences) == (20, 40)
    assert summary.checkpoint_steps == (0, 4, 8, 10)
    assert summary.is_finished
    assert len(summary.loss) == 10
    assert sum(summary.bytes_on_disk.values()) == sum(
        file.stat().st_size for file in adamw_run.log.rglob("*") if file.is_file()
    )


def test_a_sample_is_found_by_its_text_with_all_its_uses(adamw_run: TinyRun) -> None:
    log = adamw_run.open()
    wanted = rows(20)[7]["question"]
    matches = find_text(log, wanted.upper(), load_tokenizer(str(adamw_run.base)))
    assert len(matches) == 1
    assert len(matches[0].occurrences) == 2
    for use in matches[0].occurrences:
        sample = log.step(use.step).microbatches[use.microbatch].samples[use.row]
        assert sample.digest.hex() == matches[0].digest


def test_no_text_is_looked_for_without_the_words(adamw_run: TinyRun, tmp_path: Path) -> None:
    """For some kinds of model transformers makes a tokenizer of no word where there are no files of one."""
    bare = shutil.copytree(adamw_run.base, tmp_path / "bare", ignore=shutil.ignore_patterns("*token*", "vocab*"))
    with pytest.raises(NotFoundError, match=r"no tokenizer beside the model: .*bare$"):
        load_tokenizer(str(bare))
    (bare / "tokenizer_config.json").write_text("{}")
    with pytest.raises(NotFoundError, match="can't load a tokenizer"):
        load_tokenizer(str(bare))


def test_uses_are_numbered_within_accumulated_steps(base_model: Path, tmp_path: Path) -> None:
    run = record_tiny(base_model, tmp_path, grad_accum=3, num_rows=22)
    log = run.open()
    for match in find_text(log, "Question:", load_tokenizer(str(base_model))):
        for use in match.occurrences:
            sample = log.step(use.step).microbatches[use.microbatch].samples[use.row]
            assert sample.digest.hex() == match.digest


def test_a_sound_log_verifies_and_names_the_number_of_exact_steps(adamw_run: TinyRun) -> None:
    found = verify(adamw_run.open(), replay_steps=4)
    assert found.is_sound
    assert found.replay is not None
    assert (found.replay.num_exact, found.replay.num_steps, found.replay.unrestorable) == (4, 4, [])


def test_a_replay_with_another_model_is_refused(adamw_run: TinyRun, tmp_path: Path) -> None:
    other = write_base_model(tmp_path / "other", seed=1)
    with pytest.raises(MismatchError, match="not the base model of this log") as caught:
        verify(adamw_run.open(), replay_steps=1, model=str(other))
    assert caught.value.exit_code == 20


def test_a_missing_base_model_is_named(adamw_run: TinyRun) -> None:
    with pytest.raises(NotFoundError, match="no such model: /nowhere"):
        verify(adamw_run.open(), replay_steps=1, model="/nowhere")
